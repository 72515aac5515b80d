"""What consumer, producer and admin of confluent-kafka share: options, first contact, errors."""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import confluent_kafka as ck

from app.errors import BrokerError, ConfigError
from app.sources.client import REQUEST_TIMEOUT_S, TopicPartition
from app.sources.failures import fenced, refused, unreachable
from app.sources.settings import KafkaSettings

log = logging.getLogger(__name__)

NO_GROUP = "headrace-without-group"  # librdkafka insists on a name; nothing is committed to this one
BEGINNING, END = -2, -1  # the "times" of a ListOffsets request
# How long the end of an outage may stay unnoticed, and how long a leader may take to answer.
PROBE_INTERVAL_S, PROBE_TIMEOUT_S = 0.5, 5.0

# The broker is away, or sorting itself out, and librdkafka goes on by itself.
PASSING = frozenset(
    {
        ck.KafkaError._TRANSPORT,
        ck.KafkaError._ALL_BROKERS_DOWN,
        ck.KafkaError._RESOLVE,
        ck.KafkaError._TIMED_OUT,
        ck.KafkaError._WAIT_COORD,
        ck.KafkaError.REQUEST_TIMED_OUT,
        ck.KafkaError.LEADER_NOT_AVAILABLE,
        ck.KafkaError.NOT_LEADER_FOR_PARTITION,
        ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
        ck.KafkaError.NOT_COORDINATOR,
    }
)
# Another producer has the transactional id, or the broker has given up this one's transaction.
FENCED = frozenset({ck.KafkaError._FENCED, ck.KafkaError.PRODUCER_FENCED, ck.KafkaError.INVALID_PRODUCER_EPOCH})


def common_options(settings: KafkaSettings) -> dict[str, Any]:
    named = {
        "bootstrap.servers": settings.bootstrap,
        "security.protocol": settings.security_protocol,
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": settings.password,
        "ssl.ca.location": settings.ssl_cafile,
        "ssl.certificate.location": settings.ssl_certfile,
        "ssl.key.location": settings.ssl_keyfile,
        "ssl.endpoint.identification.algorithm": "https" if settings.ssl_check_hostname else "none",
        # With the default of 10 s, a broker that is back stays unnoticed for that long.
        "reconnect.backoff.max.ms": 1_000,
        # It would log every attempt to connect, ten a second; the error callback tells the same.
        "log_level": 2,
        **settings.extra,
    }
    return {name: value for name, value in named.items() if value is not None}


class Link:
    """The connection to one cluster: where it is, and why it is out of reach if it is.

    partitions: what the client reads or writes now. An outage is over when each of them has a leader that answers; to a
    client of its own, in a thread that lasts as long. The records and deliveries of the other one cannot tell: those
    from before the outage may still wait in its queues. Its statistics could, but pile up in a client that is not
    polled for a while (40 kB a second with four partitions).
    """

    def __init__(self, settings: KafkaSettings, partitions: Callable[[], Collection[TopicPartition]] = tuple) -> None:
        self.bootstrap = settings.bootstrap
        self._settings = settings
        self._partitions = partitions
        self._error: BrokerError | None = None
        self._errors = 0
        self._is_watched = False
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def open(self, client: Any, options: Mapping[str, Any]) -> Any:
        """Makes the client and waits for the cluster's first answer."""
        try:
            opened = client({**options, "error_cb": self.note}, logger=log)
        except ck.KafkaException as error:
            raise ConfigError(
                f"confluent-kafka refuses an option: {error.args[0].str()}; correct the Kafka settings or `extra`"
            ) from error
        try:
            opened.list_topics(timeout=REQUEST_TIMEOUT_S)
        except ck.KafkaException as error:
            opened.poll(0)  # calls note(), which hears more of the reason
            raise self._error or unreachable(self.bootstrap, error.args[0].str()) from error
        return opened

    def close(self) -> None:
        """Behind the client's own close."""
        self._closed.set()

    @property
    def last_error(self) -> BrokerError | None:
        """Whoever asks has the outage watched, so that the next answers know of its end."""
        with self._lock:
            if self._error is not None and not self._is_watched and not self._closed.is_set():
                self._is_watched = True
                threading.Thread(target=self._watch, name="outage", daemon=True).start()
            return self._error

    def note(self, error: Any) -> None:
        """The error callback, called in the thread that polls the client. Logs once an outage. That all brokers are
        down only repeats what is known of each."""
        with self._lock:
            if error.code() == ck.KafkaError._ALL_BROKERS_DOWN and self._error is not None:
                return
            describe = unreachable if error.code() in PASSING else refused
            latest = describe(self.bootstrap, error.str())
            if self._error is None:
                log.warning("%s", latest)
            self._error = latest
            self._errors += 1

    def _watch(self) -> None:
        probe = ck.Consumer({**common_options(self._settings), "group.id": NO_GROUP})
        try:
            while not self._closed.is_set():
                errors = self._errors
                if self._is_answered(probe) and self._end_outage(errors):
                    return
                self._closed.wait(PROBE_INTERVAL_S)
        finally:
            probe.close()

    def _is_answered(self, probe: Any) -> bool:
        wanted = [ck.TopicPartition(*place, END) for place in self._partitions()]
        try:
            if not wanted:
                probe.list_topics(timeout=PROBE_TIMEOUT_S)
            else:
                raise_first_error(probe.offsets_for_times(wanted, timeout=PROBE_TIMEOUT_S))
        except ck.KafkaException:
            return False
        return True

    def _end_outage(self, errors: int) -> bool:
        """Unless there were more errors since they were counted."""
        with self._lock:
            if errors != self._errors:
                return False
            log.warning("Kafka at %s is back", self.bootstrap)
            self._error = None
            self._is_watched = False
            return True

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request that waits for its answer: turns the library's errors into ours."""
        try:
            yield
        except ck.KafkaException as error:
            raise self._explain(error.args[0]) from error

    def _explain(self, error: Any) -> BrokerError:
        if error.code() in FENCED:
            return fenced(self.bootstrap, error.str())
        # Leaders are unknown when no broker can be asked for them.
        if error.code() in PASSING or (error.code() == ck.KafkaError._UNKNOWN_PARTITION and self._error):
            return self._error or unreachable(self.bootstrap, error.str())
        return refused(self.bootstrap, error.str())


def raise_first_error(answers: Collection[Any]) -> None:
    """Requests for several partitions put each one's error into its answer."""
    for answer in answers:
        if answer.error is not None:
            raise ck.KafkaException(answer.error)

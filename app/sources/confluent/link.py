"""What consumer, producer and admin of confluent-kafka share: options, first contact, errors."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import confluent_kafka as ck

from app.errors import BrokerError, ConfigError
from app.sources.client import REQUEST_TIMEOUT_S, TopicPartition
from app.sources.failures import fenced, refused, unreachable
from app.sources.settings import KafkaSettings

log = logging.getLogger(__name__)

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
        # Nothing else tells that an outage is over.
        "statistics.interval.ms": 1_000,
        **settings.extra,
    }
    return {name: value for name, value in named.items() if value is not None}


class Link:
    """The connection to one cluster: where it is, and why it is out of reach if it is.

    Its callbacks are called in the thread that polls the client.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.bootstrap = settings.bootstrap
        self.partitions: Collection[TopicPartition] = ()  # what a consumer reads
        self.last_error: BrokerError | None = None

    def open(self, client: Any, options: Mapping[str, Any]) -> Any:
        """Makes the client and waits for the cluster's first answer."""
        try:
            opened = client({**options, "error_cb": self.note, "stats_cb": self._see_who_is_up}, logger=log)
        except ck.KafkaException as error:
            raise ConfigError(
                f"confluent-kafka refuses an option: {error.args[0].str()}; correct the Kafka settings or `extra`"
            ) from error
        try:
            opened.list_topics(timeout=REQUEST_TIMEOUT_S)
        except ck.KafkaException as error:
            opened.poll(0)  # calls note(), which hears more of the reason
            raise self.last_error or unreachable(self.bootstrap, error.args[0].str()) from error
        return opened

    def note(self, error: Any) -> None:
        """The error callback. Logs once an outage. That all brokers are down only repeats what is known of each."""
        if error.code() == ck.KafkaError._ALL_BROKERS_DOWN and self.last_error is not None:
            return
        describe = unreachable if error.code() in PASSING else refused
        latest = describe(self.bootstrap, error.str())
        if self.last_error is None:
            log.warning("%s", latest)
        self.last_error = latest

    def _see_who_is_up(self, statistics: str) -> None:
        """The statistics callback: ends an outage when a connected broker leads each partition of ours.

        Records and deliveries cannot end it: those from before it may still be waiting in the client's queues.
        """
        if self.last_error is None:
            return
        brokers = [one for one in json.loads(statistics)["brokers"].values() if one["nodeid"] >= 0]
        connected = [one for one in brokers if one["state"] == "UP"]
        led = {TopicPartition(led["topic"], led["partition"]) for one in connected for led in one["toppars"].values()}
        waiting = any(one["toppars"] for one in brokers if one["state"] != "UP")
        if connected and not waiting and led.issuperset(self.partitions):
            log.warning("Kafka at %s is back", self.bootstrap)
            self.last_error = None

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
        if error.code() in PASSING or (error.code() == ck.KafkaError._UNKNOWN_PARTITION and self.last_error):
            return self.last_error or unreachable(self.bootstrap, error.str())
        return refused(self.bootstrap, error.str())


def raise_first_error(answers: Collection[Any]) -> None:
    """Requests for several partitions put each one's error into its answer."""
    for answer in answers:
        if answer.error is not None:
            raise ck.KafkaException(answer.error)

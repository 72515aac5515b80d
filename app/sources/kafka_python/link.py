"""What consumer, producer and admin of kafka-python share: options, first contact, errors."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import kafka
from kafka import errors
from kafka.net.compat import KafkaNetClient
from kafka.structs import TopicPartition as KafkaPartition

from app.errors import BrokerError, ConfigError
from app.sources.client import REQUEST_TIMEOUT_S, TopicPartition
from app.sources.failures import fenced, refused, unreachable
from app.sources.settings import KafkaSettings

REQUEST_TIMEOUT_MS = int(REQUEST_TIMEOUT_S * 1_000)
# Another producer has the transactional id, or the broker has given up this one's transaction.
FENCED = (errors.ProducerFencedError, errors.InvalidProducerEpochError)
CLASSES = (kafka.KafkaConsumer, kafka.KafkaProducer, kafka.KafkaAdminClient)


def common_options(settings: KafkaSettings, client: Any) -> dict[str, Any]:
    """What every class gets, and those options of `extra` that this class has."""
    for name in settings.extra:
        if not any(name in one.DEFAULT_CONFIG for one in CLASSES):
            raise ConfigError(f"kafka-python has no option {name!r}; correct it in `extra` of the Kafka settings")
    return {
        "bootstrap_servers": settings.bootstrap.split(","),
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.password,
        "ssl_cafile": settings.ssl_cafile,
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_check_hostname": settings.ssl_check_hostname,
        "bootstrap_timeout_ms": REQUEST_TIMEOUT_MS,
        # With the default of 30 s, a broker that is back stays unnoticed for that long.
        "reconnect_backoff_max_ms": 1_000,
        **{name: value for name, value in settings.extra.items() if name in client.DEFAULT_CONFIG},
    }


class Link:
    """The connection to one cluster: where it is, and whether it is there."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.bootstrap = settings.bootstrap
        self._logs_in = settings.sasl_mechanism is not None
        self._net: Any = None

    def open(self, client: Any, options: Mapping[str, Any]) -> Any:
        """Makes the client; the library itself waits for the cluster's first answer."""
        try:
            with Overheard() as overheard:
                return client(**options, kafka_client=self._open_net)
        except errors.KafkaTimeoutError as error:
            raise unreachable(self.bootstrap, self._explain(overheard.reasons or str(error))) from error
        except (errors.KafkaConfigurationError, ValueError, RuntimeError) as error:
            raise ConfigError(f"kafka-python refuses an option: {error}; correct the Kafka settings") from error

    def _explain(self, reasons: str) -> str:
        """Kafka refuses a password and hangs up behind it; kafka-python 3.0.12 drops the refusal if it reads both at
        once, which a busy machine does every time."""
        hung_up = self._logs_in and "disconnected" in reasons and "uthentication" not in reasons
        return f"{reasons}; so does Kafka when authentication fails" if hung_up else reasons

    def _open_net(self, **options: Any) -> Any:
        self._net = KafkaNetClient(**options)
        # kafka-python 3.0.12 loses this option on its way here, and every look at a missing topic would make it.
        self._net.cluster.config["allow_auto_create_topics"] = False
        return self._net

    def outage(self, partitions: Collection[TopicPartition]) -> BrokerError | None:
        """Why these partitions cannot be reached at the moment; the library has no callback that would tell."""
        for place in partitions:
            leader = self._net.cluster.leader_for_partition(KafkaPartition(*place))
            if leader is None or leader < 0:
                return BrokerError(f"Kafka at {self.bootstrap} names no leader for {place}")
            if self._net.is_disconnected(leader):
                return BrokerError(f"Kafka at {self.bootstrap}: no connection to broker {leader}, leader of {place}")
        return None

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request that waits for its answer: turns the library's errors into ours."""
        try:
            yield
        except errors.RetriableError as error:
            raise unreachable(self.bootstrap, error) from error
        except FENCED as error:
            raise fenced(self.bootstrap, error) from error
        except errors.KafkaError as error:
            raise refused(self.bootstrap, error) from error


class Overheard(logging.Handler):
    """Why first contact fails: the library tells it in its log and nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._failures: list[str] = []

    @property
    def reasons(self) -> str:
        """All that were told."""
        return ", ".join(dict.fromkeys(self._failures))

    def emit(self, record: logging.LogRecord) -> None:
        self._failures += [str(each) for each in record.args or () if isinstance(each, Exception)]

    def __enter__(self) -> Self:
        logging.getLogger("kafka.net.manager").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("kafka.net.manager").removeHandler(self)


def to_client(partitions: Collection[TopicPartition]) -> list[Any]:
    return [KafkaPartition(*place) for place in partitions]

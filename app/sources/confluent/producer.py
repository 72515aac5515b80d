"""See app.sources.client.Producer."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import confluent_kafka as ck

from app.errors import BrokerError, RefusedRecordError
from app.sources.client import MAX_RECORD_BYTES, REQUEST_TIMEOUT_S, SEND_TIMEOUT_S, Header, OnDelivery, TopicPartition
from app.sources.confluent.link import Link, common_options
from app.sources.failures import buffer_full, given_up, no_such_topic
from app.sources.settings import Compression, KafkaSettings

BUFFER_BYTES = 64 << 20
# The record itself is no good; anything else may be another day.
REFUSED_RECORDS = frozenset(
    {ck.KafkaError.MSG_SIZE_TOO_LARGE, ck.KafkaError.INVALID_RECORD, ck.KafkaError.INVALID_TIMESTAMP}
)


def producer_options(settings: KafkaSettings, linger_ms: int, compression: Compression) -> dict[str, Any]:
    return {
        "linger.ms": linger_ms,
        "compression.type": compression,
        "message.max.bytes": MAX_RECORD_BYTES,
        "queue.buffering.max.kbytes": BUFFER_BYTES >> 10,
        **common_options(settings),
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": 0,
        "partitioner": "murmur2_random",
    }


class Sender:
    """What both producers are: a buffer of records. The first one that fails, if nobody else is told, is what the next
    call raises."""

    def __init__(self, settings: KafkaSettings, options: dict[str, Any]) -> None:
        self._link = Link(settings, self._list_partitions)
        self._topics: dict[str, int] = {}
        self._sent_to: set[tuple[str, int | None]] = set()
        self._untold: BrokerError | None = None
        self._client = self._link.open(ck.Producer, {**options, "on_delivery": self._keep_failure})

    @property
    def last_error(self) -> BrokerError | None:
        return self._link.last_error

    def _put(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int | None,
        headers: Sequence[Header],
        on_delivery: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self._raise_untold()
        if (topic, partition) not in self._sent_to:
            if topic not in self._topics:
                self._check_that_it_exists(topic)
            self._sent_to.add((topic, partition))
        place = -1 if partition is None else partition
        waiting_since_s: float | None = None
        refreshed = False
        while True:
            try:
                self._client.produce(topic, value, key, place, on_delivery=on_delivery, headers=list(headers))
                return
            except BufferError:
                waiting_since_s = waiting_since_s or time.monotonic()
                self._wait_for_room(waiting_since_s)
            except ck.KafkaException as error:
                if refreshed or error.args[0].code() != ck.KafkaError._UNKNOWN_PARTITION:
                    raise explain(error.args[0], f"a record for {topic!r} is refused") from error
                refreshed = True
                self._check_that_it_exists(topic)  # learns of partitions that were added since

    def _list_partitions(self) -> set[TopicPartition]:
        """Where records have been sent, or may have been."""
        return {
            TopicPartition(topic, each)
            for topic, partition in self._sent_to.copy()
            for each in (range(self._topics[topic]) if partition is None else [partition])
        }

    def _wait_for_room(self, since_s: float) -> None:
        if time.monotonic() > since_s + SEND_TIMEOUT_S:
            raise buffer_full(self._link.bootstrap, SEND_TIMEOUT_S)
        self._client.poll(0.1)

    def _check_that_it_exists(self, topic: str) -> None:
        """Asks for all topics: asked for one by name, librdkafka's producer makes it."""
        with self._link.request():
            found = self._client.list_topics(timeout=REQUEST_TIMEOUT_S).topics
        self._topics = {name: len(each.partitions) for name, each in found.items()}
        if topic not in self._topics:
            raise no_such_topic(self._link.bootstrap, topic)

    def _keep_failure(self, error: Any, message: Any) -> None:
        if error is not None and self._untold is None:  # the first says why those behind it fail
            self._untold = undelivered(error, message)

    def _raise_untold(self) -> None:
        if self._untold is not None:
            untold, self._untold = self._untold, None
            raise untold

    def flush(self, timeout_s: float) -> int:
        unsent: int = self._client.flush(timeout_s)
        self._raise_untold()
        return unsent


class ConfluentProducer(Sender):
    def __init__(self, settings: KafkaSettings, linger_ms: int, compression: Compression) -> None:
        super().__init__(settings, producer_options(settings, linger_ms, compression))

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[Header] = (),
        on_delivery: OnDelivery | None = None,
    ) -> None:
        self._put(topic, value, key, partition, headers, None if on_delivery is None else partial(report, on_delivery))

    def poll(self, timeout_ms: int = 0) -> None:
        self._client.poll(timeout_ms / 1_000)

    def close(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        unsent = self.flush(timeout_s)
        if unsent:
            self._client.purge()
            self._client.flush(1)  # tells on_delivery
        self._client.close()
        self._link.close()
        if unsent:
            raise given_up(self._link.bootstrap, unsent, timeout_s)


def report(on_delivery: OnDelivery, error: Any, message: Any) -> None:
    if error is None:
        on_delivery(None, message.offset(), message.timestamp()[1])
    else:
        on_delivery(undelivered(error, message), -1, -1)


def undelivered(error: Any, message: Any) -> BrokerError:
    return explain(error, f"a record for {message.topic()!r} was not delivered")


def explain(error: Any, happened: str) -> BrokerError:
    kind = RefusedRecordError if error.code() in REFUSED_RECORDS else BrokerError
    return kind(f"{happened}: {error.str()}")

"""See app.sources.client.Producer."""

import logging
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any

import kafka
from kafka import errors
from kafka.partitioner.sticky import StickyPartitioner

from app.errors import BrokerError
from app.sources.client import MAX_RECORD_BYTES, REQUEST_TIMEOUT_S, SEND_TIMEOUT_S, Header, OnDelivery, TopicPartition
from app.sources.failures import buffer_full, given_up, no_such_topic
from app.sources.kafka_python.admin import KafkaPythonAdmin
from app.sources.kafka_python.link import REQUEST_TIMEOUT_MS, Link, common_options
from app.sources.settings import Compression, KafkaSettings

log = logging.getLogger(__name__)

MOST_UNSENT = 100_000  # librdkafka's default; kafka-python itself has no bound


def producer_options(settings: KafkaSettings, linger_ms: int, compression: Compression) -> dict[str, Any]:
    return {
        "linger_ms": linger_ms,
        "compression_type": None if compression == "none" else compression,
        "max_request_size": MAX_RECORD_BYTES,
        "batch_size": 256 << 10,  # the default of 16 KiB makes a batch of 80 records of 200 bytes
        "max_block_ms": REQUEST_TIMEOUT_MS,
        "metrics_enabled": False,
        **common_options(settings, kafka.KafkaProducer),
        "enable_idempotence": True,
        "acks": "all",
        "delivery_timeout_ms": float("inf"),
        "partitioner": StickyPartitioner(),
    }


class KafkaPythonProducer:
    """The library calls back in a thread of its own. What it says is queued, so that on_delivery runs where the
    interface promises it; until then a record counts as unsent."""

    def __init__(self, settings: KafkaSettings, linger_ms: int, compression: Compression) -> None:
        self._settings = settings
        self._link = Link(settings)
        self._topics: set[str] = set()
        self._outcomes: SimpleQueue[tuple[OnDelivery | None, Any]] = SimpleQueue()
        self._unsent = 0
        self._unsent_lock = Lock()
        self._untold: BrokerError | None = None
        self._latest: TopicPartition | None = None
        self._client = self._link.open(kafka.KafkaProducer, producer_options(settings, linger_ms, compression))

    @property
    def last_error(self) -> BrokerError | None:
        if self._latest is None or not self._unsent:
            return None
        return self._link.outage([self._latest])

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
        self._raise_untold()
        if topic not in self._topics:
            self._check_that_it_exists(topic)
        if partition is not None and partition not in self._client.partitions_for(topic):
            self._learn_of_partitions_added()
        self._wait_for_room()
        try:
            future = self._client.send(topic, value, key, list(headers), partition)
        except (errors.KafkaError, ValueError) as error:
            raise BrokerError(f"a record for {topic!r} is refused: {error}") from error
        with self._unsent_lock:
            self._unsent += 1
        self._latest = TopicPartition(topic, partition or 0)
        future.add_both(self._queue_outcome, on_delivery)

    def _check_that_it_exists(self, topic: str) -> None:
        admin = KafkaPythonAdmin(self._settings)
        self._topics = set(admin.topics())
        admin.close()
        if topic not in self._topics:
            raise no_such_topic(self._link.bootstrap, topic)

    def _learn_of_partitions_added(self) -> None:
        learnt = Event()
        self._client._metadata.request_update().add_both(lambda _: learnt.set())
        learnt.wait(REQUEST_TIMEOUT_S)

    def _wait_for_room(self) -> None:
        give_up_at = time.monotonic() + SEND_TIMEOUT_S
        while self._unsent >= MOST_UNSENT:
            if time.monotonic() > give_up_at:
                raise buffer_full(self._link.bootstrap, SEND_TIMEOUT_S)
            self.poll(100)

    def _queue_outcome(self, on_delivery: OnDelivery | None, outcome: Any) -> None:
        self._outcomes.put((on_delivery, outcome))

    def poll(self, timeout_ms: int = 0) -> None:
        try:
            self._serve(*self._outcomes.get(timeout_ms > 0, timeout_ms / 1_000))
            while True:
                self._serve(*self._outcomes.get_nowait())
        except Empty:
            return

    def _serve(self, on_delivery: OnDelivery | None, outcome: Any) -> None:
        with self._unsent_lock:
            self._unsent -= 1
        if isinstance(outcome, Exception):
            failure = BrokerError(f"a record was not delivered to Kafka at {self._link.bootstrap}: {outcome}")
            if on_delivery is None:
                self._untold = failure
            else:
                on_delivery(failure, -1, -1)
        elif on_delivery is not None:
            on_delivery(None, outcome.offset, outcome.timestamp)

    def _raise_untold(self) -> None:
        if self._untold is not None:
            untold, self._untold = self._untold, None
            raise untold

    def flush(self, timeout_s: float) -> int:
        give_up_at = time.monotonic() + timeout_s
        try:
            self._client.flush(timeout_s)
        except errors.KafkaTimeoutError:
            log.debug("not all was delivered within %g s", timeout_s)
        self.poll()
        while self._unsent and time.monotonic() < give_up_at:
            self.poll(10)
        self._raise_untold()
        return self._unsent

    def close(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        unsent = self.flush(timeout_s)
        if unsent:
            self._client._sender.force_close()  # close() alone raises and closes nothing while records are unsent
        self._client.close(timeout=timeout_s)
        self.poll()
        if unsent:
            raise given_up(self._link.bootstrap, unsent, timeout_s)

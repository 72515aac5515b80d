"""See app.sources.client.TransactionalProducer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from app.errors import BrokerError
from app.sources.client import TRANSACTION_TIMEOUT_S, CommittedOffset, Header, OnDelivery, TopicPartition
from app.sources.failures import fenced, unfinished
from app.sources.kafka_python.link import FENCED, REQUEST_TIMEOUT_MS
from app.sources.kafka_python.producer import KafkaPythonProducer, producer_options
from app.sources.settings import KafkaSettings


def transactional_options(settings: KafkaSettings, transactional_id: str) -> dict[str, Any]:
    return {
        **producer_options(settings, linger_ms=0, compression="none"),
        "transactional_id": transactional_id,
        "transaction_timeout_ms": int(TRANSACTION_TIMEOUT_S * 1_000),
    }


class KafkaPythonTransactionalProducer(KafkaPythonProducer):
    """Ends transactions through the library's own manager: its methods for it wait without end."""

    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        self._open(settings, transactional_options(settings, transactional_id))
        self._manager = self._client._transaction_manager
        self._has_begun = False
        with self._ending():
            self._client.init_transactions()

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
        with self._ending():
            self._begin()
            super().send(topic, value, key=key, partition=partition, headers=headers, on_delivery=on_delivery)

    def _begin(self) -> None:
        if not self._has_begun:
            self._client.begin_transaction()
            self._has_begun = True

    def commit(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        wanted = {KafkaPartition(*place): OffsetAndMetadata(*stored) for place, stored in offsets.items()}
        with self._ending():
            self._begin()
            if wanted:
                self._wait_for(self._manager.send_offsets_to_transaction(wanted, group), "take the offsets")
            self._wait_for(self._manager.begin_commit(), "commit")
        self._has_begun = False
        self.poll()

    def _wait_for(self, result: Any, step: str) -> None:
        self._client._sender.wakeup()
        if not result.wait(REQUEST_TIMEOUT_MS):
            raise unfinished(self._link.bootstrap, step, REQUEST_TIMEOUT_MS / 1_000)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Around a step of a transaction: says the first reason that it failed, not what followed from it."""
        try:
            with self._link.request():
                yield
        except BrokerError:
            if isinstance(self._manager.last_error, FENCED):
                raise fenced(self._link.bootstrap, self._manager.last_error) from self._manager.last_error
            self.poll()
            self._raise_untold()
            raise

    def close(self, timeout_s: float = 0.0) -> None:
        self._client._accumulator.abort_incomplete_batches()  # close() alone raises and closes nothing while some are
        self._client._sender.force_close()
        self._client.close(timeout=timeout_s)

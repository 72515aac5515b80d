"""See app.sources.client.TransactionalProducer."""

import threading
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import confluent_kafka as ck

from app.errors import BrokerError, FencedError
from app.sources.client import (
    REQUEST_TIMEOUT_S,
    TRANSACTION_TIMEOUT_S,
    CommittedOffset,
    Header,
    TopicPartition,
)
from app.sources.confluent.producer import Sender, producer_options
from app.sources.failures import unfinished
from app.sources.settings import KafkaSettings

OFFSETS_TIMEOUT_S = 5.0


def transactional_options(settings: KafkaSettings, transactional_id: str) -> dict[str, Any]:
    options = {
        # Apache Kafka turns away the offsets while it still notes the transaction's first partition, and librdkafka
        # comes again after this time: a transaction took 115 ms with the default of 100, 5 with 2 (p50).
        "retry.backoff.ms": 2,
        **producer_options(settings, linger_ms=0, compression="none"),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1_000),
        # A commit says that all records are delivered; a call a record to say so costs as much as its JSON.
        "delivery.report.only.error": True,
    }
    del options["message.timeout.ms"]  # a transaction's records are tried for as long as it lasts
    return options


def member_of(group: str) -> Any:
    """What librdkafka wants to know of who commits: one without membership. Only a consumer can make it."""
    consumer = ck.Consumer({"group.id": group, "log_level": 0})
    try:
        return consumer.consumer_group_metadata()
    finally:
        consumer.close()


def send_offsets(client: Any, offsets: list[Any], member: Any, outcome: SimpleQueue[Exception | None]) -> None:
    try:
        client.send_offsets_to_transaction(offsets, member, OFFSETS_TIMEOUT_S)
    except ck.KafkaException as error:
        outcome.put(error)
    else:
        outcome.put(None)


def is_fatal(error: BaseException | None) -> bool:
    return isinstance(error, ck.KafkaException) and error.args[0].code() == ck.KafkaError._FATAL


class ConfluentTransactionalProducer(Sender):
    def __init__(self, settings: KafkaSettings, transactional_id: str) -> None:
        super().__init__(settings, transactional_options(settings, transactional_id))
        self._has_begun = False
        self._members: dict[str, Any] = {}
        with self._link.request():
            self._client.init_transactions(REQUEST_TIMEOUT_S)

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        self._begin()
        try:
            self._put(topic, value, key, partition, headers)
        except BrokerError as error:
            if is_fatal(error.__cause__):
                with self._link.request():
                    self._client.abort_transaction(REQUEST_TIMEOUT_S)  # says why; `produce` says only that it is so
            raise

    def _begin(self) -> None:
        if not self._has_begun:
            with self._link.request():
                self._client.begin_transaction()
            self._has_begun = True

    def commit(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        self._begin()
        if group not in self._members:
            self._members[group] = member_of(group)
        wanted = [ck.TopicPartition(*place, *stored) for place, stored in offsets.items()]
        try:
            with self._link.request():
                if wanted:
                    self._send_offsets(wanted, self._members[group])  # while the records are still on their way
                self._client.commit_transaction(REQUEST_TIMEOUT_S)
        except BrokerError as error:
            if not isinstance(error, FencedError):
                self._client.poll(0)
                self._raise_untold()  # the record that failed, and with it the transaction
            raise
        self._has_begun = False

    def _send_offsets(self, offsets: list[Any], member: Any) -> None:
        """In a thread of its own, to be left behind: behind a broker that is started again, librdkafka 2.16 was seen to
        wait in it without end, whatever the timeout (its issue 5456)."""
        outcome: SimpleQueue[Exception | None] = SimpleQueue()
        arguments = (self._client, offsets, member, outcome)
        threading.Thread(target=send_offsets, args=arguments, name="send-offsets", daemon=True).start()
        try:
            error = outcome.get(timeout=OFFSETS_TIMEOUT_S)
        except Empty:
            raise unfinished(self._link.bootstrap, "take the offsets", OFFSETS_TIMEOUT_S) from None
        if error is not None:
            raise error

    def close(self) -> None:
        """librdkafka's own close() would wait for the end of what is open, without end when the broker is away."""
        self._client.purge()
        del self._client
        self._link.close()

"""See app.sources.client.TransactionalProducer."""

import threading
import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import confluent_kafka as ck

from app.errors import BrokerError, FencedError, RefusedRecordError
from app.sources.client import (
    REQUEST_TIMEOUT_S,
    SEND_TIMEOUT_S,
    TRANSACTION_TIMEOUT_S,
    CommittedOffset,
    Header,
    TopicPartition,
)
from app.sources.confluent.producer import Sender, producer_options
from app.sources.failures import unfinished
from app.sources.settings import KafkaSettings

OFFSETS_TIMEOUT_S = 5.0
PORTION_BYTES, PORTION_RECORDS, FRAMING_BYTES = 800_000, 9_000, 200
"""What is sent before it is waited for, about a request, and what a record takes in it beside key and value, headers
included. While a request is on its way librdkafka 2.16 spins with what could go next, a core for each producer, which
the broker is then short of: a record per decision took 15 to 57 us of CPU, and takes 8."""
LINGER_MS = 100
"""Longer than a portion takes to be handed over. Nothing waits for so long: commit and flush send at once."""
LOOK_S = 0.001
"""librdkafka's flush looks whether all is delivered every 10 ms, or when its time is over."""


def transactional_options(settings: KafkaSettings, transactional_id: str) -> dict[str, Any]:
    options = {
        # Apache Kafka turns away the offsets while it still notes the transaction's first partition, and librdkafka
        # comes again after this time: a transaction took 115 ms with the default of 100, 5 with 2 (p50).
        "retry.backoff.ms": 2,
        **producer_options(settings, linger_ms=LINGER_MS, compression="none"),
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
        self._portion_bytes = self._portion_records = 0
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
        self._make_room(len(value or b"") + len(key or b"") + FRAMING_BYTES)
        try:
            self._put(topic, value, key, partition, headers)
        except BrokerError as error:
            if is_fatal(error.__cause__):
                self._ask_why()
            raise

    def _begin(self) -> None:
        if not self._has_begun:
            with self._link.request():
                self._client.begin_transaction()
            self._has_begun = True

    def _make_room(self, size: int) -> None:
        if self._portion_bytes + size > PORTION_BYTES or self._portion_records >= PORTION_RECORDS:
            self._finish_portion()
        self._portion_bytes += size
        self._portion_records += 1

    def _finish_portion(self) -> None:
        try:
            unsent = self.flush(SEND_TIMEOUT_S)
        except BrokerError as error:
            if not isinstance(error, RefusedRecordError):
                self._ask_why()
            raise
        if unsent:
            raise unfinished(self._link.bootstrap, "take the records", SEND_TIMEOUT_S)
        self._portion_bytes = self._portion_records = 0

    def _ask_why(self) -> None:
        """Raises FencedError where that is the reason: a record that fails says only that it does."""
        with self._link.request():
            self._client.abort_transaction(REQUEST_TIMEOUT_S)

    def flush(self, timeout_s: float) -> int:
        deadline_s = time.monotonic() + timeout_s
        while (unsent := int(self._client.flush(LOOK_S))) and time.monotonic() < deadline_s:
            pass
        self._raise_untold()
        return unsent

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
        self._portion_bytes = self._portion_records = 0

    def _send_offsets(self, offsets: list[Any], member: Any) -> None:
        """In a thread of its own, to be left behind: behind a broker that is started again, librdkafka 2.16 was seen to
        wait in it without end, whatever the timeout (its issue 5456)."""
        outcome: SimpleQueue[Exception | None] = SimpleQueue()
        arguments = (self._client, offsets, member, outcome)
        threading.Thread(target=send_offsets, args=arguments, name="send-offsets", daemon=True).start()
        deadline_s = time.monotonic() + OFFSETS_TIMEOUT_S
        while self._client.flush(LOOK_S) and outcome.empty() and time.monotonic() < deadline_s:
            pass
        try:
            error = outcome.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except Empty:
            raise unfinished(self._link.bootstrap, "take the offsets", OFFSETS_TIMEOUT_S) from None
        if error is not None:
            raise error

    def close(self) -> None:
        """librdkafka's own close() would wait for the end of what is open, without end when the broker is away."""
        self._client.purge()
        del self._client
        self._link.close()

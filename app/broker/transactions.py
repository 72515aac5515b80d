"""The transaction coordinator: which producer a transactional id stands for, and what its transaction takes in."""

import itertools
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from kafka.errors import (
    InvalidProducerEpochError,
    InvalidProducerIdMappingError,
    InvalidRecordError,
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    ProducerFencedError,
)

from app.broker.batch import BatchHeader
from app.broker.groups import CommittedOffset
from app.broker.journal import Journal

LONGEST_TIMEOUT_MS = 900_000  # Kafka's transaction.max.timeout.ms
LAST_EPOCH = 2**15 - 2
NO_PRODUCER = (-1, -1)


class Status(StrEnum):
    """Where a transactional id is. What is committing or aborting is decided, and completed after any crash."""

    IDLE = "idle"
    OPEN = "open"
    COMMITTING = "committing"
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"


class ProducerRef(NamedTuple):
    """How a producer names itself in every request of a transaction."""

    transactional_id: str
    producer_id: int
    epoch: int


class PendingOffset(NamedTuple):
    """A group's commit that counts when the transaction does."""

    group: str
    topic: str
    partition: int
    committed: CommittedOffset


@dataclass
class Transaction:
    """A transactional id, its current producer, and its open or latest transaction."""

    transactional_id: str
    producer_id: int
    epoch: int
    timeout_ms: int
    status: Status = Status.IDLE
    started_ms: int = 0
    partitions: list[tuple[str, int]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    offsets: list[PendingOffset] = field(default_factory=list)

    def open(self, now_ms: int) -> None:
        if self.status != Status.OPEN:
            self.status, self.started_ms = Status.OPEN, now_ms
            self.partitions, self.groups, self.offsets = [], [], []


class Effects(Protocol):
    """Where the end of a transaction shows. Both may be repeated after a crash, and then change nothing."""

    def end_transaction(self, topic: str, index: int, producer_id: int, epoch: int, *, commits: bool) -> None:
        """Writes the marker, if the producer has something open there."""

    def commit_offset(self, group: str, topic: str, index: int, committed: CommittedOffset) -> None: ...


class Transactions:
    """All transactional ids. With a file, every change is a line of it before it is acknowledged or takes effect."""

    def __init__(self, path: Path | None, effects: Effects) -> None:
        self._effects = effects
        self._journal = Journal(path)
        self._known: dict[str, Transaction] = {}
        for entry in self._journal.read():
            transaction = msgspec.convert(entry, Transaction)
            self._known[transaction.transactional_id] = transaction
        # Counted from the time of the start in µs: an id of an earlier run, kept in a log, never comes again.
        self._producer_ids = itertools.count(time.time_ns() // 1_000)
        self._compact()
        for transaction in self._known.values():
            self._complete(transaction)

    def new_producer_id(self) -> int:
        return next(self._producer_ids)

    def init(self, transactional_id: str, timeout_ms: int, known_as: tuple[int, int], now_ms: int) -> tuple[int, int]:
        """Returns (producer id, epoch) for the only producer of this id from now on: aborts what was open.

        A producer that goes on after an error says who it was (`known_as`). Raises ProducerFencedError when another
        one has come since, InvalidTransactionTimeoutError for a timeout above 15 minutes.
        """
        if not 0 < timeout_ms <= LONGEST_TIMEOUT_MS:
            raise InvalidTransactionTimeoutError(f"{timeout_ms} ms; write 1 to {LONGEST_TIMEOUT_MS}")
        transaction = self._known.get(transactional_id)
        if transaction is not None and known_as not in (NO_PRODUCER, (transaction.producer_id, transaction.epoch)):
            raise ProducerFencedError(f"{transactional_id!r} has another producer now")
        if transaction is None:
            transaction = Transaction(transactional_id, self.new_producer_id(), 0, timeout_ms)
            self._known[transactional_id] = transaction
        else:
            self._fence(transaction)
            transaction.timeout_ms = timeout_ms
        if transaction.epoch > LAST_EPOCH:
            transaction.producer_id, transaction.epoch = self.new_producer_id(), 0
        transaction.status = Status.IDLE
        self._note(transaction)
        return transaction.producer_id, transaction.epoch

    def add_partitions(self, producer: ProducerRef, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Takes partitions into the open transaction, and opens one if there is none.

        This, `add_group` and `end` raise ProducerFencedError for a producer that another one has replaced, and
        InvalidProducerIdMappingError for one that is not known.
        """
        transaction = self._find(producer)
        transaction.open(now_ms)
        transaction.partitions += [each for each in partitions if each not in transaction.partitions]
        self._note(transaction)

    def add_group(self, producer: ProducerRef, group: str, now_ms: int) -> None:
        transaction = self._find(producer)
        transaction.open(now_ms)
        if group not in transaction.groups:
            transaction.groups.append(group)
        self._note(transaction)

    def add_offsets(self, producer: ProducerRef, offsets: Collection[PendingOffset]) -> None:
        """Raises InvalidTxnStateError, too, when a group was not taken in before."""
        transaction = self._find(producer)
        for offset in offsets:
            if transaction.status != Status.OPEN or offset.group not in transaction.groups:
                raise InvalidTxnStateError(f"{producer.transactional_id!r} has not taken in group {offset.group!r}")
        transaction.offsets += offsets
        self._note(transaction)

    def check_batch(self, transactional_id: str | None, header: BatchHeader, partition: tuple[str, int]) -> None:
        """Raises InvalidProducerEpochError for a batch of a fenced producer, InvalidTxnStateError for one whose
        partition is not in the open transaction, InvalidRecordError for one that belongs to none."""
        if header.is_transactional != (transactional_id is not None):
            raise InvalidRecordError("a batch is transactional when its producer is, and only then")
        if transactional_id is None:
            return
        try:
            transaction = self._find(ProducerRef(transactional_id, header.producer_id, header.producer_epoch))
        except ProducerFencedError as error:
            raise InvalidProducerEpochError(str(error)) from error
        if transaction.status != Status.OPEN or partition not in transaction.partitions:
            raise InvalidTxnStateError(f"{transactional_id!r} has not taken in {partition[0]}/{partition[1]}")

    def end(self, producer: ProducerRef, *, commits: bool) -> None:
        """Makes all of the transaction visible, or nothing; after a crash in the middle the next start completes it.

        Asked again, it does nothing. Raises InvalidTxnStateError when there is nothing open.
        """
        transaction = self._find(producer)
        decided = (Status.COMMITTING, Status.COMMITTED) if commits else (Status.ABORTING, Status.ABORTED)
        if transaction.status == Status.OPEN:
            self._decide(transaction, commits=commits)
        elif transaction.status in decided:
            self._complete(transaction)
        else:
            raise InvalidTxnStateError(f"{producer.transactional_id!r} is {transaction.status}; begin a transaction")

    def abort_expired(self, now_ms: int) -> None:
        """Aborts what has been open for longer than its producer said, and fences the producer."""
        for transaction in self._known.values():
            if transaction.status == Status.OPEN and now_ms - transaction.started_ms > transaction.timeout_ms:
                self._fence(transaction)

    def is_pending(self, group: str, topic: str, partition: int) -> bool:
        """Whether an open transaction is about to change what the group has committed."""
        return any(
            (offset.group, offset.topic, offset.partition) == (group, topic, partition)
            for transaction in self._known.values()
            if transaction.status == Status.OPEN
            for offset in transaction.offsets
        )

    def flush(self) -> None:
        self._journal.flush()

    def close(self) -> None:
        self._journal.close()

    def _find(self, producer: ProducerRef) -> Transaction:
        transaction = self._known.get(producer.transactional_id)
        if transaction is None or transaction.producer_id != producer.producer_id:
            raise InvalidProducerIdMappingError(f"{producer.transactional_id!r} has no producer {producer.producer_id}")
        if transaction.epoch != producer.epoch:
            raise ProducerFencedError(f"{producer.transactional_id!r} is at epoch {transaction.epoch} now")
        return transaction

    def _fence(self, transaction: Transaction) -> None:
        self._complete(transaction)
        transaction.epoch += 1
        if transaction.status == Status.OPEN:
            self._decide(transaction, commits=False)
        else:
            self._note(transaction)

    def _decide(self, transaction: Transaction, *, commits: bool) -> None:
        transaction.status = Status.COMMITTING if commits else Status.ABORTING
        self._note(transaction)
        self._complete(transaction)

    def _complete(self, transaction: Transaction) -> None:
        """Carries out what is decided, if anything is left of it. Raises OSError when the medium refuses a part."""
        if transaction.status not in (Status.COMMITTING, Status.ABORTING):
            return
        commits = transaction.status == Status.COMMITTING
        for topic, index in transaction.partitions:
            producer_id, epoch = transaction.producer_id, transaction.epoch
            self._effects.end_transaction(topic, index, producer_id, epoch, commits=commits)
        for offset in transaction.offsets if commits else ():
            self._effects.commit_offset(*offset)
        transaction.status = Status.COMMITTED if commits else Status.ABORTED
        self._note(transaction)

    def _note(self, transaction: Transaction) -> None:
        if self._journal.append(msgspec.to_builtins(transaction)):
            self._compact()

    def _compact(self) -> None:
        self._journal.compact(self._entries())

    def _entries(self) -> Iterator[object]:
        return map(msgspec.to_builtins, self._known.values())

"""Publish: a record per action, or per decision, to a Kafka topic."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

from app.actions.action import Sink, group_of
from app.actions.kafka import Kafka
from app.actions.message import Message, failure_message
from app.actions.position import BEGINNING, Position, from_committed, to_committed
from app.actions.unfinished import Published, Trail, agree, find_lost
from app.actions.writer import Batch, D, Outcome, SinkWriter
from app.config import LogName, Settings
from app.errors import ActionError, BrokerError, HeadraceError, LogError, RefusedRecordError, RetryableActionError
from app.sources import Consumer, TopicPartition, TransactionalProducer

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_S = 5.0
MOST_PARTITIONS_AT_ONCE = 16
RENEWAL_S = 3_600.0
"""A broker forgets what a group without members committed after a week."""
QUIET_RECORDS = 1_000
"""A position that passes nothing of ours is stored after so many records of the log, or with the next delivery: a
partition without deliveries costs no producer and hardly a transaction, and a restart reads so many headers again."""
CAREFUL_DELIVERIES = 100
"""How many are sent one by one in a transaction, in search of one that is refused; within a transaction's time."""


class Publish(Sink, frozen=True):
    """A record for each action: the fields as JSON, keyed by the event's key, with the idempotency key as a header.

    Exactly once for who reads what is committed (`isolation.level=read_committed`): records and cursor are written in
    one transaction, which only one worker can make; one that was thought dead and comes back changes nothing. A record
    that the broker refuses for good becomes a dead letter in its place.
    """


class PublishSettings(Settings):
    """topic: where the records go; the sink's name if not given. "off" does not run the sink."""

    topic: LogName


class _Opened(NamedTuple):
    """A producer that has taken a partition over, the cursor since, and the target's partitions."""

    producer: TransactionalProducer
    position: Position
    targets: int


class Publisher(SinkWriter[D]):
    """See Publish. A source partition has a producer with a transactional id of its own.

    It gives to one partition of the target: the one of the same number, or where there are fewer, modulo their number;
    so a key's records stay in order. The cursor is the offset of the group in the log. What the group has is believed
    only once the producer is open: from then on nobody else can change it.

    Opening one takes 50 to 400 ms. `ahead`, it begins as soon as the partition is resumed, in a thread of its own;
    otherwise with the first delivery, so that a partition without any costs no producer.
    """

    commits_position = True

    def __init__(
        self,
        *,
        pipeline: str,
        sink: str,
        topic: str,
        message: Callable[[D], Message],
        kafka: Kafka,
        ahead: bool,
        clock: Callable[[], float] = time.monotonic,
        threads: Executor | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._sink = sink
        self._topic = topic
        self._group = group_of(pipeline, sink)
        self._message = message
        self._kafka = kafka
        self._ahead = ahead
        self._clock_s = clock
        self._targets = 0
        self._producers: dict[int, TransactionalProducer] = {}
        self._opening: dict[int, Future[_Opened]] = {}
        self._stored: dict[int, Position] = {}
        self._stored_at_s: dict[int, float] = {}
        self._refused: dict[int, dict[str, str]] = {}
        self._beside: TransactionalProducer | None = None
        self._threads = threads or ThreadPoolExecutor(MOST_PARTITIONS_AT_ONCE, f"publish-{sink}")

    def resume(self, saved: Mapping[int, Position | None]) -> dict[int, Position]:
        """What the group had a moment ago is older than what an open producer has just committed."""
        for partition, position in saved.items():
            if partition not in self._producers:
                self._note_stored(partition, position or BEGINNING)
                if self._ahead:
                    self._start_opening(partition)
        return {partition: self._stored[partition] for partition in saved}

    def write(self, batches: Sequence[Batch[D]]) -> list[Outcome]:
        """A transaction for each partition, side by side."""
        outcomes = self._transact_all([batch for batch in batches if self._is_due(batch)])
        return [outcomes.get(batch.partition, Outcome(batch.end)) for batch in batches]

    def save(self, batches: Sequence[Batch[D]]) -> list[Outcome]:
        """Opens no producer for it."""
        opened = self._producers.keys() | self._opening.keys()
        due = [batch for batch in batches if batch.partition in opened and batch.end != self._stored[batch.partition]]
        outcomes = self._transact_all(due)
        return [outcomes.get(batch.partition, Outcome(batch.end)) for batch in batches]

    def _transact_all(self, due: Sequence[Batch[D]]) -> dict[int, Outcome]:
        failed = self._wait_for_producers([batch.partition for batch in due])
        ready = [batch for batch in due if batch.partition not in failed]
        written = zip(ready, self._threads.map(self._write, ready), strict=True)
        short = {batch.partition: Outcome(batch.start, failed.get(batch.partition)) for batch in due}
        return short | {batch.partition: outcome for batch, outcome in written}

    def _note_stored(self, partition: int, position: Position) -> None:
        self._stored[partition], self._stored_at_s[partition] = position, self._clock_s()

    def _is_due(self, batch: Batch[D]) -> bool:
        moved = batch.end.log_offset - self._stored[batch.partition].log_offset
        age_s = self._clock_s() - self._stored_at_s[batch.partition]
        return bool(batch.deliveries) or moved >= QUIET_RECORDS or age_s >= RENEWAL_S

    def _start_opening(self, partition: int) -> None:
        if partition not in self._producers and partition not in self._opening:
            self._opening[partition] = self._threads.submit(self._open, partition)

    def _open(self, partition: int) -> _Opened:
        """In a thread beside the loop's. Raises BrokerError, LogError or RetryableActionError."""
        with self._take_over(partition) as producer:
            with closing(self._kafka.open_consumer(self._group)) as consumer:
                targets = len(consumer.partitions(self._topic))
                cursor = self._read_cursor(consumer, partition)
                target = TopicPartition(self._topic, partition % targets)
                trail = Trail(self._kafka, self._pipeline, self._sink, partition, target)
                hidden = trail.find_hidden(consumer)
            if cursor is not None and not hidden:
                return _Opened(producer, cursor, targets)
            self._undo(producer, target)
        producer.close()
        with self._take_over(partition) as producer:
            return _Opened(producer, self._finish(producer, partition, trail, hidden, cursor), targets)

    @contextmanager
    def _take_over(self, partition: int) -> Iterator[TransactionalProducer]:
        """Closes the producer only if something goes wrong."""
        producer = self._kafka.open_transactional_producer(f"{self._group}/{partition}")
        try:
            yield producer
        except BaseException:
            producer.close()
            raise

    def _read_cursor(self, consumer: Consumer, partition: int) -> Position | None:
        """None when it is not told: the broker is away, or what the group has is pending, maybe without end."""
        try:
            return self._read_committed(consumer, partition)
        except BrokerError as error:
            logger.warning("the cursor of %s, partition %d, is not told: %s", self._group, partition, error)
            return None

    def _read_committed(self, consumer: Consumer, partition: int) -> Position:
        log = self._log(partition)
        return from_committed(consumer.committed([log])[log]) or BEGINNING

    def _undo(self, producer: TransactionalProducer, target: TopicPartition) -> None:
        """Begins a transaction in the target, for the next producer to undo: with it ends whatever of this
        transactional id is open there."""
        producer.send(target.topic, b"", key=b"headrace", partition=target.partition)
        self._flush(producer)

    def _finish(
        self,
        producer: TransactionalProducer,
        partition: int,
        trail: Trail,
        hidden: Sequence[Published],
        cursor: Position | None,
    ) -> Position:
        """Makes the group say what the target shows, and the target show what the group says. Returns the cursor."""
        log = self._log(partition)
        with closing(self._kafka.open_consumer(self._group, read_uncommitted=True)) as consumer:
            before = self._read_committed(consumer, partition)
        seen = trail.find_seen(hidden, log, before.log_offset)
        agreed = agree(before, seen) if cursor is None else cursor
        lost = find_lost(agreed, hidden, seen)
        for each in lost:
            key, value, headers = each.message
            producer.send(self._topic, value, key=key, partition=trail.target.partition, headers=headers)
        if lost or cursor is None:
            producer.commit(self._group, {log: to_committed(agreed)})
        logger.warning(
            "%s, partition %d: Kafka had not finished a transaction; of %d records that it hid in %s, %d are sent "
            "again; the cursor is %s",
            self._group,
            partition,
            len(hidden),
            trail.target,
            len(lost),
            agreed,
        )
        return agreed

    def _wait_for_producers(self, partitions: Sequence[int]) -> dict[int, HeadraceError]:
        """Returns why a partition cannot be written now."""
        for partition in partitions:
            self._start_opening(partition)
        failed: dict[int, HeadraceError] = {}
        for partition in self._opening.keys() & set(partitions):
            try:
                opened = self._opening.pop(partition).result()
                self._take(partition, opened)
            except (BrokerError, RetryableActionError, LogError) as error:
                failed[partition] = error
        return failed

    def _take(self, partition: int, opened: _Opened) -> None:
        """Raises RetryableActionError when another worker has moved the cursor since this one was resumed; then it is
        resumed from there."""
        self._producers[partition], self._targets = opened.producer, opened.targets
        known = self._stored[partition]
        self._note_stored(partition, opened.position)
        if opened.position != known:
            raise RetryableActionError(
                f"the cursor of {self._group}, partition {partition}, stands at {opened.position}, not where this "
                f"worker found it, at {known}: another worker has gone on from there"
            )

    def _write(self, batch: Batch[D]) -> Outcome:
        """What the broker refuses is found out over several attempts: with a new producer each, as it ends one."""
        refused = self._refused.get(batch.partition)
        portion = batch if refused is None else _careful_portion(batch)
        known = None if refused is None else len(refused)
        try:
            self._transact(self._producers[batch.partition], portion, refused)
        except RefusedRecordError as error:
            self.release(batch.partition)
            refused = self._refused.setdefault(batch.partition, {})
            return Outcome(batch.start, error if len(refused) == known else None)
        except (BrokerError, RetryableActionError) as error:
            self.release(batch.partition)
            return Outcome(batch.start, error)
        self._note_stored(batch.partition, portion.end)
        self._refused.pop(batch.partition, None)
        return Outcome(portion.end, None, len(refused or ()))

    def _transact(self, producer: TransactionalProducer, batch: Batch[D], refused: dict[str, str] | None) -> None:
        """With `refused`, each record is waited for, so that the one that is refused is known, and noted there."""
        for delivery in batch.deliveries:
            if refused is None:
                self._send(producer, delivery)
            elif delivery.key in refused:
                self._send_dead_letter(producer, delivery, refused[delivery.key])
            else:
                try:
                    self._send(producer, delivery)
                    self._flush(producer)
                except RefusedRecordError as error:
                    refused[delivery.key] = str(error)
                    raise
        producer.commit(self._group, {self._log(batch.partition): to_committed(batch.end)})

    def _send(self, producer: TransactionalProducer, delivery: D) -> None:
        message = self._message(delivery)
        partition = delivery.partition % self._targets
        producer.send(self._topic, message.value, key=message.key, partition=partition, headers=message.headers)

    def _send_dead_letter(self, producer: TransactionalProducer, delivery: D, reason: str) -> None:
        message = failure_message(delivery, self._message(delivery), reason, 1)
        producer.send(self._kafka.dead_letters, message.value, key=message.key, headers=message.headers)

    def deliver(self, delivery: D) -> None:
        """In a transaction beside those of the workers, whose producers stay as they are."""
        try:
            if self._beside is None:
                with closing(self._kafka.open_consumer(self._group)) as consumer:
                    self._targets = len(consumer.partitions(self._topic))
                self._beside = self._kafka.open_transactional_producer(f"{self._group}/beside")
            self._send(self._beside, delivery)
            self._beside.commit(self._group, {})
        except BrokerError as error:
            self._close_beside()  # a transaction that failed ends its producer
            kind = ActionError if isinstance(error, RefusedRecordError) else RetryableActionError
            raise kind(str(error)) from error

    def _close_beside(self) -> None:
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def _flush(self, producer: TransactionalProducer) -> None:
        if producer.flush(FLUSH_TIMEOUT_S):
            raise RetryableActionError(
                f"a record for {self._topic!r} is not acknowledged after {FLUSH_TIMEOUT_S:g} s "
                f"({producer.last_error or 'no error is known'})"
            )

    def release(self, partition: int) -> None:
        if partition in self._opening:
            self._opening.pop(partition).add_done_callback(_close_unused)
        producer = self._producers.pop(partition, None)
        if producer is not None:
            producer.close()

    def _log(self, partition: int) -> TopicPartition:
        return TopicPartition(self._kafka.decisions, partition)

    def close(self) -> None:
        for partition in [*self._producers, *self._opening]:
            self.release(partition)
        self._close_beside()
        self._threads.shutdown(cancel_futures=True)


def _close_unused(opening: "Future[_Opened]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().producer.close()


def _careful_portion(batch: Batch[D]) -> Batch[D]:
    """The first deliveries, with all of an event's."""
    deliveries = batch.deliveries
    for count in range(CAREFUL_DELIVERIES, len(deliveries)):
        if deliveries[count].offset != deliveries[count - 1].offset:
            end = batch.before(deliveries[count])
            return Batch(batch.partition, batch.start, end, deliveries[:count])
    return batch

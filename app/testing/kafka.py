"""Kafka in memory, behind the interface of app.sources, with a crash before or after any operation."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from app.errors import BrokerError, FencedError, RefusedRecordError
from app.sources import CommittedOffset, Header, OnDelivery, Records, TopicPartition
from app.testing.clock import Clock

AWAY = "the broker is away"


class Crash(BaseException):
    """The process is gone."""


class Stored(NamedTuple):
    """A record in a log."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]
    append_ms: int


class Open(NamedTuple):
    """A transaction that Kafka takes for complete and has left open in a log, from an offset on."""

    transactional_id: str
    offset: int


@dataclass
class MemoryKafka:
    """What outlives every worker: the logs, and what groups have committed.

    Who waits for commits hears nothing of the `unfinished` groups, until the next transaction, and sees nothing of the
    logs that are left `open`, until a transaction of the same id in that log ends; what it undoes is `aborted`.

    `operations_left` is after how many operations of its clients the process that runs now dies; None: it does not.
    `at_operation` is called with the number of each: what others do while this process stands. While it is `away`,
    requests fail and nothing is appended; `refuse_appends` is how many flushes find it so. It refuses values above
    `most_value_bytes` in a transaction, dead letters only when `letters_may_be_larger` is false. `epochs` counts the
    producers of each transactional id, `opened` names them in order, `begun` are the logs that its transaction is in.
    """

    clock: Clock = field(default_factory=Clock)
    logs: dict[TopicPartition, list[Stored]] = field(default_factory=dict)
    groups: dict[str, dict[TopicPartition, CommittedOffset]] = field(default_factory=lambda: defaultdict(dict))
    unfinished: set[str] = field(default_factory=set)
    open: dict[TopicPartition, Open] = field(default_factory=dict)
    aborted: set[tuple[TopicPartition, int]] = field(default_factory=set)
    operations_left: int | None = None
    at_operation: Callable[[int], None] | None = None
    operations: int = 0
    most_value_bytes: int | None = None
    letters_may_be_larger: bool = True
    epochs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    opened: list[str] = field(default_factory=list)
    begun: dict[str, set[TopicPartition]] = field(default_factory=dict)
    away: bool = False
    refuse_appends: int = 0
    producers: list["MemoryProducer"] = field(default_factory=list)
    on_append: Callable[[TopicPartition, Stored], None] | None = None

    def create(self, topic: str, partitions: int) -> None:
        for partition in range(partitions):
            self.logs[TopicPartition(topic, partition)] = []

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
        append_ms: int | None = None,
    ) -> int:
        """The record's offset. Its append time is the clock's, unless another one is given."""
        place = TopicPartition(topic, partition)
        stored = Stored(key, value, headers, round(self.clock.now_ms) if append_ms is None else append_ms)
        self.logs[place].append(stored)
        if self.on_append is not None:
            self.on_append(place, stored)
        return len(self.logs[place]) - 1

    def require(self, partition: TopicPartition) -> None:
        """Raises BrokerError when it has not been created."""
        if partition not in self.logs:
            raise BrokerError(f"there is no {partition}; create it")

    def survive(self) -> None:
        """Marks the boundary of an operation, of Kafka or of something else."""
        self.operations += 1
        if self.at_operation is not None:
            self.at_operation(self.operations)
        if self.operations_left is not None:
            self.operations_left -= 1
            if self.operations_left < 0:
                raise Crash

    def operate(self) -> None:
        """Marks the boundary of an operation of Kafka's. Raises BrokerError while it is away."""
        self.survive()
        if self.away:
            raise BrokerError(AWAY)

    def stable_end(self, partition: TopicPartition) -> int:
        """Where those end that can be seen by who waits for commits."""
        found = self.open.get(partition)
        return len(self.logs[partition]) if found is None else found.offset

    def end(self, transactional_id: str, partitions: Collection[TopicPartition], *, commit: bool) -> None:
        """Ends what the transactional id has left open in these logs."""
        for partition in partitions:
            found = self.open.get(partition)
            if found is not None and found.transactional_id == transactional_id:
                del self.open[partition]
                if not commit:
                    self.aborted |= {(partition, each) for each in range(found.offset, len(self.logs[partition]))}

    def records(self, topic: str) -> list[tuple[int, Stored]]:
        """All of a topic that can be seen, with their partitions, partition by partition."""
        return [
            (log.partition, each)
            for log, kept in self.logs.items()
            if log.topic == topic
            for offset, each in enumerate(kept[: self.stable_end(log)])
            if (log, offset) not in self.aborted
        ]


class MemoryConsumer:
    """Implements app.sources.Consumer. Where there is nothing to poll, it tells `wait` for how long it would have
    waited, and returns at once."""

    def __init__(
        self,
        kafka: MemoryKafka,
        group: str | None = None,
        wait: Callable[[float], None] | None = None,
        *,
        hurried: bool = True,
        read_uncommitted: bool = False,
    ) -> None:
        self.kafka = kafka
        self._waits_for_commits = not read_uncommitted
        self.positions: dict[TopicPartition, int] = {}
        self.closed = False
        self._group = group
        self._wait = wait

    @property
    def last_error(self) -> BrokerError | None:
        return BrokerError(AWAY) if self.kafka.away else None

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        for partition in positions:
            self.kafka.require(partition)
        self.positions = {each: self.positions.get(each, position) for each, position in positions.items()}

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        polled = [] if self.kafka.away else self._take(max_records)
        if not polled and self._wait is not None:
            self._wait(timeout_ms)
        return polled

    def _take(self, max_records: int) -> list[Records]:
        self.kafka.operate()
        taken = []
        for partition, position in self.positions.items():
            passed = range(position, min(position + max_records, self._end(partition)))
            offsets = [
                each for each in passed if not self._waits_for_commits or (partition, each) not in self.kafka.aborted
            ]
            max_records -= len(offsets)
            self.positions[partition] += len(passed)
            if offsets:
                taken.append(to_records(partition, offsets, [self.kafka.logs[partition][each] for each in offsets]))
        return taken

    def _end(self, partition: TopicPartition) -> int:
        return self.kafka.stable_end(partition) if self._waits_for_commits else len(self.kafka.logs[partition])

    def passed(self, partition: TopicPartition) -> int:
        return self.positions[partition]

    def pause(self, partitions: Collection[TopicPartition]) -> None: ...
    def resume(self, partitions: Collection[TopicPartition]) -> None: ...

    def partitions(self, topic: str) -> list[int]:
        found = [each.partition for each in self.kafka.logs if each.topic == topic]
        if not found:
            raise BrokerError(f"there is no topic {topic!r}; create it")
        return found

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        self.kafka.operate()
        return {each: self._end(each) for each in partitions}

    def offsets_for_time(self, partitions: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        return {each: sum(stored.append_ms < time_ms for stored in self.kafka.logs[each]) for each in partitions}

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        """Without `wait`, what cannot be stored now is forgotten, as a report of progress may be."""
        assert self._group is not None
        if self.kafka.away and not wait:
            return
        self.kafka.operate()
        self.kafka.groups[self._group].update(offsets)
        self.kafka.operate()

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        self.kafka.operate()
        assert self._group is not None
        if self._waits_for_commits and self._group in self.kafka.unfinished:
            raise BrokerError("a transaction of the group is not finished")
        return {each: self.kafka.groups[self._group].get(each) for each in partitions}

    def close(self) -> None:
        self.closed = True


class Sent(NamedTuple):
    """A record on its way."""

    topic: str
    partition: int
    value: bytes | None
    key: bytes | None
    headers: Sequence[Header]
    on_delivery: OnDelivery | None


class MemoryProducer:
    """Implements app.sources.Producer. Appends in `poll` and `flush`, record by record, so that a crash can leave a
    part of them; with `hold`, in `flush` alone."""

    last_error: BrokerError | None = None

    def __init__(self, kafka: MemoryKafka, *, hold: bool = False) -> None:
        self.kafka = kafka
        self.hold = hold
        self.pending: list[Sent] = []
        kafka.producers.append(self)

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
        place = TopicPartition(topic, partition or 0)
        self.kafka.require(place)
        self.pending.append(Sent(*place, value, key, headers, on_delivery))

    def poll(self, timeout_ms: int = 0) -> None:
        if not self.hold:
            self.flush(0)

    def flush(self, timeout_s: float) -> int:
        while self.pending and not (self.kafka.away or self.kafka.refuse_appends):
            self.kafka.operate()
            sent = self.pending.pop(0)
            offset, append_ms = self.append(sent)
            self.kafka.operate()
            if sent.on_delivery is not None:
                sent.on_delivery(None, offset, append_ms)
        self.kafka.refuse_appends = max(0, self.kafka.refuse_appends - 1)
        return len(self.pending)

    def append(self, sent: Sent) -> tuple[int, int]:
        """The offset and the append time that the record got."""
        offset = self.kafka.append(sent.topic, sent.partition, sent.value, key=sent.key, headers=sent.headers)
        return offset, self.kafka.logs[TopicPartition(sent.topic, sent.partition)][offset].append_ms

    def close(self, timeout_s: float = 10.0) -> None:
        if self.flush(timeout_s):
            raise BrokerError("records were given up")


class MemoryTransactionalProducer:
    """Implements app.sources.TransactionalProducer. Records and offsets are there at the commit, all at once, unless a
    newer producer of its id has come."""

    def __init__(self, kafka: MemoryKafka, transactional_id: str) -> None:
        kafka.operate()
        self.kafka = kafka
        self.transactional_id = transactional_id
        kafka.epochs[transactional_id] += 1
        kafka.opened.append(transactional_id)
        self.epoch = kafka.epochs[transactional_id]
        kafka.end(transactional_id, kafka.begun.pop(transactional_id, set()), commit=False)
        self.pending: list[tuple[TopicPartition, bytes | None, bytes | None, Sequence[Header]]] = []
        self.failure: BrokerError | None = None
        kafka.operate()

    @property
    def last_error(self) -> BrokerError | None:
        return BrokerError(AWAY) if self.kafka.away else None

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        place = TopicPartition(topic, partition or 0)
        self.kafka.require(place)
        most = self.kafka.most_value_bytes
        exempt = self.kafka.letters_may_be_larger and topic.endswith("dead-letters")
        if most is not None and len(value or b"") > most and not exempt:
            self.failure = self.failure or RefusedRecordError("the record is too large")
        self.pending.append((place, value, key, headers))

    def flush(self, timeout_s: float) -> int:
        self.operate()
        self.kafka.begun[self.transactional_id] = {place for place, *_ in self.pending}
        return 0

    def commit(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        self.operate()
        self.kafka.begun.pop(self.transactional_id, None)
        for place, value, key, headers in self.pending:
            self.kafka.append(*place, value, key, headers)
        self.kafka.end(self.transactional_id, {place for place, *_ in self.pending}, commit=True)
        self.kafka.groups[group].update(offsets)
        self.kafka.unfinished.discard(group)
        self.pending = []
        self.kafka.operate()

    def operate(self) -> None:
        """Raises FencedError, or why the transaction has failed."""
        self.kafka.operate()
        if self.epoch != self.kafka.epochs[self.transactional_id]:
            raise FencedError("another producer has taken over")
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """What is pending is gone."""


def to_records(partition: TopicPartition, offsets: Sequence[int], stored: Sequence[Stored]) -> Records:
    return Records(
        topic=partition.topic,
        partition=partition.partition,
        offsets=np.array(offsets, dtype=np.int64),
        append_ms=np.array([each.append_ms for each in stored], dtype=np.int64),
        keys=[each.key for each in stored],
        values=[each.value for each in stored],
        headers=lambda: [list(each.headers) for each in stored],
    )

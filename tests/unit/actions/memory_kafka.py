"""Kafka in memory, behind the interface of app.sources, with a crash before or after any operation."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.errors import BrokerError, FencedError, RefusedRecordError
from app.sources import CommittedOffset, Header, OnDelivery, Records, TopicPartition


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Stored:
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    append_ms: int


@dataclass
class MemoryKafka:
    """What outlives a worker: topics, what groups have committed, and when the next crash happens."""

    logs: dict[TopicPartition, list[Stored]] = field(default_factory=dict)
    groups: dict[str, dict[TopicPartition, CommittedOffset]] = field(default_factory=lambda: defaultdict(dict))
    operations_left: int | None = None
    at_operation: Callable[[int], None] | None = None
    operations: int = 0
    most_value_bytes: int | None = None
    letters_may_be_larger: bool = True
    epochs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    opened: list[str] = field(default_factory=list)
    away: bool = False
    refuse_appends: int = 0
    producers: list["MemoryProducer"] = field(default_factory=list)

    def create(self, topic: str, partitions: int) -> None:
        for partition in range(partitions):
            self.logs[TopicPartition(topic, partition)] = []

    def append(self, topic: str, partition: int, stored: Stored) -> int:
        log = self.logs[TopicPartition(topic, partition)]
        log.append(stored)
        return len(log) - 1

    def operate(self) -> None:
        """Marks the boundary of an operation: the place for a crash, or for what others do while this worker stands."""
        self.operations += 1
        if self.at_operation is not None:
            self.at_operation(self.operations)
        if self.operations_left is not None:
            self.operations_left -= 1
            if self.operations_left < 0:
                raise Crash
        if self.away:
            raise BrokerError("the broker is away")

    def records(self, topic: str) -> list[tuple[int, Stored]]:
        return [(log.partition, each) for log, kept in self.logs.items() if log.topic == topic for each in kept]


class MemoryConsumer:
    def __init__(self, kafka: MemoryKafka, group: str | None) -> None:
        self.kafka = kafka
        self.group = group
        self.positions: dict[TopicPartition, int] = {}
        self.closed = False

    @property
    def last_error(self) -> BrokerError | None:
        return BrokerError("the broker is away") if self.kafka.away else None

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        for partition in positions:
            if partition not in self.kafka.logs:
                raise BrokerError(f"there is no {partition}; create it")
        self.positions = {each: self.positions.get(each, position) for each, position in positions.items()}

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        self.kafka.operate()
        found = []
        for partition, position in self.positions.items():
            stored = self.kafka.logs[partition][position : position + max_records]
            max_records -= len(stored)
            if stored:
                found.append(to_records(partition, position, stored))
                self.positions[partition] += len(stored)
        if not found:
            time.sleep(min(timeout_ms, 1) / 1000)
        return found

    def partitions(self, topic: str) -> list[int]:
        found = [each.partition for each in self.kafka.logs if each.topic == topic]
        if not found:
            raise BrokerError(f"there is no topic {topic!r}; create it")
        return found

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        self.kafka.operate()
        return {each: len(self.kafka.logs[each]) for each in partitions}

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        self.kafka.operate()
        assert self.group is not None
        self.kafka.groups[self.group].update(offsets)
        self.kafka.operate()

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        self.kafka.operate()
        assert self.group is not None
        return {each: self.kafka.groups[self.group].get(each) for each in partitions}

    def close(self) -> None:
        self.closed = True


class MemoryProducer:
    """Appends in `flush`, record by record, so that a crash can leave a part of them."""

    def __init__(self, kafka: MemoryKafka) -> None:
        self.kafka = kafka
        self.pending: list[tuple[str, int, Stored, OnDelivery | None]] = []
        kafka.producers.append(self)

    @property
    def last_error(self) -> BrokerError | None:
        return None

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
        if TopicPartition(topic, partition or 0) not in self.kafka.logs:
            raise BrokerError(f"there is no topic {topic!r}; create it")
        self.pending.append((topic, partition or 0, Stored(key, value, list(headers), 0), on_delivery))

    def poll(self, timeout_ms: int = 0) -> None:
        self.flush(0)

    def flush(self, timeout_s: float) -> int:
        while self.pending and not (self.kafka.away or self.kafka.refuse_appends):
            self.kafka.operate()
            topic, partition, stored, on_delivery = self.pending.pop(0)
            offset = self.kafka.append(topic, partition, stored)
            self.kafka.operate()
            if on_delivery is not None:
                on_delivery(None, offset, 0)
        self.kafka.refuse_appends = max(0, self.kafka.refuse_appends - 1)
        return len(self.pending)

    def close(self, timeout_s: float = 10.0) -> None:
        if self.flush(timeout_s):
            raise BrokerError("records were given up")


class MemoryTransactionalProducer:
    """Its records and offsets are there at the commit, all at once, unless a newer one of its id has come."""

    def __init__(self, kafka: MemoryKafka, transactional_id: str) -> None:
        kafka.operate()
        self.kafka = kafka
        self.transactional_id = transactional_id
        kafka.epochs[transactional_id] += 1
        kafka.opened.append(transactional_id)
        self.epoch = kafka.epochs[transactional_id]
        self.pending: list[tuple[TopicPartition, Stored]] = []
        self.failure: BrokerError | None = None
        kafka.operate()

    @property
    def last_error(self) -> BrokerError | None:
        return None

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        place = TopicPartition(topic, partition or 0)
        if place not in self.kafka.logs:
            raise BrokerError(f"there is no topic {topic!r}; create it")
        most = self.kafka.most_value_bytes
        exempt = self.kafka.letters_may_be_larger and topic.endswith("dead-letters")
        if most is not None and len(value or b"") > most and not exempt:
            self.failure = self.failure or RefusedRecordError("the record is too large")
        self.pending.append((place, Stored(key, value, list(headers), 0)))

    def flush(self, timeout_s: float) -> int:
        self._operate()
        return 0

    def commit(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        self._operate()
        for place, stored in self.pending:
            self.kafka.append(*place, stored)
        self.kafka.groups[group].update(offsets)
        self.pending = []
        self.kafka.operate()

    def _operate(self) -> None:
        self.kafka.operate()
        if self.epoch != self.kafka.epochs[self.transactional_id]:
            raise FencedError("another producer has taken over")
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """What is pending is gone."""


def to_records(partition: TopicPartition, start: int, stored: Sequence[Stored]) -> Records:
    return Records(
        topic=partition.topic,
        partition=partition.partition,
        offsets=np.arange(start, start + len(stored)),
        append_ms=np.array([each.append_ms for each in stored], dtype=np.int64),
        keys=[each.key for each in stored],
        values=[each.value for each in stored],
        headers=lambda: [each.headers for each in stored],
    )

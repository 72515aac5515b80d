"""A Kafka in memory for fast tests: one log per topic and partition, with a consumer and a producer over it."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.errors import BrokerError
from app.sources import CommittedOffset, Header, OnDelivery, Records, TopicPartition


@dataclass
class Stored:
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    append_ms: int


@dataclass
class MemoryBroker:
    """All logs, and what groups have committed. `now_ms` stamps appends; tests move it."""

    logs: dict[TopicPartition, list[Stored]] = field(default_factory=lambda: defaultdict(list))
    groups: dict[tuple[str, TopicPartition], CommittedOffset] = field(default_factory=dict)
    now_ms: int = 1_700_000_000_000

    def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        log = self.logs[TopicPartition(topic, partition)]
        log.append(Stored(key, value, list(headers), self.now_ms))
        return len(log) - 1


class MemoryConsumer:
    """Implements app.sources.Consumer; `poll` never waits."""

    last_error: BrokerError | None = None

    def __init__(self, broker: MemoryBroker, group: str | None = None) -> None:
        self._broker = broker
        self._group = group
        self.positions: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self.positions = {each: self.positions.get(each, at) for each, at in positions.items()}

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        polled = []
        for each, at in self.positions.items():
            found = self._broker.logs[each][at : at + max_records]
            max_records -= len(found)
            if found:
                self.positions[each] = at + len(found)
                polled.append(_records(each, at, found))
        return polled

    def pause(self, partitions: Collection[TopicPartition]) -> None: ...
    def resume(self, partitions: Collection[TopicPartition]) -> None: ...

    def partitions(self, topic: str) -> list[int]:
        return sorted(each.partition for each in self._broker.logs if each.topic == topic)

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: len(self._broker.logs[each]) for each in partitions}

    def offsets_for_time(self, partitions: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        return {each: sum(stored.append_ms < time_ms for stored in self._broker.logs[each]) for each in partitions}

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        assert self._group is not None
        for each, offset in offsets.items():
            self._broker.groups[self._group, each] = offset

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        return {each: self._broker.groups.get((str(self._group), each)) for each in partitions}

    def close(self) -> None: ...


def _records(each: TopicPartition, at: int, found: list[Stored]) -> Records:
    return Records(
        topic=each.topic,
        partition=each.partition,
        offsets=np.arange(at, at + len(found)),
        append_ms=np.array([stored.append_ms for stored in found], dtype=np.int64),
        keys=[stored.key for stored in found],
        values=[stored.value for stored in found],
        headers=lambda: [stored.headers for stored in found],
    )


class MemoryProducer:
    """Implements app.sources.Producer. With `hold`, records reach the log only at the next `flush` or `release`."""

    last_error: BrokerError | None = None

    def __init__(self, broker: MemoryBroker, *, hold: bool = False) -> None:
        self._broker = broker
        self.hold = hold
        self._waiting: list[tuple[str, bytes | None, int, bytes | None, Sequence[Header], OnDelivery | None]]
        self._waiting = []

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
        self._waiting.append((topic, value, partition or 0, key, headers, on_delivery))

    def poll(self, timeout_ms: int = 0) -> None:
        if not self.hold:
            self.release()

    def release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for topic, value, partition, key, headers, on_delivery in waiting:
            offset = self._broker.append(topic, partition, value, key, headers)
            if on_delivery:
                on_delivery(None, offset, self._broker.now_ms)

    def flush(self, timeout_s: float) -> int:
        self.release()
        return 0

    def close(self, timeout_s: float = 10.0) -> None:
        self.release()

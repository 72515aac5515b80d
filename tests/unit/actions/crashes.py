"""Runs a sink until it has caught up, over crashes."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from app.actions.loop import SinkLoop
from app.sources import TopicPartition
from app.testing.kafka import Crash, MemoryKafka
from tests.unit.actions.decision_log import DECISIONS, LATE_EVENTS, LETTERS, Written

STEPS = 5_000


class Clock:
    """Seconds; goes on by `tick_s` whenever it is read."""

    def __init__(self, tick_s: float = 0.2, start_s: float = 2.0) -> None:
        self.ticks = itertools.count()
        self.tick_s = tick_s
        self.start_s = start_s

    def __call__(self) -> float:
        return self.start_s + next(self.ticks) * self.tick_s


def kafka_with(frames: Iterable[Written], partitions: int = 2) -> MemoryKafka:
    kafka = MemoryKafka()
    for topic in (DECISIONS, LETTERS, LATE_EVENTS):
        kafka.create(topic, partitions)
    for frame in frames:
        append(kafka, frame)
    return kafka


def append(kafka: MemoryKafka, frame: Written, logged_ms: int = 1_500) -> None:
    header, value = frame.encode()
    kafka.append(DECISIONS, frame.partition, value, headers=[header], append_ms=logged_ms)


def is_caught_up(kafka: MemoryKafka, loop: SinkLoop[Any]) -> bool:
    partitions = loop.status().partitions
    ends = {log.partition: len(kept) for log, kept in kafka.logs.items() if log.topic == DECISIONS}
    return {partition: place.log_offset for partition, place in partitions.items()} == ends and not any(
        place.error for place in partitions.values()
    )


def catch_up(kafka: MemoryKafka, loop: SinkLoop[Any]) -> None:
    """Steps until everything in the decision log is carried out; leaves the loop open."""
    for _ in range(STEPS):
        loop.step(0)
        if is_caught_up(kafka, loop):
            return
    raise TimeoutError(f"not caught up after {STEPS} steps: {loop.status()}")


def run_over_crashes(
    kafka: MemoryKafka, open_loop: Callable[[], SinkLoop[Any]], crashes: Iterable[int]
) -> SinkLoop[Any]:
    """Each of `crashes` is after how many operations the worker dies; what follows the last is not disturbed."""
    partitions = {log.partition for log in kafka.logs if log.topic == DECISIONS}
    for operations in [*crashes, None]:
        kafka.operations_left = operations
        try:
            loop = open_loop()
            loop.assign(partitions)
            catch_up(kafka, loop)
            loop.close()
        except Crash:
            continue
    return loop


def committed(kafka: MemoryKafka, group: str, partition: int) -> int:
    return kafka.groups[group][TopicPartition(DECISIONS, partition)].offset

"""The breaker: a sink that is away is asked after by one partition at a time, and all catch up when it is back."""

import random
import threading
from collections.abc import Callable, Sequence
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Delivery
from app.actions.attempts import FailedAttemptError
from app.actions.breaker import Breaker
from app.actions.loop import SinkLoop
from app.actions.selection import OneAction
from app.actions.writer import Batch, Outcome, SinkWriter
from app.errors import HeadraceError, RetryableActionError, SinkAwayError
from app.sources import CommittedOffset, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka
from tests.unit.actions.crashes import append, catch_up, kafka_with
from tests.unit.actions.decision_log import DECISIONS, PIPELINE, Hold, Row, Written, decision_logs, effects_of

AWAY = SinkAwayError("nobody is there")
Fault = Callable[[int], HeadraceError | None]


class HandClock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FaultyWriter(SinkWriter[Delivery]):
    """Fails a partition's batches with what `fault` says of it; keeps the rest, and counts what it was asked for."""

    commits_each_batch = True

    def __init__(self, fault: Fault = lambda partition: None) -> None:
        self.fault = fault
        self.keys: list[str] = []
        self.tried: list[int] = []

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        return [self._write(batch) for batch in batches]

    def _write(self, batch: Batch[Delivery]) -> Outcome:
        if not batch.deliveries:
            return Outcome(batch.end)
        self.tried.append(batch.partition)
        error = self.fault(batch.partition)
        if error is not None:
            return Outcome(batch.start, error)
        self.keys += [delivery.key for delivery in batch.deliveries]
        return Outcome(batch.end)

    def close(self) -> None:
        """Nothing is open."""


def open_loop(kafka: MemoryKafka, writer: SinkWriter[Delivery], clock: HandClock) -> SinkLoop[Delivery]:
    return SinkLoop(
        pipeline=PIPELINE,
        sink="list",
        log_topic=DECISIONS,
        open_consumer=lambda: MemoryConsumer(kafka, "fraud.list"),
        selection=OneAction(PIPELINE, Hold, "card"),
        writer=writer,
        halt=threading.Event(),
        clock=clock,
    )


def rows(kind: tuple[str, ...], first: int, last: int, partition: int) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, kind) for offset in range(first, last + 1)))


def holds(first: int, last: int, partition: int = 0) -> Written:
    return rows(("Hold",), first, last, partition)


def quiet(first: int, last: int, partition: int = 0) -> Written:
    return rows((), first, last, partition)


def keys(*offsets: int, partition: int = 0) -> list[str]:
    return [f"fraud/{partition}/{offset}/0" for offset in offsets]


def run(loop: SinkLoop[Delivery], clock: HandClock, for_s: float, step_s: float = 0.05) -> None:
    end_s = clock.now_s + for_s
    while clock.now_s < end_s:
        loop.step(0)
        clock.now_s += step_s


def test_a_breaker_opens_for_longer_with_each_failure_and_closes_at_once() -> None:
    breaker = Breaker(random.Random(1))
    assert (breaker.state, breaker.not_before_ms(0, 7.0)) == ("closed", 7.0)
    for retries in range(1, 12):
        breaker.open(AWAY, 1_000.0)
        longest_ms = min(30_000, 100 * 2 ** (retries - 1))
        assert 0.5 * longest_ms <= breaker.not_before_ms(0, 0.0) - 1_000.0 <= longest_ms
        assert (breaker.state, breaker.retries) == ("open", retries)
    assert breaker.close() == 11
    assert (breaker.state, breaker.retries, breaker.not_before_ms(0, 7.0)) == ("closed", 0, 7.0)


def test_partitions_take_turns_as_the_probe() -> None:
    breaker = Breaker(random.Random(1))
    chosen = []
    for _ in range(5):
        breaker.open(AWAY, 0.0)
        chosen.append(breaker.choose_probe([0, 1, 3]))
        assert breaker.state == "half-open"
        assert breaker.not_before_ms(chosen[-1], 5.0) == 5.0
        assert breaker.not_before_ms(2, 5.0) == float("inf")
    assert chosen == [0, 1, 3, 0, 1]


def test_a_sink_that_is_away_is_asked_by_one_partition_at_a_time_less_and_less_often() -> None:
    kafka, clock = kafka_with([holds(0, 3, partition) for partition in range(8)], partitions=8), HandClock()
    writer = FaultyWriter(lambda partition: AWAY)
    loop = open_loop(kafka, writer, clock)
    loop.assign(range(8))
    run(loop, clock, 60)
    assert sorted(writer.tried[:8]) == list(range(8))  # until the first failure nobody knows
    waits = writer.tried[8:]
    assert 7 <= len(waits) <= 12  # 100 ms doubled, and halved at random: at least 8.9 s and at most 17.9 s for seven
    assert waits == [partition % 8 for partition in range(len(waits))]
    status = loop.status()
    assert (status.breaker, status.retries, status.error) == ("open", len(waits) + 1, "nobody is there")


def test_when_the_sink_is_back_every_partition_catches_up_in_order_without_a_wait() -> None:
    kafka, clock = kafka_with([holds(0, 3, partition) for partition in range(8)], partitions=8), HandClock()
    writer = FaultyWriter(lambda partition: AWAY)
    loop = open_loop(kafka, writer, clock)
    loop.assign(range(8))
    run(loop, clock, 60)
    for partition in range(8):
        append(kafka, holds(4, 5, partition))
    writer.fault = lambda partition: None
    while not writer.keys:
        loop.step(0)
        clock.now_s += 0.05
    loop.step(0)  # at the same moment
    assert sorted(writer.keys) == sorted(key for partition in range(8) for key in keys(*range(6), partition=partition))
    for partition in range(8):
        of_partition = [key for key in writer.keys if key.startswith(f"fraud/{partition}/")]
        assert of_partition == keys(*range(6), partition=partition)
    assert (loop.status().breaker, loop.status().retries, loop.status().error) == ("closed", 0, None)


@pytest.mark.parametrize("error", [RetryableActionError("not now"), FailedAttemptError("no")])
def test_an_action_that_fails_by_itself_opens_nothing(error: HeadraceError) -> None:
    kafka, clock = kafka_with([holds(0, 1), holds(0, 1, partition=1)]), HandClock()
    writer = FaultyWriter(lambda partition: error if partition == 0 else None)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    loop.step(0)
    assert loop.status().breaker == "closed"
    append(kafka, holds(2, 2, partition=1))
    loop.step(0)
    assert writer.keys == keys(0, 1, 2, partition=1)


def test_a_sink_that_is_busy_for_one_partition_goes_on_for_another_that_had_nothing_to_do() -> None:
    kafka, clock = kafka_with([holds(0, 1), quiet(0, 0, partition=1)]), HandClock()
    writer = FaultyWriter(lambda partition: AWAY if partition == 0 else None)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    run(loop, clock, 20)
    assert loop.status().breaker == "open"
    append(kafka, holds(1, 2, partition=1))
    run(loop, clock, 61)  # two of the longest waits
    assert writer.keys == keys(1, 2, partition=1)


def test_a_partition_without_anything_for_the_sink_does_not_tell_whether_it_is_there() -> None:
    kafka, clock = kafka_with([holds(0, 1), quiet(0, 9, partition=1)]), HandClock()
    writer = FaultyWriter(lambda partition: AWAY)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    for at in range(300):
        append(kafka, quiet(10 * (at + 1), 10 * at + 19, partition=1))
        run(loop, clock, 0.1)
    assert loop.status().retries >= 7  # in a row: it was never taken for back
    assert len(writer.tried) <= 10


def test_a_partition_with_a_long_backlog_of_nothing_for_the_sink_does_not_keep_the_turn() -> None:
    kafka, clock = kafka_with([holds(0, 1), *(quiet(at, at, partition=1) for at in range(3_000))]), HandClock()
    writer = FaultyWriter(lambda partition: AWAY)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    while loop.status().retries < 2:
        run(loop, clock, 0.02)
    writer.fault = lambda partition: None
    run(loop, clock, 0.5, step_s=0.02)
    assert writer.keys == keys(0, 1)


def test_a_probe_whose_cursor_is_broken_holds_up_no_other() -> None:
    kafka, clock = kafka_with([holds(0, 1), holds(0, 1, partition=1)]), HandClock()
    writer = FaultyWriter(lambda partition: AWAY)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    loop.step(0)
    kafka.groups["fraud.list"][TopicPartition(DECISIONS, 0)] = CommittedOffset(99, "")
    writer.fault = lambda partition: None
    run(loop, clock, 0.3)
    assert writer.keys == keys(0, 1, partition=1)
    assert "the log was made anew" in str(loop.status().partitions[0].error)


def test_a_probe_that_is_taken_away_leaves_its_turn_to_another() -> None:
    kafka, clock = kafka_with([holds(0, 1), holds(0, 1, partition=1)]), HandClock()
    writer = FaultyWriter(lambda partition: AWAY)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    loop.step(0)
    with patch.object(loop._consumer, "poll", return_value=[]):
        while loop.status().breaker != "half-open":
            run(loop, clock, 0.05)
    writer.fault = lambda partition: None
    loop.assign([1])
    run(loop, clock, 2)
    assert writer.keys == keys(0, 1, partition=1)
    assert loop.status().breaker == "closed"


def test_waiting_for_a_sink_that_is_away_is_no_busy_loop() -> None:
    kafka, clock = kafka_with([holds(0, 1), holds(0, 1, partition=1)]), HandClock()
    loop = open_loop(kafka, FaultyWriter(lambda partition: AWAY), clock)
    loop.assign([0, 1])
    loop.step(0)
    waited: list[float] = []
    loop._wake.wait = lambda timeout: waited.append(timeout) or False  # type: ignore[method-assign]
    loop.step(250)
    assert 0.04 < waited[0] <= 0.25


def test_a_writer_that_cannot_even_resume_opens_the_breaker() -> None:
    class Unreachable(FaultyWriter):
        def resume(self, saved: object) -> dict[int, object]:  # type: ignore[override]
            raise RetryableActionError("the database says: no")

    kafka, clock = kafka_with([holds(0, 1), holds(0, 1, partition=1)]), HandClock()
    loop = open_loop(kafka, Unreachable(), clock)
    loop.assign([0, 1])
    loop.step(0)
    assert (loop.status().breaker, loop.status().error) == ("open", "the database says: no")


@settings(max_examples=60)
@given(
    frames=decision_logs(partitions=4),
    outages=st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(1, 40)), max_size=6),
    moves=st.lists(st.sets(st.integers(0, 3)), max_size=4),
)
def test_whatever_outages_and_reassignments_each_partition_gets_its_holds_once_and_in_order(
    frames: list[Written], outages: list[tuple[set[int], int]], moves: list[set[int]]
) -> None:
    kafka, clock = kafka_with(frames, partitions=4), HandClock()
    writer = FaultyWriter()
    loop = open_loop(kafka, writer, clock)
    loop.assign(range(4))
    for at, (partitions, steps) in enumerate(outages):
        writer.fault = lambda partition, away=partitions: AWAY if partition in away else None  # type: ignore[misc]
        if at < len(moves):
            loop.assign(moves[at])
        run(loop, clock, steps * 0.1, step_s=0.1)
    writer.fault = lambda partition: None
    loop.assign(range(4))
    run(loop, clock, 61, step_s=0.5)
    catch_up(kafka, loop)
    for partition, expected in effects_of(frames).holds.items():
        assert [key for key in writer.keys if key.startswith(f"fraud/{partition}/")] == [key for key, _ in expected]
    assert loop.status().breaker == "closed"

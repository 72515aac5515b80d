"""The loop of a sink: what it reads, what it tells, and what it does when partitions come and go."""

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from app.actions.action import Delivery
from app.actions.loop import SinkLoop
from app.actions.position import Position
from app.actions.reading import decode_frame
from app.actions.selection import OneAction
from app.actions.writer import Batch, Outcome, SinkWriter
from app.errors import BrokerError, FencedError, RetryableActionError
from app.sources import CommittedOffset, Records, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka
from tests.unit.actions.crashes import Clock, append, catch_up, committed, kafka_with
from tests.unit.actions.decision_log import DECISIONS, PIPELINE, Hold, Row, Written


class ListWriter(SinkWriter[Delivery]):
    """Keeps what it is given; fails while `failing` says so."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.failing: set[int] = set()
        self.resumed: list[Mapping[int, Position | None]] = []
        self.fenced: set[int] = set()
        self.released: list[int] = []
        self.closed = False

    def resume(self, saved: Mapping[int, Position | None]) -> dict[int, Position]:
        self.resumed.append(saved)
        return super().resume(saved)

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        return [self._write(batch) for batch in batches]

    def _write(self, batch: Batch[Delivery]) -> Outcome:
        if batch.partition in self.failing:
            return Outcome(batch.start, RetryableActionError("the sink is away"))
        if batch.partition in self.fenced:
            return Outcome(batch.start, FencedError("another worker has taken over"))
        self.keys += [delivery.key for delivery in batch.deliveries]
        return Outcome(batch.end)

    def release(self, partition: int) -> None:
        self.released.append(partition)

    def close(self) -> None:
        self.closed = True


class HandClock:
    """Seconds, moved by hand."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class RefusedConsumer(MemoryConsumer):
    """Its polls are refused while the broker is away."""

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        self.kafka.operate()
        return super().poll(max_records, timeout_ms)


def open_loop(
    kafka: MemoryKafka, writer: ListWriter, clock: Any = None, consumer: type[MemoryConsumer] = MemoryConsumer
) -> SinkLoop[Delivery]:
    return SinkLoop(
        pipeline=PIPELINE,
        sink="list",
        log_topic=DECISIONS,
        open_consumer=lambda: consumer(kafka, "fraud.list"),
        selection=OneAction(PIPELINE, Hold, "card"),
        writer=writer,
        halt=threading.Event(),
        clock=clock or Clock(),
    )


def holds(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1)))


def quiet(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided") for offset in range(first, last + 1)))


def keys(*offsets: int, partition: int = 0) -> list[str]:
    return [f"fraud/{partition}/{offset}/0" for offset in offsets]


def test_a_partition_that_is_taken_away_is_committed_and_read_no_more() -> None:
    kafka, writer = kafka_with([holds(0, 1), holds(0, 1, partition=1)]), ListWriter()
    loop = open_loop(kafka, writer, HandClock(100.0))
    loop.assign([0, 1])
    catch_up(kafka, loop)
    append(kafka, holds(2, 2))
    loop.step(0)
    assert committed(kafka, "fraud.list", 0) == 1  # the next commit is not due yet
    loop.assign([1])
    append(kafka, holds(3, 3))
    append(kafka, holds(2, 2, partition=1))
    loop.step(0)
    loop.step(0)
    assert writer.keys[4:] == [*keys(2), *keys(2, partition=1)]
    assert set(loop.status().partitions) == {1}
    assert committed(kafka, "fraud.list", 0) == 2


def test_a_partition_that_comes_back_goes_on_where_its_last_owner_was() -> None:
    kafka, mine, theirs = kafka_with([holds(0, 1), quiet(0, 0, partition=1)]), ListWriter(), ListWriter()
    loop, other = open_loop(kafka, mine), open_loop(kafka, theirs)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    loop.assign([1])
    loop.step(0)
    append(kafka, holds(2, 3))
    other.assign([0, 1])
    catch_up(kafka, other)
    other.close()
    append(kafka, holds(4, 4))
    loop.assign([0, 1])
    catch_up(kafka, loop)
    assert (mine.keys, theirs.keys) == (keys(0, 1, 4), keys(2, 3))
    assert theirs.closed


def test_a_frame_without_actions_is_passed_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def note_and_decode(header: Any, value: bytes) -> Any:
        opened.append(header.first)
        return decode_frame(header, value)

    monkeypatch.setattr("app.actions.reading.decode_frame", note_and_decode)
    kafka, writer = kafka_with([quiet(0, 4), holds(5, 5), quiet(6, 9), quiet(0, 0, partition=1)]), ListWriter()
    loop = open_loop(kafka, writer)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    assert opened == [5]
    assert loop.status().partitions[0].applied == 9


def test_a_step_reports_events_actions_and_their_latency_once() -> None:
    kafka, writer, clock = (
        kafka_with([quiet(0, 3), holds(4, 5), holds(2, 6), quiet(5, 8)]),
        ListWriter(),
        HandClock(2.0),
    )
    loop = open_loop(kafka, writer, clock)
    loop.assign([0])
    writer.failing = {0}
    assert loop.step(0).events == 0
    writer.failing = set()
    clock.now_s = 3.0
    done = loop.step(0)
    assert (done.events, done.actions, done.dead_letters) == (9, 3, 0)
    np.testing.assert_array_equal(done.append_to_acted_ms, [2_000.0] * 9)
    np.testing.assert_array_equal(done.logged_to_acted_ms, [1_500.0] * 9)
    assert loop.step(0).events == 0


def test_what_is_read_again_after_a_failure_is_not_counted_again() -> None:
    kafka, writer, clock = kafka_with([holds(0, 1), quiet(0, 0, partition=1)]), ListWriter(), HandClock(100.0)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    done = [loop.step(0)]
    append(kafka, holds(2, 3))
    done.append(loop.step(0))  # not committed yet, so a failure leads back to here
    append(kafka, holds(4, 4))
    writer.failing = {0}
    done.append(loop.step(0))
    writer.failing = set()
    clock.now_s += 1
    done.append(loop.step(0))
    assert writer.keys == keys(0, 1, 2, 3, 2, 3, 4)
    assert [each.events for each in done] == [3, 2, 0, 1]
    assert [each.actions for each in done] == [2, 2, 0, 1]


def test_a_failing_sink_is_retried_later_and_later_and_goes_on_when_it_is_back() -> None:
    kafka, writer, clock = kafka_with([holds(0, 1)]), ListWriter(), HandClock(100.0)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0])
    writer.failing = {0}
    for retries in range(1, 8):
        loop.step(0)
        status = loop.status().partitions[0]
        assert (status.retries, status.error, status.applied) == (retries, "the sink is away", None)
        clock.now_s += 0.1 * 2 ** (retries - 1) * 0.499
        loop.step(0)
        assert loop.status().partitions[0].retries == retries
        clock.now_s += 0.1 * 2 ** (retries - 1)
    writer.failing = set()
    loop.step(0)
    status = loop.status().partitions[0]
    assert (status.retries, status.error, status.applied) == (0, None, 1)
    assert writer.keys == keys(0, 1)


def test_frames_that_are_missing_stop_their_partition_alone_and_after_all_that_stands_before() -> None:
    kafka, writer = kafka_with([holds(0, 1), holds(3, 4), holds(0, 0, partition=1)]), ListWriter()
    loop = open_loop(kafka, writer)
    loop.assign([0, 1])
    for _ in range(30):
        loop.step(0)
    assert sorted(writer.keys) == sorted(keys(0, 1) + keys(0, partition=1))
    assert "payments[0]: offsets 2..2 are in no frame" in str(loop.status().partitions[0].error)
    assert loop.status().partitions[1].error is None


def test_a_log_of_another_pipeline_is_refused() -> None:
    kafka, writer = kafka_with([]), ListWriter()
    header, value = holds(0, 1, partition=1).encode()
    kafka.append(DECISIONS, 0, value, headers=[header])
    loop = open_loop(kafka, writer)
    loop.assign([0])
    loop.step(0)
    assert "has a frame of 'fraud', partition 1" in str(loop.status().partitions[0].error)
    assert not writer.keys


def test_a_record_that_is_no_frame_is_refused() -> None:
    kafka, writer = kafka_with([]), ListWriter()
    kafka.append(DECISIONS, 0, b"?")
    loop = open_loop(kafka, writer)
    loop.assign([0])
    loop.step(0)
    assert "no 'headrace' header" in str(loop.status().partitions[0].error)


def test_a_cursor_beyond_the_end_of_the_log_is_refused_with_the_remedy() -> None:
    kafka, writer = kafka_with([holds(0, 1)]), ListWriter()
    kafka.groups["fraud.list"][TopicPartition(DECISIONS, 0)] = CommittedOffset(5, '{"applied":9}')
    loop = open_loop(kafka, writer)
    loop.assign([0])
    loop.step(0)
    assert "the log was made anew; remove the sink's cursor" in str(loop.status().partitions[0].error)


def test_an_offset_that_was_committed_by_hand_is_where_the_sink_goes_on() -> None:
    kafka, writer = kafka_with([holds(0, 1), holds(2, 3), holds(4, 5), quiet(0, 0, partition=1)]), ListWriter()
    kafka.groups["fraud.list"][TopicPartition(DECISIONS, 0)] = CommittedOffset(2, "")
    loop = open_loop(kafka, writer)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    assert writer.keys == keys(4, 5)


def test_a_broker_that_is_away_raises_nothing_and_stands_in_the_status() -> None:
    kafka, writer = kafka_with([holds(0, 1), quiet(0, 0, partition=1)]), ListWriter()
    loop = open_loop(kafka, writer, consumer=RefusedConsumer)
    loop.assign([0, 1])
    kafka.away = True
    loop.step(0)
    assert loop.status().error == "the broker is away"
    kafka.away = False
    catch_up(kafka, loop)
    append(kafka, holds(2, 2))
    kafka.away = True
    loop.step(0)
    assert loop.status().partitions[0].retries == 1
    kafka.away = False
    catch_up(kafka, loop)
    assert writer.keys == keys(0, 1, 2)
    assert loop.status().error is None


class LostConsumer(MemoryConsumer):
    """The first that is opened loses its broker for good, at its first request or later on; others do not."""

    opened = 0
    lost_from = 0.0

    def __init__(self, kafka: MemoryKafka, group: str) -> None:
        super().__init__(kafka, group)
        LostConsumer.opened += 1
        self._is_first = LostConsumer.opened == 1

    def _check(self) -> None:
        if self._is_first and self.kafka.clock.now_ms >= self.lost_from:
            raise BrokerError("timed out")

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        lost = self._is_first and self.kafka.clock.now_ms >= self.lost_from
        return [] if lost else super().poll(max_records, timeout_ms)

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        self._check()
        return super().committed(partitions)

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        self._check()
        return super().end_offsets(partitions)


@pytest.mark.parametrize("lost_from_s", [0, 5])
def test_a_client_that_does_not_find_its_broker_again_is_replaced(
    monkeypatch: pytest.MonkeyPatch, lost_from_s: float
) -> None:
    kafka, writer, clock = kafka_with([holds(0, 1)]), ListWriter(), HandClock(0.0)
    monkeypatch.setattr(LostConsumer, "opened", 0)
    monkeypatch.setattr(LostConsumer, "lost_from", lost_from_s * 1000)
    loop = open_loop(kafka, writer, clock, consumer=LostConsumer)
    loop.assign([0])
    for second in range(60):
        clock.now_s, kafka.clock.now_ms = second, second * 1000
        if second == 20:
            append(kafka, holds(2, 3))
        loop.step(0)
    assert LostConsumer.opened == 2
    assert writer.keys == keys(0, 1, 2, 3)


def test_the_lag_is_in_records_of_the_decision_log() -> None:
    kafka, writer, clock = kafka_with([holds(0, 1), holds(2, 3)]), ListWriter(), HandClock(100.0)
    writer.failing = {0}
    loop = open_loop(kafka, writer, clock)
    loop.assign([0])
    loop.step(0)
    assert loop.status().partitions[0].lag == 2
    writer.failing = set()
    clock.now_s += 10
    loop.step(0)
    assert loop.status().partitions[0].lag == 0


def test_an_assignment_from_another_thread_wakes_a_step_that_waits() -> None:
    kafka, writer = kafka_with([holds(0, 1)]), ListWriter()
    loop = open_loop(kafka, writer, HandClock(100.0))
    waiting = threading.Thread(target=loop.step, args=[60_000])
    waiting.start()
    loop.assign([0])
    waiting.join(30)
    assert not waiting.is_alive()
    loop.step(0)
    assert writer.keys == keys(0, 1)


def test_what_is_closed_has_told_the_group_where_it_stands() -> None:
    kafka, writer, clock = kafka_with([quiet(0, 3)]), ListWriter(), HandClock(100.0)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0])
    loop.step(0)
    append(kafka, quiet(4, 5))
    loop.step(0)
    loop.close()
    assert committed(kafka, "fraud.list", 0) == 2
    assert writer.closed


def test_a_partition_that_is_fenced_is_dropped_until_it_is_assigned_again() -> None:
    kafka, writer, clock = kafka_with([holds(0, 1), holds(0, 0, partition=1)]), ListWriter(), HandClock(100.0)
    loop = open_loop(kafka, writer, clock)
    loop.assign([0, 1])
    writer.fenced = {0}
    loop.step(0)
    writer.fenced = set()
    append(kafka, holds(1, 1, partition=1))
    for _ in range(5):
        clock.now_s += 1_000
        loop.step(0)
    assert writer.keys == keys(0, 1, partition=1)
    assert loop.status().partitions[0].error == "another worker has taken over"
    loop.assign([0, 1])
    catch_up(kafka, loop)
    assert writer.keys == [*keys(0, 1, partition=1), *keys(0, 1)]


def test_a_partition_that_goes_is_released_by_the_writer() -> None:
    kafka, writer = kafka_with([holds(0, 1)]), ListWriter()
    loop = open_loop(kafka, writer)
    loop.assign([0, 1])
    loop.step(0)
    loop.assign([1])
    loop.step(0)
    assert writer.released == [0]

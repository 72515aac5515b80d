"""Publish, and the copy of rejected records: each effect once, in order, whenever the worker dies."""

import threading
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.loop import SinkLoop
from app.actions.message import action_message, reject_message
from app.actions.publish import Publisher
from app.actions.selection import EveryDecision, EveryReject, OneAction, Selection
from app.sources import CommittedOffset, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer, Stored
from tests.unit.actions.crashes import Clock, append, catch_up, kafka_with, run_over_crashes
from tests.unit.actions.decision_log import (
    DECISIONS,
    LATE_EVENTS,
    LETTERS,
    PIPELINE,
    Hold,
    Row,
    Written,
    decision_logs,
    effects_of,
)

CRASHES = st.lists(st.integers(0, 60), max_size=6)


def open_publisher(
    kafka: MemoryKafka,
    topic: str = "holds",
    selection: Selection[Any] | None = None,
    message: Any = action_message,
    clock: Any = None,
) -> SinkLoop[Any]:
    return SinkLoop(
        pipeline=PIPELINE,
        sink=topic,
        log_topic=DECISIONS,
        consumer=MemoryConsumer(kafka, f"{PIPELINE}.{topic}"),
        selection=selection or OneAction(PIPELINE, Hold, "card"),
        writer=Publisher(topic, topic, message, lambda: MemoryConsumer(kafka, None), lambda: MemoryProducer(kafka)),
        halt=threading.Event(),
        clock=clock or Clock(),
    )


def key_of(stored: Stored) -> str:
    return str((dict(stored.headers)["idempotency-key"] or b"").decode())


def published(kafka: MemoryKafka, topic: str) -> dict[int, list[tuple[str, Stored]]]:
    found: dict[int, list[tuple[str, Stored]]] = {}
    for _, stored in kafka.records(topic):
        source = int(dict(stored.headers)["source-partition"] or b"")
        found.setdefault(source, []).append((key_of(stored), stored))
    return found


@settings(deadline=None)
@given(
    frames=decision_logs(),
    crashes=CRASHES,
    targets=st.sampled_from([1, 2, 3]),
    tick_s=st.sampled_from([0.001, 0.2]),
    frames_of_a_step=st.sampled_from([1, 3, 100]),
)
def test_each_hold_is_published_once_and_in_order_whenever_the_worker_dies(
    frames: list[Written], crashes: list[int], targets: int, tick_s: float, frames_of_a_step: int
) -> None:
    kafka = kafka_with(frames)
    kafka.create("holds", targets)
    with patch("app.actions.loop.FRAMES_OF_A_STEP", frames_of_a_step):
        run_over_crashes(kafka, lambda: open_publisher(kafka, clock=Clock(tick_s)), crashes)
    expected = {
        partition: [
            (key, row.card.encode(), {"type": "Hold", "payment": row.payment, "risk": row.risk}) for key, row in holds
        ]
        for partition, holds in effects_of(frames).holds.items()
        if holds
    }
    assert {
        partition: [(key, stored.key, msgspec.json.decode(stored.value or b"")) for key, stored in records]
        for partition, records in published(kafka, "holds").items()
    } == expected


@settings(deadline=None)
@given(frames=decision_logs(), crashes=CRASHES)
def test_each_decision_is_published_once(frames: list[Written], crashes: list[int]) -> None:
    kafka = kafka_with(frames)
    kafka.create("scores", 2)
    run_over_crashes(kafka, lambda: open_publisher(kafka, "scores", EveryDecision(PIPELINE, None)), crashes)
    values = {
        partition: [(key, stored.key, msgspec.json.decode(stored.value or b"")) for key, stored in records]
        for partition, records in published(kafka, "scores").items()
    }
    assert values == {
        partition: [
            (
                key,
                None,
                {"type": "Decision", "id": row.payment, "time": row.offset * 10, "risk": row.risk, "reason": "model"},
            )
            for key, row in decisions
        ]
        for partition, decisions in effects_of(frames).decisions.items()
    }


@pytest.mark.parametrize("late", [False, True])
@settings(deadline=None)
@given(frames=decision_logs(), crashes=CRASHES)
def test_each_rejected_and_each_late_record_is_copied_once_to_its_own_topic_with_its_bytes_and_reason(
    late: bool, frames: list[Written], crashes: list[int]
) -> None:
    kafka, topic = kafka_with(frames), LATE_EVENTS if late else LETTERS
    selection = EveryReject(PIPELINE, late=late)
    run_over_crashes(kafka, lambda: open_publisher(kafka, topic, selection, reject_message), crashes)
    copies = {
        partition: [(key, stored.value, dict(stored.headers)["reason"]) for key, stored in records]
        for partition, records in published(kafka, topic).items()
    }
    wanted = effects_of(frames).late if late else effects_of(frames).rejects
    assert copies == {
        partition: [(key, b"{", f"broken {row.risk}".encode()) for key, row in rejects]
        for partition, rejects in wanted.items()
    }


def holds(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1)))


def test_records_say_whose_they_are_and_where_their_event_stands() -> None:
    kafka = kafka_with([holds(4, 4, partition=1)])
    kafka.create("holds", 2)
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    [(partition, stored)] = kafka.records("holds")
    assert (partition, dict(stored.headers)) == (
        1,
        {
            "idempotency-key": b"fraud/1/4/0",
            "sink": b"holds",
            "source-topic": b"payments",
            "source-partition": b"1",
            "source-offset": b"4",
        },
    )


def test_two_sinks_that_share_a_topic_do_not_take_each_others_records_for_their_own() -> None:
    kafka = kafka_with([holds(0, 3)])
    kafka.create("shared", 1)
    for sink in ("one", "two"):
        loop = SinkLoop[Any](
            pipeline=PIPELINE,
            sink=sink,
            log_topic=DECISIONS,
            consumer=MemoryConsumer(kafka, f"{PIPELINE}.{sink}"),
            selection=OneAction(PIPELINE, Hold, None),
            writer=Publisher(
                sink, "shared", action_message, lambda: MemoryConsumer(kafka, None), lambda: MemoryProducer(kafka)
            ),
            halt=threading.Event(),
            clock=Clock(),
        )
        run_over_crashes(kafka, lambda loop=loop: loop, [])  # type: ignore[misc]
    assert len(kafka.records("shared")) == 8


def test_a_send_that_is_not_acknowledged_in_time_is_waited_for_and_not_repeated() -> None:
    kafka = kafka_with([holds(0, 9)])
    kafka.create("holds", 1)
    kafka.refuse_appends = 3
    loop = open_publisher(kafka)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    for producer in kafka.producers:
        producer.flush(0)  # what an abandoned one would still send
    assert [key_of(stored) for _, stored in kafka.records("holds")] == [f"fraud/0/{offset}/0" for offset in range(10)]


def test_a_topic_that_is_missing_is_an_error_in_the_status_until_it_is_there() -> None:
    kafka = kafka_with([holds(0, 1)])
    loop = open_publisher(kafka)
    loop.assign([0, 1])
    loop.step(0)
    assert "holds" in str(loop.status().partitions[0].error)
    kafka.create("holds", 1)
    catch_up(kafka, loop)
    assert len(kafka.records("holds")) == 2
    assert loop.status().partitions[0].error is None


def test_a_sink_without_a_cursor_finds_what_was_published_before_its_cursor_was_lost() -> None:
    kafka = kafka_with([holds(0, 4)])
    kafka.create("holds", 1)
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    kafka.groups.clear()
    append(kafka, holds(5, 6))
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    assert [key_of(stored) for _, stored in kafka.records("holds")] == [f"fraud/0/{offset}/0" for offset in range(7)]


def test_only_the_tail_of_the_target_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = kafka_with([holds(0, 4)])
    kafka.create("holds", 1)
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    append(kafka, holds(5, 6))
    starts = []
    assign = MemoryConsumer.assign
    monkeypatch.setattr(
        MemoryConsumer, "assign", lambda self, positions: (starts.append(dict(positions)), assign(self, positions))[1]
    )
    kafka.append("holds", 0, b"{}")
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    assert {TopicPartition("holds", 0): 5} in starts


@pytest.mark.parametrize("memo", ['{"applied":4}', '{"applied":4,"mark":[0,0]}', '{"applied":4,"mark":[0,5]}'])
def test_the_mark_moves_to_the_end_once_the_found_tail_is_passed(memo: str) -> None:
    kafka = kafka_with([holds(0, 4), holds(5, 6)])
    kafka.create("holds", 1)
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    place = TopicPartition(DECISIONS, 0)
    assert kafka.groups["fraud.holds"][place].metadata == '{"applied":6,"mark":[0,7]}'
    kafka.groups["fraud.holds"][place] = CommittedOffset(1, memo)
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    assert kafka.groups["fraud.holds"][place] == CommittedOffset(2, '{"applied":6,"mark":[0,7]}')
    assert len(kafka.records("holds")) == 7

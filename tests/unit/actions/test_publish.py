"""Publish, and the copy of rejected records: each effect once, in order, whenever the worker dies."""

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Delivery
from app.actions.kafka import Kafka
from app.actions.loop import SinkLoop
from app.actions.message import action_message, reject_message
from app.actions.position import Position
from app.actions.publish import Publisher
from app.actions.selection import EveryDecision, EveryReject, OneAction, Selection
from app.actions.unfinished import Trail
from app.actions.writer import Batch, Outcome
from app.errors import BrokerError
from app.sources import CommittedOffset, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer, MemoryTransactionalProducer, Open, Stored
from app.testing.process import InlineExecutor
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
from tests.unit.actions.test_loop import HandClock

CRASHES = st.lists(st.integers(0, 60), max_size=6)


def open_publisher(
    kafka: MemoryKafka,
    topic: str = "holds",
    selection: Selection[Any] | None = None,
    message: Any = None,
    clock: Any = None,
) -> SinkLoop[Any]:
    return SinkLoop(
        pipeline=PIPELINE,
        sink=topic,
        log_topic=DECISIONS,
        open_consumer=lambda: MemoryConsumer(kafka, f"{PIPELINE}.{topic}", read_uncommitted=True),
        selection=selection or OneAction(PIPELINE, Hold, "card"),
        writer=open_writer(kafka, topic, topic, message, clock),
        halt=threading.Event(),
        clock=clock or Clock(),
    )


def reach(kafka: MemoryKafka) -> Kafka:
    return Kafka(
        decisions=DECISIONS,
        dead_letters=LETTERS,
        late=LATE_EVENTS,
        open_consumer=partial(MemoryConsumer, kafka),
        open_producer=lambda: MemoryProducer(kafka),
        open_transactional_producer=partial(MemoryTransactionalProducer, kafka),
    )


def open_writer(
    kafka: MemoryKafka,
    sink: str,
    topic: str,
    message: Any = None,
    clock: Any = None,
    ahead: bool = False,
    threads: Executor | None = None,
) -> Publisher[Any]:
    return Publisher(
        pipeline=PIPELINE,
        sink=sink,
        topic=topic,
        message=message or partial(action_message, sink),
        kafka=reach(kafka),
        ahead=ahead,
        threads=threads or InlineExecutor(),
        clock=clock or Clock(),
    )


def key_of(stored: Stored) -> str:
    return str((dict(stored.headers)["idempotency-key"] or b"").decode())


def published(kafka: MemoryKafka, topic: str) -> dict[int, list[tuple[str, Stored]]]:
    found: dict[int, list[tuple[str, Stored]]] = {}
    for _, stored in kafka.records(topic):
        key = key_of(stored)
        found.setdefault(int(key.split("/")[1]), []).append((key, stored))
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
    message = partial(reject_message, topic)
    run_over_crashes(kafka, lambda: open_publisher(kafka, topic, selection, message), crashes)
    copies = {
        partition: [(key, stored.value, dict(stored.headers)["reason"]) for key, stored in records]
        for partition, records in published(kafka, topic).items()
    }
    wanted = effects_of(frames).late if late else effects_of(frames).rejects
    assert copies == {
        partition: [(key, b"{", f"broken {row.risk}".encode()) for key, row in rejects]
        for partition, rejects in wanted.items()
    }


def keys(*offsets: int) -> list[str]:
    return [f"fraud/0/{offset}/0" for offset in offsets]


def quiet(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided") for offset in range(first, last + 1)))


def holds(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1)))


def test_records_say_whose_they_are_and_by_their_key_where_their_event_stands() -> None:
    kafka = kafka_with([holds(4, 4, partition=1)])
    kafka.create("holds", 2)
    run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    [(partition, stored)] = kafka.records("holds")
    assert (partition, list(stored.headers)) == (1, [("idempotency-key", b"fraud/1/4/0"), ("sink", b"holds")])


def test_two_sinks_that_share_a_topic_do_not_fence_each_other() -> None:
    kafka = kafka_with([holds(0, 3)])
    kafka.create("shared", 1)
    for sink in ("one", "two"):
        loop = SinkLoop[Any](
            pipeline=PIPELINE,
            sink=sink,
            log_topic=DECISIONS,
            open_consumer=partial(MemoryConsumer, kafka, f"{PIPELINE}.{sink}"),
            selection=OneAction(PIPELINE, Hold, None),
            writer=open_writer(kafka, sink, "shared"),
            halt=threading.Event(),
            clock=Clock(),
        )
        run_over_crashes(kafka, lambda loop=loop: loop, [])  # type: ignore[misc]
    assert len(kafka.records("shared")) == 8


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


@settings(deadline=None)
@given(
    frames=decision_logs(),
    stop_at=st.integers(1, 40),
    later=st.lists(st.integers(0, 60), max_size=2),
    handed_back=st.booleans(),
)
def test_a_worker_that_was_thought_dead_comes_back_at_any_point_and_changes_nothing(
    frames: list[Written], stop_at: int, later: list[int], handed_back: bool
) -> None:
    """Within one of the operations of the first worker, others do all of the work, some of them dying of it."""
    kafka = kafka_with(frames)
    kafka.create("holds", 2)

    def take_over(operation: int) -> None:
        if operation == stop_at:
            kafka.at_operation = None
            run_over_crashes(kafka, lambda: open_publisher(kafka), later)
            kafka.operations_left = None

    kafka.at_operation = take_over
    zombie = open_publisher(kafka)
    zombie.assign([0, 1])
    for _ in range(60):
        zombie.step(0)
        if handed_back:
            zombie.assign([0, 1])
    zombie.close()
    if kafka.at_operation is not None or handed_back:
        kafka.at_operation = None
        run_over_crashes(kafka, lambda: open_publisher(kafka), [])
    found = {partition: [key for key, _ in records] for partition, records in published(kafka, "holds").items()}
    assert found == {
        partition: [key for key, _ in holds] for partition, holds in effects_of(frames).holds.items() if holds
    }


def test_two_workers_that_both_hold_a_partition_take_turns_and_repeat_nothing() -> None:
    kafka = kafka_with([])
    kafka.create("holds", 1)
    loops = [open_publisher(kafka) for _ in range(2)]
    for number in range(30):
        append(kafka, holds(number, number))
        for loop in loops:
            loop.assign([0])
            loop.step(0)
    loops[1].assign([])
    loops[1].step(0)
    for _ in range(20):
        loops[0].assign([0])
        loops[0].step(0)
    assert [key_of(stored) for _, stored in kafka.records("holds")] == keys(*range(30))


def test_a_fenced_worker_says_so_and_drops_the_partition() -> None:
    kafka = kafka_with([holds(0, 1)])
    kafka.create("holds", 1)
    old, new = open_publisher(kafka), open_publisher(kafka)
    old.assign([0])
    old.step(0)
    new.assign([0])
    new.step(0)
    append(kafka, holds(2, 3))
    new.step(0)
    for _ in range(10):
        old.step(0)
    assert old.status().partitions[0].error == "another producer has taken over"
    assert [key_of(stored) for _, stored in kafka.records("holds")] == keys(0, 1, 2, 3)


def test_a_producer_is_opened_with_the_first_delivery_and_no_sooner() -> None:
    kafka = kafka_with([holds(0, 1), quiet(0, 1, partition=1)])
    kafka.create("holds", 2)
    loop = open_publisher(kafka)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    for _ in range(10):
        loop.step(0)
    loop.close()
    assert kafka.opened == ["fraud.holds/0"]


@pytest.mark.parametrize("left", ["closed", "reassigned"])
def test_a_partition_that_leaves_is_not_read_again(left: str) -> None:
    kafka = kafka_with([holds(0, 1), holds(0, 0, partition=1)])
    kafka.create("holds", 2)
    loop, place = open_publisher(kafka), TopicPartition(DECISIONS, 0)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    append(kafka, quiet(2, 5))
    catch_up(kafka, loop)
    assert kafka.groups["fraud.holds"][place].offset == 1
    if left == "closed":
        loop.close()
    else:
        loop.assign([1])
        loop.step(0)
    assert kafka.groups["fraud.holds"][place] == CommittedOffset(2, '{"applied":5}')


def test_ahead_a_producer_is_opened_as_soon_as_its_partition_is_resumed() -> None:
    kafka = kafka_with([])
    kafka.create("holds", 2)
    writer = open_writer(kafka, "holds", "holds", ahead=True)
    writer.resume({0: None, 1: Position(7, 8)})
    assert kafka.opened == ["fraud.holds/0", "fraud.holds/1"]
    writer.resume({0: None, 1: Position(7, 8)})
    assert len(kafka.opened) == 2


def test_a_producer_that_is_being_opened_for_a_partition_that_is_let_go_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []
    close = MemoryTransactionalProducer.close
    monkeypatch.setattr(
        MemoryTransactionalProducer, "close", lambda self: (closed.append(self.transactional_id), close(self))
    )
    kafka, let_open = kafka_with([]), threading.Event()
    kafka.create("holds", 2)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(let_open.wait)
        writer = open_writer(kafka, "holds", "holds", ahead=True, threads=threads)
        writer.resume({0: None})
        writer.release(0)
        let_open.set()
    assert kafka.opened == closed == ["fraud.holds/0"]


def test_a_position_without_deliveries_is_stored_after_so_many_records_and_renewed_in_time() -> None:
    kafka, clock = kafka_with([holds(0, 0)]), HandClock(0.0)
    kafka.create("holds", 1)
    loop = open_publisher(kafka, clock=clock)
    loop.assign([0])
    place = TopicPartition(DECISIONS, 0)
    for offset, expected in ((0, 1), (1, 1), (999, 1), (1_000, 1_001)):
        while len(kafka.logs[place]) <= offset:
            at = len(kafka.logs[place])
            append(kafka, quiet(at, at))
        for _ in range(30):
            clock.now_s += 1
            loop.step(0)
        assert kafka.groups["fraud.holds"][place].offset == expected
    kafka.groups.clear()
    clock.now_s += 3_601
    loop.step(0)
    assert kafka.groups["fraud.holds"][place] == CommittedOffset(1_001, '{"applied":1000}')


@settings(deadline=None)
@given(frames=decision_logs(), crashes=CRASHES, frames_of_a_step=st.sampled_from([1, 100]), careful=st.integers(1, 3))
def test_what_the_broker_refuses_for_good_is_a_dead_letter_once_and_holds_up_nothing(
    frames: list[Written], crashes: list[int], frames_of_a_step: int, careful: int
) -> None:
    kafka = kafka_with(frames)
    kafka.create("holds", 2)
    kafka.most_value_bytes = 48  # of `{"type":"Hold","payment":"p8","risk":0.123456}`: a longer number is too large
    with (
        patch("app.actions.loop.FRAMES_OF_A_STEP", frames_of_a_step),
        patch("app.actions.publish.CAREFUL_DELIVERIES", careful),
    ):
        run_over_crashes(kafka, lambda: open_publisher(kafka, clock=Clock(0.01)), crashes)
    expected: dict[bool, dict[int, list[str]]] = {True: {}, False: {}}
    for partition, effects in effects_of(frames).holds.items():
        for key, row in effects:
            value = msgspec.json.encode({"type": "Hold", "payment": row.payment, "risk": row.risk})
            expected[len(value) <= 48].setdefault(partition, []).append(key)
    for topic, taken in (("holds", True), (LETTERS, False)):
        records = published(kafka, topic)
        assert {partition: [key for key, _ in of] for partition, of in records.items()} == expected[taken]
    for _, letter in kafka.records(LETTERS):
        assert dict(letter.headers)["reason"] == b"the record is too large"


def test_a_dead_letter_that_is_refused_too_is_tried_again_later_and_not_at_once() -> None:
    kafka, clock = kafka_with([holds(0, 1)]), HandClock(100.0)
    kafka.create("holds", 1)
    kafka.most_value_bytes, kafka.letters_may_be_larger = 0, False
    loop = open_publisher(kafka, clock=clock)
    loop.assign([0])
    for _ in range(20):
        loop.step(0)
    status = loop.status().partitions[0]
    assert (status.error, status.retries, status.applied) == ("the record is too large", 1, None)
    assert len(kafka.opened) == 4  # all at once, each of the two alone, and both as dead letters


def test_a_transaction_that_fails_is_tried_again_with_a_new_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka, commit = kafka_with([holds(0, 9)]), MemoryTransactionalProducer.commit

    def commit_the_second(self: MemoryTransactionalProducer, *arguments: Any) -> None:
        if self.epoch == 1:
            raise BrokerError("the broker is away")
        commit(self, *arguments)

    monkeypatch.setattr(MemoryTransactionalProducer, "commit", commit_the_second)
    kafka.create("holds", 1)
    loop = open_publisher(kafka)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    assert [key_of(stored) for _, stored in kafka.records("holds")] == keys(*range(10))
    assert kafka.opened == ["fraud.holds/0"] * 2


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize(
    ("target", "group"),
    [
        ("seen", "new"),
        ("seen", "pending"),
        ("hidden", "new"),
        ("hidden", "old"),
        ("hidden", "pending"),
        ("absent", "old"),
        ("absent", "pending"),
    ],
)
def test_a_transaction_that_kafka_does_not_finish_takes_effect_once_whatever_is_left_of_it(
    target: str, group: str, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are committed, open or not there; the group has its offsets, has them pending, or not. The worker
    dies of it, or does not."""
    place = TopicPartition("holds", 0)
    kafka = kafka_with([holds(0, 3), holds(90, 91, partition=1)])
    kafka.create("holds", 1)

    def leave_it(self: MemoryTransactionalProducer, name: str, offsets: dict[TopicPartition, CommittedOffset]) -> None:
        end = len(kafka.logs[place])
        if target != "absent":
            for topic_partition, value, key, headers in self.pending:
                kafka.append(*topic_partition, value, key, headers)
        if target == "hidden":
            kafka.open[place] = Open(self.transactional_id, end)
        if group == "new":
            kafka.groups[name].update(offsets)
        if group == "pending":
            kafka.unfinished.add(name)
        monkeypatch.undo()
        raise BrokerError("the broker is away")

    loop = open_publisher(kafka)
    loop.assign([0, 1])
    catch_up(kafka, loop)
    append(kafka, holds(4, 5))
    monkeypatch.setattr(MemoryTransactionalProducer, "commit", leave_it)
    loop.step(0)
    assert len(kafka.records("holds")) == (8 if target == "seen" else 6)
    if not survives:
        loop = open_publisher(kafka)
        loop.assign([0, 1])
    catch_up(kafka, loop)
    append(kafka, holds(6, 6))
    catch_up(kafka, loop)
    seen = [key_of(stored) for _, stored in kafka.records("holds")]
    assert [key for key in seen if key.startswith("fraud/0/")] == keys(*range(7))
    assert len(seen) == 9


def test_a_trail_is_that_of_one_sink_and_one_source_partition() -> None:
    kafka = kafka_with([holds(0, 9)])
    kafka.create("shared", 1)
    for key, sink in (
        (b"fraud/0/3/0", b"holds"),
        (b"fraud/0/4/0", b"alerts"),
        (b"fraud/10/5/0", b"holds"),
        (b"fraud-2/0/6/0", b"holds"),
        (b"fraud/0/7/1", b"holds"),
    ):
        kafka.append("shared", 0, b"{}", None, [("idempotency-key", key), ("sink", sink)])
    kafka.append("shared", 0, b"somebody else's", None, [])
    trail = Trail(reach(kafka), "fraud", "holds", 0, TopicPartition("shared", 0))
    seen = trail.find_seen([], TopicPartition(DECISIONS, 0), 0)
    assert [(each.offset, each.source_offset) for each in seen] == [(0, 3), (4, 7)]


def test_while_its_producer_is_open_a_worker_believes_itself_and_not_what_the_group_had_a_moment_ago() -> None:
    """EndTxn answers before what it has committed can be seen."""
    kafka = kafka_with([])
    kafka.create("holds", 1)
    writer, start, end = open_writer(kafka, "holds", "holds"), Position(None, 0), Position(4, 1)
    assert writer.resume({0: None}) == {0: start}
    delivery = Delivery("fraud/0/4/0", "payments", 0, 4, 1_000, None, {"type": "Hold"})
    assert writer.write([Batch(0, start, end, [delivery])]) == [Outcome(end)]
    assert writer.resume({0: None}) == {0: end}
    writer.release(0)
    assert writer.resume({0: None}) == {0: start}

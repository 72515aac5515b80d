"""The loop of a stream worker, over logs in memory: crashes, hand-overs, failing models, back-pressure."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Action
from app.config import WorkerTuning
from app.errors import BrokerError, InferenceError, StoreError
from app.event import Columns, Event
from app.features import Features, count, total
from app.latency import StageLatency
from app.log.frame import REASONS, Cursor, decode_frame, decode_header
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from app.runtime.loop import LOG_PATIENCE_MS, RETURN_PATIENCE_MS, Parts, StreamLoop
from app.runtime.opener import TaskOpener
from app.runtime.silence import PATIENCE_MS
from app.runtime.task import TaskSettings
from app.sources import Records, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer
from app.testing.process import InlineExecutor
from tests.support.inline import InlineModels

GROUP = "fraud"
START_MS = 1_600_000_000_000
HOUR_MS = 3_600_000


class Payment(Event, frozen=True):
    card: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")
    spent = total("amount", last="1h")


class Hold(Action, frozen=True):
    payment: str


class RiskModel:
    inputs: ClassVar[tuple[str, ...]] = ("amount", "payments")
    outputs: ClassVar[tuple[str, ...]] = ("risk",)


def decide(payment: Payment, risk: float) -> Iterator[Action]:
    if payment.amount == 13:
        raise ValueError("unlucky")
    if risk > 50:
        yield Hold(payment.id)


def rules(payment: Payment, card: CardHistory) -> Iterator[Action]:
    if card.payments > 3:
        yield Hold(payment.id)


def pipeline(*, fallback: bool = False, features: type[Features] = CardHistory) -> Pipeline[Payment]:
    return Pipeline(
        source=Payment,
        features=[features],
        models={"risk": RiskModel},
        decide=decide,
        fallback=rules if fallback else None,
    )


def risk(columns: Columns) -> Columns:
    return {"risk": columns["amount"] * columns["payments"]}


class Store(CheckpointStore):
    """Checkpoints in a place that can be away, or full."""

    away = full = False
    tries = 0

    def save(self, checkpoint: Checkpoint) -> int:
        self.tries += 1
        if self.away or self.full:
            raise StoreError(f"checkpoint {checkpoint.position.offset} is not written: no space")
        return super().save(checkpoint)

    def load(self, topic: str, partition: int) -> Iterator[Checkpoint | CheckpointError]:
        if self.away:
            raise StoreError("the checkpoints cannot be listed: nobody there")
        return super().load(topic, partition)


class HangingExecutor(Executor):
    """Never done with what it begins, as with a store that accepts and does not answer."""

    def __init__(self) -> None:
        self.begun = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.begun += 1
        return Future()


class DeafConsumer(MemoryConsumer):
    """From some offset on it returns nothing, and says nothing, as a client of librdkafka was seen to."""

    def __init__(self, broker: MemoryKafka, deaf_from: int) -> None:
        super().__init__(broker, GROUP)
        self._deaf_from = deaf_from

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        deaf = any(position >= self._deaf_from for position in self.positions.values())
        return [] if deaf else super().poll(max_records, timeout_ms)


@dataclass
class World:
    """Everything that outlives a worker: the broker and the checkpoints."""

    folder: Path
    broker: MemoryKafka = field(default_factory=MemoryKafka)
    now_ms: float = 0.0
    deaf_from: list[int] = field(default_factory=list)
    readers: list[MemoryConsumer] = field(default_factory=list)

    def __post_init__(self) -> None:
        for topic in ("payments", "decisions"):
            self.broker.create(topic, 2)

    def open_source(self) -> MemoryConsumer:
        """Of these, each goes deaf at the next offset of `deaf_from`, while there are any."""
        deaf_from = self.deaf_from[len(self.readers) :]
        self.readers.append(
            DeafConsumer(self.broker, deaf_from[0]) if deaf_from else MemoryConsumer(self.broker, GROUP)
        )
        return self.readers[-1]

    def worker(
        self,
        *,
        predict: Any = risk,
        fallback: bool = False,
        max_batch: int = 100,
        checkpoint: str = "1ms",
        hold: bool = False,
        features: type[Features] = CardHistory,
        deduplicate_ms: int | None = 2 * HOUR_MS,
        saver: Executor | None = None,
    ) -> StreamLoop[Payment]:
        declared = pipeline(fallback=fallback, features=features)
        task_settings = TaskSettings("fraud", "payments", HOUR_MS, 10**12, deduplicate_ms)
        self.store = Store(str(self.folder), "fraud")
        opener = TaskOpener(declared, task_settings, "decisions", self.store, "earliest", MemoryConsumer(self.broker))
        self.models = InlineModels(predict)
        self.log = MemoryProducer(self.broker, hold=hold)
        parts = Parts(
            open_source=self.open_source,
            log=self.log,
            models=self.models,
            opener=opener,
            executor=InlineExecutor(),
            saver=saver or InlineExecutor(),
            now_ms=self._tick,
        )
        tuning = WorkerTuning.load({"max_batch": max_batch, "checkpoint_interval": checkpoint})
        return StreamLoop(declared, task_settings, "decisions", parts, tuning, StageLatency())

    def _tick(self) -> float:
        self.now_ms += 7
        return self.now_ms

    def pay(
        self, partition: int, card: str, amount: float, time_ms: int, key: str | None = None, event_id: str = ""
    ) -> None:
        self.append(
            partition,
            {"id": event_id or f"{len(self.payments(partition))}", "time": time_ms, "card": card, "amount": amount},
            key or card,
        )

    def append(self, partition: int, record: Any, key: str) -> None:
        value = record if isinstance(record, bytes) else json.dumps(record).encode()
        self.broker.append("payments", partition, value, key.encode())

    def payments(self, partition: int) -> list[Any]:
        return self.broker.logs[TopicPartition("payments", partition)]

    def outcomes(self, partition: int) -> dict[int, dict[str, Any]]:
        """What the decision log says of each source offset, read as every reader does: first copy wins, no gaps."""
        found: dict[int, dict[str, Any]] = {}
        cursor = Cursor(-1)
        for stored in self.broker.logs[TopicPartition("decisions", partition)]:
            header = decode_header(stored.headers)
            if not cursor.admit(header):
                continue
            frame = decode_frame(header, stored.value or b"")
            for row in range(*cursor.new_rows(frame).indices(len(frame.decided.offsets))):
                rows = frame.decided
                actions = rows.actions[row]
                assert int(rows.offsets[row]) not in found
                found[int(rows.offsets[row])] = {
                    "payments": rows.features["payments"][row],
                    "spent": rows.features["spent"][row],
                    "reason": REASONS[rows.reasons[row]],
                    "holds": 0 if actions is None else len(json.loads(actions)),
                }
            for dead in cursor.new_dead_letters(frame):
                assert dead.offset not in found
                found[dead.offset] = {"dead": dead.reason, "value": dead.value}
            for offset in cursor.new_duplicates(frame):
                assert offset not in found
                found[offset] = {"duplicate": True}
            cursor.advance(header)
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(loop: StreamLoop[Payment], world: World, partitions: int = 1) -> None:
    """Steps until everything is decided and logged."""
    loop.give(range(partitions))
    for _ in range(10_000):
        loop.step()
        done = {row["partition"]: row["offset"] for row in loop.standing()}
        if all(done.get(each) == len(world.payments(each)) for each in range(partitions)):
            return
    raise AssertionError(f"not done: {loop.standing()}, {loop.last_error}")


def oracle(payments: list[tuple[str, float, int]]) -> list[tuple[int, float]]:
    """Count and total of the card's payments of the last hour, by definition."""
    answers = []
    for at, (card, _, time_ms) in enumerate(payments):
        seen = [
            amount
            for other, amount, then_ms in payments[: at + 1]
            if other == card and time_ms - HOUR_MS < then_ms <= time_ms
        ]
        answers.append((len(seen), sum(seen)))
    return answers


def test_every_event_is_decided_with_its_features(world: World) -> None:
    payments = [(f"c{at % 3}", float(at), START_MS + at * 60_000) for at in range(100)]
    for payment in payments:
        world.pay(0, *payment)
    run(world.worker(), world)
    found = world.outcomes(0)
    assert [(found[at]["payments"], found[at]["spent"]) for at in range(100) if at != 13] == [
        answer for at, answer in enumerate(oracle(payments)) if at != 13
    ]
    assert {each.get("reason") for at, each in found.items() if at != 13} == {"model"}


def test_broken_late_and_failing_records_become_dead_letters_and_the_others_go_on(world: World) -> None:
    world.pay(0, "c", 1, START_MS)
    world.append(0, b"{broken", "c")
    world.pay(0, "c", 2, START_MS + 3 * HOUR_MS)
    world.pay(0, "c", 3, START_MS + HOUR_MS)
    world.pay(0, "c", 13, START_MS + 3 * HOUR_MS)
    world.pay(0, "c", 4, START_MS + 3 * HOUR_MS, key="d")
    world.pay(0, "c", 5, START_MS + 3 * HOUR_MS)
    run(world.worker(), world)
    found = world.outcomes(0)
    assert "malformed" in found[1]["dead"]
    assert found[1]["value"] == b"{broken"
    assert found[3]["dead"].startswith("late")
    assert found[4]["dead"] == "decide raised ValueError: unlucky"
    assert found[4]["value"] == world.payments(0)[4].value
    assert "keyed by" in found[5]["dead"]
    assert [at for at, each in found.items() if "dead" not in each] == [0, 2, 6]
    assert found[6]["payments"] == 3  # 2, 13 and 5: an event that decide fails on has happened all the same


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_crashes_at_any_step_change_nothing(data: st.DataObject) -> None:
    payments = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b"]),
                st.sampled_from([1.0, 2.5, 13.0, 40.0]),
                st.integers(0, 90).map(lambda minute: START_MS + minute * 60_000),
                st.sampled_from(["", "", "", "copied", "copied too"]),
            ),
            min_size=1,
            max_size=40,
        )
    )
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        for card, amount, time_ms, event_id in payments:
            world.pay(0, card, amount, time_ms, event_id=event_id)
        for _ in range(data.draw(st.integers(0, 4), label="crashes")):
            doomed = world.worker(
                max_batch=data.draw(st.integers(1, 7)),
                checkpoint=data.draw(st.sampled_from(["1ms", "20ms", "1h"])),
                hold=True,
            )
            doomed.give([0])
            for _ in range(data.draw(st.integers(0, 12), label="steps")):
                doomed.step()
                if data.draw(st.booleans(), label="deliver"):
                    world.log.flush(0)
        run(world.worker(max_batch=data.draw(st.integers(1, 7))), world)
        found = world.outcomes(0)
        late, copies = _late_and_copies(payments)
        assert sorted(found) == list(range(len(payments)))
        kept = [payment[:3] for at, payment in enumerate(payments) if at not in late | copies]
        answers = iter(oracle(kept))
        for at, (_, amount, _, _) in enumerate(payments):
            if at in late:
                assert found[at]["dead"].startswith("late")
                continue
            if at in copies:
                assert found[at] == {"duplicate": True}
                continue
            answer = next(answers)
            if amount == 13:
                assert "unlucky" in found[at]["dead"]
            else:
                assert (found[at]["payments"], found[at]["spent"]) == answer


def _late_and_copies(payments: list[tuple[str, float, int, str]]) -> tuple[set[int], set[int]]:
    """All lie within two hours, so that no id is forgotten."""
    late, copies, highest = set(), set(), 0
    seen: set[str] = set()
    for at, (_, _, time_ms, event_id) in enumerate(payments):
        if event_id in seen:
            copies.add(at)
        elif time_ms < highest - HOUR_MS:
            late.add(at)
        elif event_id:
            seen.add(event_id)
        highest = max(highest, time_ms)
    return late, copies


def test_every_event_is_a_decision_or_a_dead_letter_and_copies_are_counted_for_themselves(world: World) -> None:
    world.pay(0, "c", 1, START_MS + 2 * HOUR_MS, event_id="a")
    world.append(0, b"{broken", "c")
    world.pay(0, "c", 1, START_MS, event_id="b")
    world.pay(0, "c", 13, START_MS + 2 * HOUR_MS, event_id="c")
    for event_id in ("a", "a", "c"):
        world.pay(0, "c", 1, START_MS + 2 * HOUR_MS, event_id=event_id)
    loop = world.worker(max_batch=3)
    run(loop, world)
    totals = loop.totals
    assert (totals.decisions, totals.dead_letters, totals.late, totals.duplicates) == (1, 3, 1, 3)
    assert totals.events == totals.decisions + totals.dead_letters


def test_a_copy_of_an_event_from_before_a_restart_is_a_duplicate(world: World) -> None:
    world.pay(0, "c", 1, START_MS, event_id="a")
    loop = world.worker(checkpoint="1h")
    run(loop, world)
    loop.drain()
    world.pay(0, "c", 1, START_MS, event_id="a")
    world.pay(0, "c", 1, START_MS, event_id="b")
    second = world.worker()
    run(second, world)
    assert (second.totals.events, second.totals.duplicates) == (1, 1)
    assert world.outcomes(0)[1] == {"duplicate": True}
    assert world.outcomes(0)[2]["payments"] == 2


def test_what_is_decided_already_calls_no_model_again(world: World) -> None:
    for at in range(50):
        world.pay(0, "c", 1, START_MS + at)
    run(world.worker(checkpoint="1h"), world)
    for at in range(50, 60):
        world.pay(0, "c", 1, START_MS + at)
    second = world.worker()
    run(second, world)
    assert world.models.rows_asked == 10
    assert world.outcomes(0)[59]["payments"] == 60


def test_a_model_that_fails_is_asked_again_in_order_when_there_is_no_fallback(world: World) -> None:
    failures = iter(range(5))

    def flaky(columns: Columns) -> Columns:
        if next(failures, None) is not None:
            raise InferenceError("away")
        return risk(columns)

    for at in range(20):
        world.pay(0, "c", 1, START_MS + at)
    run(world.worker(predict=flaky, max_batch=3), world)
    assert {each["reason"] for each in world.outcomes(0).values()} == {"model"}
    assert [each["payments"] for each in world.outcomes(0).values()] == list(range(1, 21))


def test_the_fallback_decides_when_the_model_fails_and_the_decision_says_so(world: World) -> None:
    def broken(columns: Columns) -> Columns:
        raise InferenceError("away")

    for at in range(5):
        world.pay(0, "c", 13, START_MS + at)
    run(world.worker(predict=broken, fallback=True), world)
    assert [each["reason"] for each in world.outcomes(0).values()] == ["fallback-failed"] * 5
    assert [each["holds"] for each in world.outcomes(0).values()] == [0, 0, 0, 1, 1]


def test_a_log_that_stands_still_though_the_broker_is_there_ends_the_loop_and_the_next_one_goes_on(
    world: World,
) -> None:
    world.pay(0, "c", 60.0, START_MS)
    stuck = world.worker(hold=True)
    stuck.give([0])
    take_steps(stuck)
    world.now_ms += LOG_PATIENCE_MS
    with pytest.raises(BrokerError, match="from offset 0 on are not acknowledged"):
        stuck.step()
    run(world.worker(), world)
    assert list(world.outcomes(0)) == [0]


def test_a_log_is_waited_for_that_has_nothing_to_do_or_moves_or_whose_broker_is_away(world: World) -> None:
    loop = world.worker(hold=True)
    loop.give([0])
    for _ in range(3):
        take_steps(loop)
        world.now_ms += LOG_PATIENCE_MS
        world.pay(0, "c", 60.0, START_MS)
        take_steps(loop)
        world.log.flush(0)
    world.pay(0, "c", 60.0, START_MS)
    take_steps(loop)
    world.log.last_error = BrokerError("out of reach")
    world.now_ms += LOG_PATIENCE_MS
    take_steps(loop)
    world.log.last_error = None
    world.now_ms += RETURN_PATIENCE_MS / 2
    take_steps(loop)
    world.log.flush(0)
    assert list(world.outcomes(0)) == [0, 1, 2, 3]


def test_a_log_that_does_not_move_on_when_its_broker_is_back_ends_the_loop_sooner(world: World) -> None:
    world.pay(0, "c", 60.0, START_MS)
    loop = world.worker(hold=True)
    loop.give([0])
    take_steps(loop)
    world.log.last_error = BrokerError("out of reach")
    take_steps(loop)
    world.log.last_error = None
    world.now_ms += 2 * RETURN_PATIENCE_MS
    with pytest.raises(BrokerError, match="though the broker is there"):
        loop.step()


def take_steps(loop: StreamLoop[Payment]) -> None:
    """Enough for a payment to get from the source to the log."""
    for _ in range(10):
        loop.step()


def test_no_more_is_read_than_may_be_in_flight(world: World) -> None:
    for at in range(100):
        world.pay(0, "c", 1, START_MS + at)

    def never(columns: Columns) -> Columns:
        raise InferenceError("away")

    loop = world.worker(predict=never, max_batch=10)
    loop.give([0])
    for _ in range(30):
        loop.step()
    assert loop.totals.events == 20  # two micro-batches in flight, and the log holds the rest


def test_a_partition_that_is_taken_away_is_handed_over_with_its_checkpoint(world: World) -> None:
    for at in range(30):
        world.pay(0, "c", 1, START_MS + at)
        world.pay(1, "d", 1, START_MS + at)
    first, second = world.worker(checkpoint="1h"), world.worker(checkpoint="1h")
    run(first, world, partitions=2)
    first.give([0])
    for _ in range(20):
        first.step()
    assert first.partitions == [0]
    second.give([1])
    second.step()
    second.step()
    assert [(row["partition"], row["offset"]) for row in second.standing()] == [(1, 30)]
    for at in range(30, 40):
        world.pay(1, "d", 1, START_MS + at)
    for _ in range(50):
        second.step()
    assert world.outcomes(1)[39]["payments"] == 40


def test_two_workers_on_one_partition_are_wasteful_not_wrong(world: World) -> None:
    for at in range(40):
        world.pay(0, f"c{at % 2}", 1, START_MS + at)
    one, other = world.worker(max_batch=3), world.worker(max_batch=5)
    one.give([0])
    other.give([0])
    for at in range(200):
        (one if at % 3 else other).step()
    assert [world.outcomes(0)[at]["payments"] for at in range(40)] == [at // 2 + 1 for at in range(40)]


def test_drain_leaves_a_checkpoint_at_the_very_end(world: World) -> None:
    for at in range(10):
        world.pay(0, "c", 1, START_MS + at)
    loop = world.worker(checkpoint="1h")
    run(loop, world)
    loop.drain()
    second = world.worker()
    second.give([0])
    second.step()
    assert second.standing()[0]["offset"] == 10
    assert second.totals.events == 0


def test_stages_follow_each_other_and_are_counted_once_per_event(world: World) -> None:
    for at in range(10):
        world.pay(0, "c", 1, START_MS + at)
    loop = world.worker()
    run(loop, world)
    counts = {stage: sum(each["counts"]) for stage, each in loop.latency.take().items()}
    assert counts == dict.fromkeys(("fetched", "features", "queued", "scored", "decided", "logged"), 10)


def test_an_unscored_pipeline_needs_no_model_and_no_key(tmp_path: Path) -> None:
    class Reading(Event, frozen=True):
        value: float

    world = World(tmp_path)
    world.broker.append("payments", 0, msgspec.json.encode({"id": "1", "time": START_MS, "value": 3.0}))
    declared = Pipeline(source=Reading)
    task_settings = TaskSettings("plain", "payments")
    opener = TaskOpener(
        declared,
        task_settings,
        "decisions",
        CheckpointStore(str(tmp_path), "plain"),
        "earliest",
        MemoryConsumer(world.broker),
    )
    parts = Parts(
        lambda: MemoryConsumer(world.broker, "plain"),
        MemoryProducer(world.broker),
        None,
        opener,
        InlineExecutor(),
        InlineExecutor(),
        world._tick,
    )
    loop = StreamLoop(declared, task_settings, "decisions", parts, WorkerTuning(), StageLatency())
    loop.give([0])
    for _ in range(10):
        loop.step()
    [stored] = world.broker.logs[TopicPartition("decisions", 0)]
    frame = decode_frame(decode_header(stored.headers), stored.value or b"")
    assert np.array_equal(frame.decided.event["value"], [3.0])
    assert REASONS[frame.decided.reasons[0]] == "rules"


def test_a_micro_batch_of_wide_events_is_logged_in_records_that_every_topic_takes(world: World) -> None:
    for number in range(40):
        world.append(
            0, {"id": f"{number}-" + "x" * 100_000, "time": START_MS, "card": "c", "amount": float(number)}, "c"
        )
    run(world.worker(), world)
    stored = world.broker.logs[TopicPartition("decisions", 0)]
    assert max(len(each.value or b"") for each in stored) < 1_000_000
    assert len(stored) > 4
    assert sorted(world.outcomes(0)) == list(range(40))


@pytest.mark.parametrize(("rows", "at_once"), [(9, False), (10, True)])
def test_the_loop_pauses_between_small_micro_batches_and_not_in_a_backlog(
    world: World, monkeypatch: pytest.MonkeyPatch, rows: int, at_once: bool
) -> None:
    monkeypatch.setattr(World, "_tick", lambda world: world.now_ms)
    loop = world.worker(max_batch=40)
    for number in range(rows):
        world.pay(0, "c", 1.0, START_MS + number)
    run(loop, world)
    world.pay(0, "c", 1.0, START_MS + rows)
    loop.step()
    assert (len(world.outcomes(0)) == rows + 1) is at_once
    world.now_ms += 50
    run(loop, world)


def steps(loop: StreamLoop[Payment], number: int) -> None:
    for _ in range(number):
        loop.step()


def pay_and_decide(world: World, loop: StreamLoop[Payment], payments: int = 1) -> None:
    for _ in range(payments):
        world.pay(0, "c", 1, START_MS + len(world.payments(0)))
    run(loop, world)


def test_a_store_that_is_full_delays_checkpoints_is_reported_and_stops_no_event(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    loop = world.worker()
    pay_and_decide(world, loop)
    steps(loop, 5)
    [good] = loop.standing()
    assert good["checkpoint_error"] is None
    assert good["checkpoint_bytes"] > 0
    assert good["checkpoint_age_ms"] < 200
    world.store.full = True
    pay_and_decide(world, loop, 40)
    steps(loop, 1_000)
    [bad] = loop.standing()
    assert bad["offset"] == 41
    assert bad["checkpoint_error"].startswith("checkpoint 41 is not written: no space")
    assert bad["checkpoint_age_ms"] > 7_000
    assert bad["checkpoint_bytes"] == good["checkpoint_bytes"]
    world.store.full = False
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        steps(loop, 10_000)
    [well] = loop.standing()
    assert (well["checkpoint_error"], well["checkpoint_age_ms"] < 200) == (None, True)
    assert "the checkpoint of partition 0 is written again, after" in caplog.text
    again = world.worker()
    again.give([0])
    steps(again, 3)
    assert again.standing()[0]["offset"] == 41
    assert again.totals.events == 0


def test_a_disk_that_is_full_delays_checkpoints_and_nothing_else(small_disk: Path) -> None:
    world = World(small_disk)
    loop = world.worker()
    pay_and_decide(world, loop)
    hog = small_disk / "hog"
    with suppress(OSError), hog.open("wb") as file:
        file.write(bytes(2_000_000))
    pay_and_decide(world, loop, 40)
    steps(loop, 100)
    [full] = loop.standing()
    assert (full["offset"], full["lag"]) == (41, 0)
    assert "No space left on device; make room there" in full["checkpoint_error"]
    hog.unlink()
    steps(loop, 10_000)
    assert loop.standing()[0]["checkpoint_error"] is None
    assert {path.suffix for path in small_disk.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    newest = next(world.store.load("payments", 0))
    assert isinstance(newest, Checkpoint)
    assert newest.position.offset == 41


def test_a_full_store_is_asked_less_and_less_often(world: World) -> None:
    loop = world.worker()
    pay_and_decide(world, loop)
    steps(loop, 5)
    world.store.full = True
    world.store.tries = 0
    pay_and_decide(world, loop)
    began_ms = world.now_ms
    while world.now_ms < began_ms + 300_000:
        loop.step()
    assert 8 <= world.store.tries <= 11  # after 0, 1, 3, 7, 15, 31, 63, 123, 183, 243 s


def test_a_store_that_never_answers_holds_up_no_event_no_lag_and_no_partition(world: World) -> None:
    saver = HangingExecutor()
    loop = world.worker(saver=saver)
    pay_and_decide(world, loop)
    steps(loop, 500)
    assert saver.begun == 1
    world.pay(0, "c", 1.0, START_MS + 1)
    world.pay(1, "d", 1.0, START_MS)
    run(loop, world, partitions=2)
    steps(loop, 500)
    assert [(row["offset"], row["end_offset"]) for row in loop.standing()] == [(2, 2), (1, 1)]


def test_nothing_to_write_is_no_old_checkpoint(world: World) -> None:
    loop = world.worker()
    pay_and_decide(world, loop)
    steps(loop, 5)
    world.now_ms += HOUR_MS
    loop.step()
    assert loop.standing()[0]["checkpoint_age_ms"] < 200


def test_a_partition_is_opened_when_its_store_is_back_and_until_then_the_worker_says_why(world: World) -> None:
    world.pay(0, "c", 1, START_MS)
    loop = world.worker()
    world.store.away = True
    loop.give([0])
    steps(loop, 2_000)
    assert (loop.standing(), loop.opening_error) == ([], "the checkpoints cannot be listed: nobody there")
    world.store.away = False
    steps(loop, 10_000)
    assert [row["offset"] for row in loop.standing()] == [1]
    assert loop.opening_error is None


def test_a_partition_that_is_given_to_another_worker_is_no_longer_complained_of(world: World) -> None:
    world.pay(0, "c", 1, START_MS)
    loop = world.worker()
    world.store.away = True
    loop.give([0])
    steps(loop, 3)
    loop.give([])
    steps(loop, 1)
    assert loop.opening_error is None


@pytest.mark.parametrize("leave", ["drain", "hand over"])
def test_a_full_store_holds_up_no_worker_that_leaves_and_the_next_one_replays(world: World, leave: str) -> None:
    loop = world.worker(checkpoint="1h")
    pay_and_decide(world, loop, 20)
    world.store.full = True
    if leave == "drain":
        loop.drain()
    else:
        loop.give([])
        steps(loop, 50)
        assert loop.partitions == []
    second = world.worker()
    pay_and_decide(world, second)
    assert world.models.rows_asked == 1
    assert world.outcomes(0)[20]["payments"] == 21


def test_changed_features_are_rebuilt_and_what_is_decided_calls_no_model_again(world: World) -> None:
    class CardLately(Features, of=Payment, by="card"):
        payments = count(last="10m")
        spent = total("amount", last="2h")

    payments = [(f"c{at % 2}", float(at), START_MS + at * 60_000) for at in range(60)]
    for payment in payments[:50]:
        world.pay(0, *payment)
    first = world.worker()
    run(first, world)
    first.drain()
    for payment in payments[50:]:
        world.pay(0, *payment)
    second = world.worker(features=CardLately)
    run(second, world)
    assert world.models.rows_asked == 10
    found = world.outcomes(0)
    assert [found[at]["payments"] for at in range(50, 60)] == [5] * 10
    assert [found[at]["spent"] for at in range(50, 60)] == [sum(range(at % 2, at + 1, 2)) for at in range(50, 60)]


def test_a_client_that_reads_nothing_more_though_the_log_goes_on_is_replaced(world: World) -> None:
    world.deaf_from = [3, 5]
    for at in range(10):
        world.pay(0, "c", 1.0, START_MS + at)
    run(world.worker(max_batch=1), world)
    assert [each.closed for each in world.readers] == [True, True, False]
    assert [world.outcomes(0)[each]["payments"] for each in range(10)] == list(range(1, 11))


def test_a_log_that_ends_with_what_is_no_record_is_asked_about_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_behind_a_marker(_: Any, partitions: Any) -> dict[TopicPartition, int]:
        return {each: len(world.broker.logs[each]) + (each.topic == "payments") for each in partitions}

    monkeypatch.setattr(MemoryConsumer, "end_offsets", ends_behind_a_marker)
    loop = world.worker()
    for at in range(2):
        world.pay(0, "c", 1.0, START_MS + at)
        run(loop, world)
        step_for(loop, world, PATIENCE_MS * 5)
    assert len(world.readers) == 3


def test_silence_counts_from_the_return_of_a_broker_that_was_away(world: World) -> None:
    world.deaf_from = [1]
    loop = world.worker()
    world.pay(0, "c", 1.0, START_MS)
    run(loop, world)
    world.pay(0, "c", 1.0, START_MS)
    step_for(loop, world, PATIENCE_MS / 2)
    world.broker.away = True
    step_for(loop, world, PATIENCE_MS * 2)
    world.broker.away = False
    step_for(loop, world, PATIENCE_MS / 2)
    assert len(world.readers) == 1
    step_for(loop, world, PATIENCE_MS)
    assert len(world.readers) == 2
    run(loop, world)


def step_for(loop: StreamLoop[Payment], world: World, duration_ms: float) -> None:
    until_ms = world.now_ms + duration_ms
    while world.now_ms < until_ms:
        loop.step()

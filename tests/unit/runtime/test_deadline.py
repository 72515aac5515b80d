"""Deadlines: whatever the models do, and however late events come, each is decided in time and says how."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import app.runtime.loop as loop_module
from app.actions.action import Action
from app.config import WorkerTuning
from app.errors import BreakerOpenError, ConfigError, InferenceError, ModelDiedError, ModelShedError
from app.event import Columns, Event
from app.inference import Scores
from app.latency import StageLatency
from app.log.frame import REASONS, Cursor, decode_frame, decode_header
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.loop import DECIDE_RESERVE_MS, Parts, StreamLoop
from app.runtime.opener import TaskOpener
from app.runtime.task import TaskSettings
from app.sources import TopicPartition
from app.testing.clock import Clock
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer
from app.testing.process import InlineExecutor

START_MS = 1_700_000_000_000
DEADLINE_MS = 100


class Payment(Event, frozen=True):
    amount: float


class Hold(Action, frozen=True):
    payment: str


class RiskModel:
    inputs: ClassVar[tuple[str, ...]] = ("amount",)
    outputs: ClassVar[tuple[str, ...]] = ("risk",)


def decide(payment: Payment, risk: float) -> Iterator[Action]:
    if risk > 0.5:
        yield Hold(payment.id)


def rules(payment: Payment) -> Iterator[Action]:
    yield Hold(payment.id)


def pipeline(*, fallback: bool = True, deadline: str | None = "100ms") -> Pipeline[Payment]:
    return Pipeline(
        source=Payment,
        models={"risk": RiskModel},
        decide=decide,
        fallback=rules if fallback else None,
        deadline=deadline if fallback else None,
    )


Behaviour = Callable[[int], tuple[float, Exception | None]]


@dataclass
class SlowModels:
    """Answers call number n (from 0) as `behave(n)` says: after so many ms, and with that error if any."""

    behave: Behaviour
    now_ms: float = 0.0
    calls: int = 0
    rows_asked: int = 0
    _pending: list[tuple[float, "Future[Scores]", Scores, Exception | None]] = field(default_factory=list)

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        delay_ms, error = self.behave(self.calls)
        self.calls += 1
        self.rows_asked += rows
        future: Future[Scores] = Future()
        scores = Scores({"risk": columns["amount"] * 0.0}, {"risk": "v1"})
        self._pending.append((self.now_ms + delay_ms, future, scores, error))
        self.advance(self.now_ms)
        return future

    def advance(self, now_ms: float) -> None:
        self.now_ms = now_ms
        due, self._pending = (
            [each for each in self._pending if each[0] <= now_ms],
            [each for each in self._pending if each[0] > now_ms],
        )
        for _, future, scores, error in due:
            if not future.set_running_or_notify_cancel():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(scores)


class World:
    """One worker on one partition; a step a millisecond."""

    def __init__(
        self,
        folder: Path,
        behave: Behaviour,
        declared: Pipeline[Payment],
        models: type[SlowModels] = SlowModels,
        **tuning: Any,
    ) -> None:
        self.broker = MemoryKafka(Clock(START_MS))
        for topic in ("payments", "decisions"):
            self.broker.create(topic, 1)
        self.models = models(behave, START_MS)
        task_settings = TaskSettings("fraud", "payments", max_ahead_ms=10**12)
        store = CheckpointStore(str(folder), "fraud")
        opener = TaskOpener(declared, task_settings, "decisions", store, "earliest", MemoryConsumer(self.broker))
        parts = Parts(
            open_source=lambda: MemoryConsumer(self.broker, "fraud"),
            log=MemoryProducer(self.broker),
            models=self.models,
            opener=opener,
            executor=InlineExecutor(),
            saver=InlineExecutor(),
            now_ms=lambda: self.broker.clock.now_ms,
        )
        self.loop = StreamLoop(
            declared, task_settings, "decisions", parts, WorkerTuning.load(tuning, "user_config"), StageLatency()
        )
        self.loop.give([0])
        self.sent = 0

    def send(self, count: int = 1, amount: float = 1.0) -> None:
        for _ in range(count):
            value = b'{"id": "%d", "time": %d, "amount": %f}' % (self.sent, self.broker.clock.now_ms, amount)
            self.broker.append("payments", 0, value)
            self.sent += 1

    def pass_ms(self, duration_ms: int) -> None:
        for _ in range(duration_ms):
            self.broker.clock.now_ms += 1
            self.models.advance(self.broker.clock.now_ms)
            self.loop.step()

    def decisions(self) -> list[tuple[str, float]]:
        """Of each event in order: the reason, and the ms from its append to its decision."""
        found: list[tuple[str, float]] = []
        cursor = Cursor(-1)
        for stored in self.broker.logs[TopicPartition("decisions", 0)]:
            header = decode_header(stored.headers)
            assert cursor.admit(header)
            frame = decode_frame(header, stored.value or b"")
            for code, append_ms in zip(frame.decided.reasons, frame.decided.append_ms, strict=True):
                found.append((REASONS[code], frame.stages.decided_ms - float(append_ms)))
            cursor.advance(header)
        return found

    def dead_letters(self) -> list[tuple[int, str]]:
        log = self.broker.logs[TopicPartition("decisions", 0)]
        frames = [decode_frame(decode_header(stored.headers), stored.value or b"") for stored in log]
        return [(dead.offset, dead.reason) for frame in frames for dead in frame.rejected]


@pytest.fixture(autouse=True)
def never_really_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "IDLE_WAIT_MS", 0.0)


def never(call: int) -> tuple[float, Exception | None]:
    return float("inf"), None


def test_the_fallback_decides_before_the_deadline_when_the_model_does_not_answer(tmp_path: Path) -> None:
    world = World(tmp_path, never, pipeline())
    for _ in range(40):
        world.send()
        world.pass_ms(7)
    world.pass_ms(DEADLINE_MS)
    found = world.decisions()
    assert [reason for reason, _ in found] == ["fallback-late"] * 40
    assert max(took_ms for _, took_ms in found) <= DEADLINE_MS
    assert world.loop.totals.counts()["fallback_late"] == 40


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([0.0, 3.0, 40.0, 89.0, 95.0, 150.0, float("inf")]),
            st.sampled_from([None, InferenceError("no"), ModelShedError("full"), BreakerOpenError("open")]),
        ),
        min_size=1,
        max_size=8,
    ),
    arrivals=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    max_in_flight=st.integers(1, 3),
)
def test_no_event_waits_longer_than_its_deadline_whatever_the_models_do(
    calls: list[tuple[float, Exception | None]], arrivals: list[int], max_in_flight: int
) -> None:
    with TemporaryDirectory() as folder:
        world = World(Path(folder), lambda call: calls[call % len(calls)], pipeline(), max_in_flight=max_in_flight)
        for gap_ms in arrivals:
            world.send()
            world.pass_ms(gap_ms)
        world.pass_ms(2 * DEADLINE_MS)
        found = world.decisions()
        assert len(found) == len(arrivals)
        assert max(took_ms for _, took_ms in found) <= DEADLINE_MS
        allowed = {"model", "fallback-late", "fallback-failed", "fallback-shed", "fallback-open"}
        assert {reason for reason, _ in found} <= allowed
        assert world.loop.totals.overdue == 0
        if all(delay_ms <= 3 and error is None for delay_ms, error in calls):
            assert {reason for reason, _ in found} == {"model"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InferenceError("it died"), "fallback-failed"),
        (ModelShedError("full"), "fallback-shed"),
        (BreakerOpenError("open"), "fallback-open"),
    ],
)
def test_a_decision_says_why_the_fallback_made_it(tmp_path: Path, error: Exception, reason: str) -> None:
    world = World(tmp_path, lambda call: (0.0, error), pipeline())
    world.send(3)
    world.pass_ms(50)
    assert [each for each, _ in world.decisions()] == [reason] * 3


def test_without_a_deadline_the_model_has_until_its_timeout(tmp_path: Path) -> None:
    world = World(tmp_path, lambda call: (400.0, None), pipeline(deadline=None))
    world.send()
    world.pass_ms(450)
    assert [reason for reason, _ in world.decisions()] == ["model"]
    silent = World(tmp_path / "silent", never, pipeline(deadline=None), model_timeout="300ms")
    silent.send()
    silent.pass_ms(350)
    assert [reason for reason, _ in silent.decisions()] == ["fallback-late"]


def test_without_a_fallback_a_late_model_is_asked_again_in_order(tmp_path: Path) -> None:
    behaviour: Behaviour = lambda call: (float("inf") if call < 3 else 2.0, None)  # noqa: E731
    world = World(tmp_path, behaviour, pipeline(fallback=False), model_timeout="50ms")
    for _ in range(10):
        world.send()
        world.pass_ms(12)
    world.pass_ms(1_000)
    assert [reason for reason, _ in world.decisions()] == ["model"] * 10


def outage(folder: Path, **tuning: Any) -> World:
    """20 events that waited for a second, and 5 that have just come; a model that takes 5 ms."""
    world = World(folder, lambda call: (5.0, None), pipeline(), **tuning)
    world.send(20)
    world.broker.clock.now_ms += 1_000
    world.send(5)
    world.pass_ms(100)
    return world


def test_events_past_their_deadline_are_scored_late_and_counted(tmp_path: Path) -> None:
    world = outage(tmp_path)
    assert [reason for reason, _ in world.decisions()] == ["model"] * 25
    assert world.loop.totals.overdue == 20


@pytest.mark.parametrize("max_batch", [20, 100])
def test_events_past_their_deadline_are_decided_by_the_fallback_where_that_is_set(
    tmp_path: Path, max_batch: int
) -> None:
    world = outage(tmp_path, overdue="fallback", max_batch=max_batch)
    assert [reason for reason, _ in world.decisions()] == ["fallback-overdue"] * 20 + ["model"] * 5
    assert world.loop.totals.overdue == 20
    assert world.loop.totals.counts()["fallbacks"] == 20
    assert world.models.rows_asked == 5


def test_an_event_in_time_does_not_wait_behind_overdue_ones_that_the_model_is_late_for(tmp_path: Path) -> None:
    world = World(tmp_path, never, pipeline(), model_timeout="60s", max_batch=20, pace={"shortest": "1ms"})
    world.send(20)
    world.broker.clock.now_ms += 1_000
    world.send(5)
    world.pass_ms(DEADLINE_MS)
    found = world.decisions()
    assert [reason for reason, _ in found] == ["fallback-late"] * 25
    assert max(took_ms for _, took_ms in found[20:]) <= DEADLINE_MS - DECIDE_RESERVE_MS + 1


def test_broken_records_between_overdue_and_timely_ones_stay_where_they_are(tmp_path: Path) -> None:
    world = World(tmp_path, lambda call: (5.0, None), pipeline(), overdue="fallback")
    for _ in range(3):
        world.send()
        world.broker.append("payments", 0, b"{broken")
    world.broker.clock.now_ms += 1_000
    world.broker.append("payments", 0, b"{broken")
    for _ in range(2):
        world.send()
        world.broker.append("payments", 0, b"{broken")
    world.pass_ms(100)
    assert [reason for reason, _ in world.decisions()] == ["fallback-overdue"] * 3 + ["model"] * 2
    assert world.loop.totals.dead_letters == 6
    assert world.loop.standing()[0]["offset"] == 11


def test_with_a_model_ten_times_too_slow_little_is_held_nothing_is_lost_and_latency_recovers(tmp_path: Path) -> None:
    slow = [True]
    world = World(
        tmp_path,
        lambda call: (100.0 if slow[0] else 1.0, None),
        pipeline(fallback=False),
        max_batch=10,
        max_in_flight=2,
    )
    most = 0
    for _ in range(100):  # 1,000 events/s; the model manages 200
        world.send(10)
        world.pass_ms(10)
        most = max(most, world.loop.totals.events - world.loop.totals.decisions)
    assert most <= 20
    slow[0] = False
    world.pass_ms(2_000)
    assert len(world.decisions()) == 1_000
    world.send(10)
    world.pass_ms(100)
    assert [took_ms for _, took_ms in world.decisions()[-10:]] == pytest.approx([10.0] * 10, abs=10)


@pytest.mark.parametrize("tuning", [{"deadline": "50ms"}, {"overdue": "fallback"}])
def test_what_needs_a_fallback_is_refused_without_one(tmp_path: Path, tuning: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"user_config\..* needs a fallback"):
        World(tmp_path, never, pipeline(fallback=False), **tuning)


def test_the_deadline_can_be_changed_while_running(tmp_path: Path) -> None:
    world = World(tmp_path, never, pipeline(), deadline="1s", model_timeout="60s")
    world.send()
    world.pass_ms(500)
    assert world.decisions() == []
    world.pass_ms(500)
    assert len(world.decisions()) == 1
    world.loop.tune(WorkerTuning.load({"deadline": "50ms"}))
    world.send()
    world.pass_ms(50)
    assert len(world.decisions()) == 2


KILLER = 666.0


class MortalModels(SlowModels):
    """Dies of a killer row, and of each call takes all others with it that are under way."""

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        future = super().ask(columns, rows)
        if KILLER in columns["amount"]:
            self._pending = [
                (self.now_ms + 1, each, scores, ModelDiedError("the model 'risk' died twice with the same call"))
                for _, each, scores, _ in self._pending
            ]
        return future


@settings(max_examples=50, deadline=None)
@given(
    amounts=st.lists(st.sampled_from([1.0, 1.0, 1.0, KILLER]), min_size=1, max_size=30),
    gap_ms=st.sampled_from([0, 1, 15, 50]),
    call_ms=st.sampled_from([3.0, 60.0]),
    max_batch=st.integers(1, 12),
    max_in_flight=st.sampled_from([2, 64]),
)
@example(amounts=[1.0] + [KILLER] * 40, gap_ms=30, call_ms=60.0, max_batch=1, max_in_flight=64)
def test_a_row_that_kills_the_model_is_set_aside_alone_when_nothing_else_can_decide_it(
    amounts: list[float], gap_ms: int, call_ms: float, max_batch: int, max_in_flight: int
) -> None:
    with TemporaryDirectory() as folder:
        behave: Behaviour = lambda call: (call_ms, None)  # noqa: E731
        declared, bounds = pipeline(fallback=False), {"max_batch": max_batch, "max_in_flight": max_in_flight}
        world = World(Path(folder), behave, declared, MortalModels, **bounds)
        for amount in amounts:
            world.send(1, amount)
            world.pass_ms(gap_ms)
        for _ in range(200):
            world.pass_ms(500)
            if world.loop.standing() and world.loop.standing()[0]["offset"] == len(amounts):
                break
        killers = [at for at, amount in enumerate(amounts) if amount == KILLER]
        assert [at for at, _ in world.dead_letters()] == killers
        assert all("died twice with the same call" in reason for _, reason in world.dead_letters())
        assert [reason for reason, _ in world.decisions()] == ["model"] * (len(amounts) - len(killers))


def test_a_poison_row_of_a_model_becomes_a_dead_letter_and_the_others_are_decided(tmp_path: Path) -> None:
    world = World(tmp_path, never, pipeline())
    poison = InferenceError("the model 'risk' raised ValueError: bad row")

    def ask(columns: Columns, rows: int) -> "Future[Scores]":
        future: Future[Scores] = Future()
        future.set_result(Scores({"risk": np.zeros(rows)}, {"risk": "v1"}, {1: poison}))
        return future

    world.models.ask = ask  # type: ignore[method-assign]
    world.send(3)
    world.pass_ms(50)
    assert [reason for reason, _ in world.decisions()] == ["model"] * 2
    assert world.dead_letters() == [(1, str(poison))]

"""A small pipeline, and a stream that decides on command: what stands behind the API in its tests."""

import asyncio
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from app.actions.action import Action, Decision
from app.actions.letters import REJECTS
from app.actions.message import Message, reject_message
from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.selection import EveryReject
from app.api.backend import Backend
from app.api.intake import Intake
from app.api.lane import SourceWriter, SynchronousLane
from app.api.letters import RecentLetters
from app.api.recent import RecentDecisions
from app.api.search import search_log
from app.api.status import StatusCache, StatusDocument
from app.api.tail import LogTail
from app.event import Columns, Event
from app.features import Features, count, total
from app.latency import LatencyBoard, StageLatency
from app.log.frame import Cursor, Frame, Stages, encode_frame
from app.pipeline import Pipeline
from app.runtime.task import Outcome, Task, TaskSettings, decide
from app.sources import Records, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer

SOURCE, DECISIONS, LETTERS, PARTITIONS = "payments", "fraud.decisions", "fraud.dead-letters", 2


class Payment(Event, frozen=True):
    """One payment by card."""

    card: str
    amount: float
    tip: float | None = None


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")
    spent = total("amount", last="1h")


class Hold(Action, frozen=True):
    payment: str
    risk: float


class RiskModel:
    inputs: ClassVar[tuple[str, ...]] = ("amount", "payments")
    outputs: ClassVar[tuple[str, ...]] = ("risk",)


def judge(payment: Payment, risk: float) -> Iterator[Action]:
    if payment.amount == 13:
        raise ValueError("unlucky")
    if risk > 0.5:
        yield Hold(payment.id, risk)


fraud = Pipeline(
    source=Payment,
    features=[CardHistory],
    models={"risk": RiskModel},
    decide=judge,
    actions={Hold: [Publish("holds"), Post("case-system")], Decision: [Publish("scores")]},
)


class Decider:
    """Decides records in order. A payment's risk is its amount / 1,000; `decide` fails for an amount of 13."""

    def __init__(self) -> None:
        self._settings = TaskSettings("fraud", SOURCE, deduplicate_ms=3_600_000)
        self._tasks = [
            Task(fraud, self._settings, each, next_offset=0, decided_through=-1) for each in range(PARTITIONS)
        ]

    def decide(self, records: Records, now_ms: float) -> Frame:
        part = self._tasks[records.partition].admit(records)
        assert part is not None
        risk: Columns = {"risk": part.columns["amount"] / 1_000}
        stages = Stages(now_ms + 2, now_ms + 3, now_ms + 5, now_ms + 9, now_ms + 10)
        return decide(fraud, self._settings, part, Outcome(risk, {"risk": "v1"}, "model"), stages)


def dead_letters(frame: Frame) -> Iterator[Message]:
    """What the sink of rejected records makes of a frame."""
    for reject in EveryReject("fraud").pick(frame, Cursor()):
        yield reject_message(REJECTS, reject)


class Stream:
    """Decides what is in the source topic of a MemoryKafka, when told to, and writes the dead letters."""

    def __init__(self, broker: MemoryKafka) -> None:
        self.broker = broker
        broker.clock.now_ms = time.time_ns() // 1_000_000
        self._decider = Decider()
        for topic in (SOURCE, DECISIONS, LETTERS):
            broker.create(topic, PARTITIONS)
        self._consumer = MemoryConsumer(broker)
        self._consumer.assign({TopicPartition(SOURCE, each): 0 for each in range(PARTITIONS)})

    def decide_all(self) -> None:
        for records in self._consumer.poll(1_000, 0):
            frame = self._decider.decide(records, self.broker.clock.now_ms)
            header, value = encode_frame(frame)
            self.broker.append(DECISIONS, records.partition, value, headers=[header])
            for key, value, headers in dead_letters(frame):
                self.broker.append(LETTERS, records.partition, value, key, headers)

    def letters(self) -> Records:
        """The dead letters of the first partition."""
        consumer = MemoryConsumer(self.broker)
        consumer.assign({TopicPartition(LETTERS, 0): 0})
        [records] = consumer.poll(1_000, 0)
        return records


class WaitingConsumer(MemoryConsumer):
    """As a real one, it waits a little when there is nothing."""

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        polled = super().poll(max_records, timeout_ms)
        if not polled:
            time.sleep(0.002)
        return polled


class DecidedProducer(MemoryProducer):
    """Writes to the source topic; the stream decides at once, unless it is held up."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.broker)
        self.stream = stream
        self.held_up = False

    def poll(self, timeout_ms: int = 0) -> None:
        super().poll(timeout_ms)
        if not self.held_up:
            self.stream.decide_all()
        time.sleep(0.002)


def payment(event_id: str, card: str = "c1", amount: float = 10.0, time_ms: int | None = None) -> dict[str, Any]:
    return {"id": event_id, "time": time_ms or time.time_ns() // 1_000_000, "card": card, "amount": amount}


def status_document(board: LatencyBoard | None = None, **changes: Any) -> dict[str, Any]:
    """What a coordinator says of two partitions on one worker, with three sinks."""
    board = board or busy_board()
    partitions = [
        {
            "partition": each,
            "worker": "stream-1",
            "offset": 1_000 + each,
            "end_offset": 1_010 + each,
            "lag": 10,
            "watermark_ms": 1_700_000_000_000,
            "events_per_s": 250.0,
            "keys": 120,
            "state_bytes": 4_096,
            "checkpoint_age_ms": 2_500.0,
            "checkpoint_bytes": 1_234,
            "checkpoint_error": None,
        }
        for each in range(PARTITIONS)
    ]
    sinks = [
        {
            "sink": name,
            "partition": each,
            "worker": "action-1",
            "applied": 900,
            "lag": lag,
            "retries": 0,
            "breaker": "closed",
            "error": None,
        }
        for name, lag in (("holds", 0), ("case-system", 7), ("scores", 0))
        for each in range(PARTITIONS)
    ]
    workers = [
        {
            "id": "stream-1",
            "kind": "stream",
            "heartbeat_age_ms": 120.0,
            "busy": 0.4,
            "partitions": [0, 1],
            "error": None,
        },
        {
            "id": "action-1",
            "kind": "action",
            "heartbeat_age_ms": 80.0,
            "busy": 0.1,
            "partitions": [0, 1],
            "error": None,
        },
    ]
    return {
        "pipeline": "fraud",
        "time_ms": 1_700_000_000_000,
        "ready": True,
        "partitions": partitions,
        "workers": workers,
        "throughput": {"events_per_s": 500.0, "decisions_per_s": 499.0},
        "totals": {
            "events": 2_001,
            "decisions": 1_990,
            "dead_letters": 11,
            "actions": 14,
            "duplicates": 5,
            "late": 4,
            "overdue": 1,
            "fallbacks": 3,
            "fallback_failed": 0,
            "fallback_late": 2,
            "fallback_shed": 0,
            "fallback_open": 1,
            "fallback_overdue": 0,
        },
        "breakers": [
            {"model": "risk", "worker": "stream-1", "state": "half-open"},
            {"model": "risk", "worker": "stream-2", "state": "closed"},
        ],
        "stages": board.summary(60_000),
        "sinks": sinks,
        "alerts": board.alerts(),
        "histograms": board.histograms(),
        **changes,
    }


def busy_board(scored_ms: float = 8.0) -> LatencyBoard:
    """A board after 200 events, with budgets on two stages."""
    latency = StageLatency()
    latency.observe("fetched", np.linspace(1, 5, 200))
    for stage, value_ms in (("features", 1.0), ("queued", 0.2), ("scored", scored_ms), ("decided", 0.5)):
        latency.observe_batch(stage, value_ms, 200)  # type: ignore[arg-type]
    latency.observe("end_to_end", np.linspace(15, 60, 200))
    board = LatencyBoard({"scored": 30, "end_to_end": 100})
    board.add(60_000, latency.take())
    board.check(60_000)
    return board


@dataclass
class Coordinator:
    """Says `document`, or fails with `error`."""

    document: StatusDocument = field(default_factory=status_document)
    error: Exception | None = None
    calls: int = 0

    async def status(self) -> StatusDocument:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.document


def make_backend(
    broker: MemoryKafka, producer: DecidedProducer, coordinator: Coordinator, *, off: Collection[str] = ()
) -> Backend:
    """A whole backend over logs in memory."""
    recent, letters = RecentDecisions(), RecentLetters("fraud")
    return Backend(
        name="fraud",
        pipeline=fraud,
        off=off,
        status=StatusCache(coordinator.status),
        recent=recent,
        tail=LogTail(lambda: WaitingConsumer(broker), DECISIONS, recent),
        letters=letters,
        letters_tail=LogTail(lambda: WaitingConsumer(broker), LETTERS, letters),
        intake=Intake(fraud, max_ahead_ms=3_600_000),
        lane=SynchronousLane(SourceWriter(lambda: (producer, PARTITIONS), SOURCE), recent),
        search=lambda event_id: search_log(WaitingConsumer(broker), DECISIONS, event_id),
        searching=asyncio.Semaphore(1),
    )

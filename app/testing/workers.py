"""The workers of a simulated application: the real loops, in processes that can die and freeze."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, ClassVar

from app.actions.loop import SinkLoop
from app.config import WorkerTuning
from app.event import Columns
from app.inference import Scores
from app.latency import StageLatency
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.loop import Parts, StreamLoop
from app.runtime.opener import TaskOpener
from app.runtime.roster import Heartbeat, Kind, Roster
from app.runtime.task import TaskSettings
from app.sources import CommittedOffset, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer, Sent
from app.testing.models import Models
from app.testing.process import Process, Signal, SteppedExecutor, Thread
from app.testing.sinks import Host, Receivers, SimulatedSinks

HEARTBEAT_MS = 250
SINK_STEP_MS = 250
JOB_MS, ANSWER_MS, APPEND_MS = 4.0, (1.0, 15.0), (0.5, 6.0)
"""What opening and saving, a model's answer and an append take; drawn anew each time."""


@dataclass
class Shared:
    """What the workers of one application have in common. `idle_ms`: how long a thread with nothing to do may sleep,
    though it asks for less; what arrives wakes it."""

    pipeline: Pipeline[Any]
    settings: TaskSettings
    decisions: str
    partitions: int
    kafka: MemoryKafka
    store: CheckpointStore
    models: Models
    sinks: SimulatedSinks
    receivers: Receivers
    tuning: WorkerTuning
    random: Random
    roster: Roster
    idle_ms: float = 0.0
    coordinator_silent_until_ms: float = 0.0
    slow_appends_until_ms: float = 0.0
    slow_appends_by_ms: float = 0.0


class Worker(Process, ABC):
    """A replica with a heartbeat. As real ones do, it keeps what it has while the coordinator does not answer."""

    kind: ClassVar[Kind]

    def __init__(self, name: str, shared: Shared, on_death: Callable[[Process], None]) -> None:
        super().__init__(name, shared.kafka, shared.random, on_death)
        self.shared = shared
        self._pulse = Thread(self, self._beat, delay_ms=HEARTBEAT_MS)

    def _beat(self) -> None:
        self._pulse.wait(HEARTBEAT_MS)
        now_ms = self.clock.now_ms
        if now_ms >= self.shared.coordinator_silent_until_ms:
            self._give(self.shared.roster.hear(self._describe(), int(now_ms)))

    @abstractmethod
    def _describe(self) -> Heartbeat: ...

    @abstractmethod
    def _give(self, units: list[str]) -> None: ...

    @abstractmethod
    def works_on(self, partition: int) -> bool: ...

    @abstractmethod
    def notice(self, log: TopicPartition) -> None:
        """Something was appended to a log."""


class StreamWorker(Worker):
    """Runs the loop of a stream worker, and the executor of its opener."""

    kind = "stream"

    def __init__(self, name: str, shared: Shared, on_death: Callable[[Process], None]) -> None:
        super().__init__(name, shared, on_death)
        self._thread = Thread(self, self._step)
        self.log = DelayedProducer(self, self._thread.wake)
        self.loop = self._build()

    def _build(self) -> StreamLoop[Any]:
        shared, kafka = self.shared, self.kafka
        opener = TaskOpener(
            shared.pipeline, shared.settings, shared.decisions, shared.store, "earliest", MemoryConsumer(kafka)
        )
        parts = Parts(
            open_source=lambda: MemoryConsumer(kafka, shared.settings.pipeline, self._sleep),
            log=self.log,
            models=WorkerModels(self) if shared.pipeline.models else None,
            opener=opener,
            executor=SteppedExecutor(self, self._thread.wake, JOB_MS),
            saver=SteppedExecutor(self, self._thread.wake, JOB_MS),
            now_ms=lambda: self.clock.now_ms,
        )
        return StreamLoop(
            shared.pipeline,
            shared.settings,
            shared.decisions,
            parts,
            shared.tuning,
            StageLatency(),
            Signal(self._thread.wait, self._thread.wake),
        )

    def _step(self) -> None:
        self.loop.step()

    def _sleep(self, duration_ms: float) -> None:
        if duration_ms:
            self._thread.wait(max(duration_ms, self.shared.idle_ms))

    def _describe(self) -> Heartbeat:
        return Heartbeat(
            worker=self.name,
            kind="stream",
            units=[str(each) for each in range(self.shared.partitions)],
            held=[str(each) for each in self.loop.partitions],
            standing=self.loop.standing(),
            totals=self.loop.totals.counts(),
            latency=self.loop.latency.take(),
            busy=0.0,
        )

    def _give(self, units: list[str]) -> None:
        self.loop.give([int(each) for each in units])
        self._thread.wake()

    def works_on(self, partition: int) -> bool:
        return partition in self.loop.partitions

    def notice(self, log: TopicPartition) -> None:
        if log.topic == self.shared.settings.topic and self.works_on(log.partition):
            self._thread.wake()

    def bury(self) -> None:
        self.log.bury()

    def freeze(self, duration_ms: float) -> None:
        super().freeze(duration_ms)
        self.log.freeze()


class WorkerModels:
    """The models as one worker calls them."""

    def __init__(self, worker: StreamWorker) -> None:
        self._worker = worker

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        shared = self._worker.shared
        return shared.models.ask(
            columns,
            rows,
            delay_ms=shared.random.uniform(*ANSWER_MS),
        )


class DelayedProducer(MemoryProducer):
    """Appends each record a while after it was sent, in the order of sending; `poll` tells what has been delivered.

    Of what is on its way when the process ends, a part from the front arrives and the rest does not; when it
    freezes, the rest arrives when it goes on.
    """

    def __init__(self, worker: StreamWorker, wake: Callable[[], None]) -> None:
        super().__init__(worker.kafka)
        self._worker = worker
        self._wake = wake
        self._delivered: list[tuple[Sent, int, int]] = []
        self._thread = Thread(worker, self._deliver)
        self._due_ms: list[float] = []

    @property
    def idle(self) -> bool:
        return not (self.pending or self._delivered)

    def send(self, topic: str, value: bytes | None, **options: Any) -> None:
        super().send(topic, value, **options)
        shared, now_ms = self._worker.shared, self._worker.clock.now_ms
        delay_ms = shared.random.uniform(*APPEND_MS)
        if now_ms < shared.slow_appends_until_ms:
            delay_ms += shared.slow_appends_by_ms
        self._due_ms.append(max([now_ms + delay_ms, *self._due_ms[-1:]]))
        self._thread.wake()

    def poll(self, timeout_ms: int = 0) -> None:
        delivered, self._delivered = self._delivered, []
        for sent, offset, append_ms in delivered:
            if sent.on_delivery is not None:
                sent.on_delivery(None, offset, append_ms)

    def flush(self, timeout_s: float) -> int:
        self._arrive(len(self.pending))
        self.poll()
        return len(self.pending)

    def bury(self) -> None:
        self._arrive(self._worker.random.randint(0, len(self.pending)))
        self.pending = []

    def freeze(self) -> None:
        self._arrive(self._worker.random.randint(0, len(self.pending)))

    def _deliver(self) -> None:
        now_ms = self._worker.clock.now_ms
        self._arrive(sum(due_ms <= now_ms for due_ms in self._due_ms))
        left_ms = self._due_ms[0] - now_ms if self._due_ms else float("inf")
        self._thread.wait(max(left_ms, 20.0 if self.kafka.away else 0.0))

    def _arrive(self, records: int) -> None:
        if self.kafka.away or not records:
            return
        for sent in self.pending[:records]:
            self._delivered.append((sent, *self.append(sent)))
        del self.pending[:records], self._due_ms[:records]
        self._wake()


class ActionWorker(Worker):
    """Runs the loop of every sink, each in a thread of its own."""

    kind = "action"

    def __init__(self, name: str, shared: Shared, on_death: Callable[[Process], None]) -> None:
        super().__init__(name, shared, on_death)
        self._undertakers: list[Callable[[], None]] = []
        self.loops: dict[str, SinkLoop[Any]] = {}
        self._threads: dict[str, Thread] = {}
        self._held: dict[str, set[int]] = {}
        host = Host(self._open_consumer, shared.random, self._undertakers.append)
        for sink in shared.sinks.names:
            self.loops[sink] = shared.sinks.open(sink, host)
            self._threads[sink] = Thread(self, partial(self._step, sink))

    def _open_consumer(
        self, group: str | None, *, hurried: bool = True, read_uncommitted: bool = False
    ) -> MemoryConsumer:
        return FatalConsumer(self.shared, group)

    def _step(self, sink: str) -> None:
        # SinkLoop waits for real where it has no partition, so it is never asked to wait.
        done = self.loops[sink].step(0)
        idle_ms = max(SINK_STEP_MS, self.shared.idle_ms) if self._held.get(sink) else float("inf")
        self._threads[sink].wait(1.0 if done.events else idle_ms)

    def _describe(self) -> Heartbeat:
        sinks, partitions = self.shared.sinks.names, range(self.shared.partitions)
        return Heartbeat(
            worker=self.name,
            kind="action",
            units=[f"{sink}/{partition}" for sink in sinks for partition in partitions],
            held=[f"{sink}/{partition}" for sink, held in self._held.items() for partition in sorted(held)],
            standing=[],
            totals={},
            latency={},
            busy=0.0,
        )

    def _give(self, units: list[str]) -> None:
        wanted: dict[str, set[int]] = defaultdict(set)
        for unit in units:
            sink, _, partition = unit.rpartition("/")
            wanted[sink].add(int(partition))
        for sink, loop in self.loops.items():
            loop.assign(wanted[sink])  # also what is as it was: a fenced partition is taken up again by this
            if wanted[sink] != self._held.get(sink, set()):
                self._held[sink] = wanted[sink]
                self._threads[sink].wake()

    def works_on(self, partition: int) -> bool:
        return any(partition in held for held in self._held.values())

    def notice(self, log: TopicPartition) -> None:
        if log.topic == self.shared.decisions:
            for sink, held in self._held.items():
                if log.partition in held:
                    self._threads[sink].wake()

    def bury(self) -> None:
        for bury in self._undertakers:
            bury()


class FatalConsumer(MemoryConsumer):
    """A sink's consumer, whose commit may be the end of its worker."""

    def __init__(self, shared: Shared, group: str | None) -> None:
        super().__init__(shared.kafka, group)
        self._shared = shared

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        self._shared.receivers.die_if_doomed()
        super().commit(offsets, wait=wait)

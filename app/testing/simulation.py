"""A whole application in one process and in simulated time, to be moved on by hand."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import msgspec

from app.config import WorkerTuning
from app.errors import HeadraceError
from app.event import Event
from app.log.frame import decode_header
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.roster import Roster
from app.runtime.task import TaskSettings
from app.sources import TopicPartition
from app.testing.clock import START_MS, Clock
from app.testing.faults import Away, Crash, CrashBeforeCursor, Duplicate, Fault, Pause, Record, Slow, Torn, Wait
from app.testing.kafka import MemoryKafka, Stored
from app.testing.models import Models
from app.testing.process import Process
from app.testing.sinks import Receivers, SimulatedSinks
from app.testing.workers import ActionWorker, Shared, StreamWorker, Worker

RESTART_MS = 5_700
"""From a kill -9 to its replacement by Serve, as measured."""
CHECK_MS = 50
STUCK_MS = 120_000
SOURCE = "source"


class StuckError(HeadraceError):
    """A simulated pipeline does not get done with what it was given."""


class Simulation:
    """Takes events and faults, and lets time pass. The same calls with the same seed give the same, to the last bit.

    Everything but the outside is what runs in production: loops, tasks, opener, checkpoint store, frames, roster,
    sink loops and writers. The outside is simulated: the clock, Kafka, the models, what sinks deliver to, and the
    processes and threads themselves.
    """

    def __init__(
        self,
        pipeline: Pipeline[Any],
        models: Mapping[str, Any],
        *,
        seed: int = 0,
        name: str = "test",
        partitions: int = 2,
        workers: int = 2,
        tuning: WorkerTuning | None = None,
        allowed_lateness_ms: int = 3_600_000,
        max_ahead_ms: int = 3_600_000,
        deduplicate_ms: int | None = 3_600_000,
        start_ms: float = START_MS,
        idle_ms: float = 0.0,
        restart_ms: float = RESTART_MS,
        folder: Path | None = None,
    ) -> None:
        self.start_ms = start_ms
        self.clock = Clock(start_ms)
        self.kafka = MemoryKafka(self.clock)
        self.partitions = partitions
        self.decisions = f"{name}.decisions"
        self.deaths: list[Process] = []
        self._random = Random(seed)
        self._restart_ms = restart_ms
        self._folder = TemporaryDirectory(prefix="headrace-", dir=folder)
        self.receivers = Receivers(self.kafka, SOURCE)
        sinks = SimulatedSinks(name, pipeline, self.decisions, self.receivers)
        for topic in (SOURCE, self.decisions, *sinks.topics):
            self.kafka.create(topic, partitions)
        self.shared = Shared(
            pipeline=pipeline,
            settings=TaskSettings(name, SOURCE, allowed_lateness_ms, max_ahead_ms, deduplicate_ms),
            decisions=self.decisions,
            partitions=partitions,
            kafka=self.kafka,
            store=CheckpointStore(self._folder.name, name),
            models=Models(self.clock, pipeline.models, models),
            sinks=sinks,
            receivers=self.receivers,
            tuning=tuning or WorkerTuning(),
            random=self._random,
            roster=Roster(name, {}),
            idle_ms=idle_ms,
        )
        self._born = 0
        self._living: list[Worker] = []
        self._through = dict.fromkeys(range(partitions), -1)
        self._held_back: list[tuple[int, Record]] = []
        self._latest = (0, Record(None))
        self._broker_back_ms = 0.0
        self.kafka.on_append = self._note_append
        for _ in range(workers):
            self._start(StreamWorker)
            self._start(ActionWorker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.receivers.close()
        self._folder.cleanup()

    # What arrives.

    def append(self, item: Event | Record) -> None:
        """Sends a record to the source topic, into the partition of its key. While the broker is away, the sender
        holds it back."""
        record = item if isinstance(item, Record) else self.encode(item)
        self._latest = zlib.crc32(record.key or b"") % self.partitions, record
        self._send(*self._latest)

    def encode(self, event: Event) -> Record:
        by = self.shared.pipeline.by
        return Record(msgspec.json.encode(event), None if by is None else str(getattr(event, by)).encode())

    def _send(self, partition: int, record: Record) -> None:
        self._held_back.append((partition, record))
        self._release()

    def _release(self) -> None:
        while self._held_back and not self.kafka.away:
            partition, record = self._held_back.pop(0)
            self.kafka.append(SOURCE, partition, record.value, record.key)

    def _note_append(self, log: TopicPartition, stored: Stored) -> None:
        if log.topic == self.decisions:
            last = decode_header(list(stored.headers)).last
            self._through[log.partition] = max(self._through[log.partition], last)
        self.shared.sinks.note_append(log, stored)
        for worker in self._living:
            worker.notice(log)

    def take(self, item: Event | Record | Fault) -> None:
        """A record arrives, or a fault begins."""
        if isinstance(item, Event | Record):
            self.append(item)
        else:
            self.strike(item)

    # What goes wrong.

    def strike(self, fault: Fault) -> None:
        """Lets a fault begin."""
        shared, now_ms = self.shared, self.clock.now_ms
        match fault:
            case Wait(ms):
                self.run_for(ms)
            case Crash(kind, after_operations):
                self._doom(kind, after_operations)
            case CrashBeforeCursor():
                self.receivers.crash_beyond = self.receivers.count
            case Pause(kind, ms):
                for worker in self._victim(kind):
                    worker.freeze(ms)
            case Slow("model", by_ms, ms):
                shared.models.slow_by_ms, shared.models.slow_until_ms = by_ms, now_ms + ms
            case Slow("broker", by_ms, ms):
                shared.slow_appends_by_ms, shared.slow_appends_until_ms = by_ms, now_ms + ms
            case Away(what, ms):
                self._take_away(what, ms)
            case Duplicate():
                self._send(*self._latest)
            case Torn():
                self._tear()

    def _victim(self, kind: str) -> list[Worker]:
        """One that works on the partition of the latest record, if one does; none if no one is there."""
        able = [worker for worker in self._living if worker.kind == kind and not worker.frozen]
        self._random.shuffle(able)
        able.sort(key=lambda worker: not worker.works_on(self._latest[0]))
        return able[:1]

    def _doom(self, kind: str, after_operations: int) -> None:
        for worker in self._victim(kind):
            if after_operations:
                worker.operations_left = after_operations
            else:
                worker.die()

    def _take_away(self, what: str, ms: float) -> None:
        shared, until_ms = self.shared, self.clock.now_ms + ms
        if what == "model":
            shared.models.failing_until_ms = until_ms
        elif what == "coordinator":
            shared.coordinator_silent_until_ms = until_ms
            shared.roster = Roster(shared.settings.pipeline, {})
        elif what == "broker":
            self.kafka.away = True
            self._broker_back_ms = until_ms
            self.clock.after(ms, self._bring_broker_back)
        elif what in shared.sinks.names:
            self.receivers.away_until_ms[what] = until_ms
        else:
            known = ", ".join(["model", "broker", "coordinator", *shared.sinks.names])
            raise ValueError(f"nothing is called {what!r} here that could be away; name one of {known}")

    def _bring_broker_back(self) -> None:
        if self.clock.now_ms >= self._broker_back_ms:
            self.kafka.away = False
            self._release()

    def _tear(self) -> None:
        newest: dict[Path, Path] = {}
        for path in sorted(Path(self._folder.name).rglob("*.safetensors")):
            newest[path.parent] = path
        for path in newest.values():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def _start(self, kind: type[StreamWorker] | type[ActionWorker]) -> None:
        self._born += 1
        self._living.append(kind(f"{kind.kind}-{self._born}", self.shared, self._replace))

    def _replace(self, process: Process) -> None:
        self.deaths.append(process)
        self._living = [worker for worker in self._living if worker is not process]
        kind = StreamWorker if isinstance(process, StreamWorker) else ActionWorker
        self.clock.after(self._restart_ms, lambda: self._start(kind))

    # How time passes.

    def run_for(self, duration_ms: float) -> None:
        until_ms = self.clock.now_ms + duration_ms
        while self.clock.run_next(until_ms):
            pass

    def wait_until_ready(self) -> None:
        """Lets time pass until some worker has each partition in hand. Raises StuckError after two minutes."""
        self._run_until(lambda: self.ready, STUCK_MS)

    @property
    def ready(self) -> bool:
        held = {row["partition"] for worker in self._stream_workers for row in worker.loop.standing()}
        return len(held) == self.partitions

    @property
    def _stream_workers(self) -> list[StreamWorker]:
        return [worker for worker in self._living if isinstance(worker, StreamWorker)]

    def drain(self, patience_ms: float = STUCK_MS) -> None:
        """Lets time pass until everything is decided and carried out, and every frozen worker has had its say.

        Raises StuckError when that is not so after `patience_ms`.
        """
        self._run_until(lambda: self.drained, patience_ms)

    def _run_until(self, done: Callable[[], bool], patience_ms: float) -> None:
        give_up_ms = self.clock.now_ms + patience_ms
        while not done():
            if self.clock.now_ms > give_up_ms:
                raise StuckError(f"not done after {patience_ms / 1000:.0f} simulated seconds: {self._standing()}")
            self.run_for(CHECK_MS)

    @property
    def drained(self) -> bool:
        if self._held_back or self.kafka.away or any(worker.frozen for worker in self._living):
            return False
        if not all(worker.log.idle for worker in self._stream_workers) or self.receivers.is_doomed:
            return False
        return self._through == self._source_ends() and not self._behind()

    def _source_ends(self) -> dict[int, int]:
        return {each: len(self.kafka.logs[TopicPartition(SOURCE, each)]) - 1 for each in range(self.partitions)}

    def _behind(self) -> list[str]:
        """The sinks' partitions that nobody has carried out to the end of the decision log."""
        reached: set[str] = set()
        for worker in self._living:
            if isinstance(worker, ActionWorker):
                for sink, loop in worker.loops.items():
                    for partition, place in loop.status().partitions.items():
                        end = len(self.kafka.logs[TopicPartition(self.decisions, partition)])
                        if place.log_offset == end and place.error is None:
                            reached.add(f"{sink}/{partition}")
        units = [f"{sink}/{each}" for sink in self.shared.sinks.names for each in range(self.partitions)]
        return [
            unit
            for unit in units
            if unit not in reached and self.kafka.logs[TopicPartition(self.decisions, int(unit.rpartition("/")[2]))]
        ]

    def _standing(self) -> str:
        errors = {worker.name: worker.loop.last_error for worker in self._stream_workers if worker.loop.last_error}
        died = {str(process.error) for process in self.deaths if process.error is not None}
        return (
            f"decided up to {self._through}, the source ends at {self._source_ends()}, sinks behind: {self._behind()}, "
            f"errors: {errors}, workers died of {died or 'nothing'}"
        )

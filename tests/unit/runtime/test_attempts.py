"""Records that kill whoever reads them: found, set aside and never read again; and nothing else is."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import app.runtime.loop as loop_module
from app.config import WorkerTuning
from app.event import Event
from app.features import Features, count
from app.latency import StageLatency
from app.log.frame import Cursor, decode_frame, decode_header
from app.pipeline import Pipeline
from app.runtime.attempts import CRASHES_BEFORE_CARE, CRASHES_OF_A_RECORD, Attempts, reopened
from app.runtime.checkpoint import CheckpointStore
from app.runtime.loop import Parts, StreamLoop
from app.runtime.opener import TaskOpener
from app.runtime.task import Task, TaskSettings
from app.sources import Records, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer
from app.testing.process import InlineExecutor

MOST_CRASHES = 2 + CRASHES_BEFORE_CARE + 2 + CRASHES_OF_A_RECORD
"""Of one killer: one behind records and one behind a checkpoint that got on, two before care, of 4,096 records and of
64, and of its own."""


class Killed(BaseException):
    """The process is gone, without a trace."""


class Payment(Event, frozen=True):
    card: str


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")


PIPELINE = Pipeline(source=Payment, features=[CardHistory])


class MortalTask(Task[Payment]):
    """Dies of every record whose value says so."""

    def admit(self, records: Records):  # type: ignore[no-untyped-def]
        values, _ = self._harmless(records)
        if any(b"KILL" in (value or b"") for value in values):
            raise Killed
        return super().admit(records)


class World:
    """Two partitions, and one worker after the other."""

    def __init__(self, folder: Path) -> None:
        self.kafka = MemoryKafka()
        self.folder = folder
        self.crashes = 0
        for topic in ("payments", "decisions"):
            self.kafka.create(topic, 2)

    def append(self, partition: int, kind: str) -> None:
        offset = len(self.kafka.logs[TopicPartition("payments", partition)])
        payment = b'{"id": "%d", "time": %d, "card": "c"}' % (offset, 1_600_000_000_000 + offset)
        value = b"KILL" if kind == "k" else payment
        self.kafka.append("payments", partition, value, b"c")

    def worker(self, max_batch: int) -> StreamLoop[Payment]:
        task_settings = TaskSettings("fraud", "payments", max_ahead_ms=10**15)
        store = CheckpointStore(str(self.folder), "fraud")
        opener = TaskOpener(PIPELINE, task_settings, "decisions", store, "earliest", MemoryConsumer(self.kafka))
        parts = Parts(
            open_source=lambda: MemoryConsumer(self.kafka, "fraud"),
            log=MemoryProducer(self.kafka),
            models=None,
            opener=opener,
            executor=InlineExecutor(),
            saver=InlineExecutor(),
            now_ms=self._tick,
        )
        tuning = WorkerTuning.load({"max_batch": max_batch, "checkpoint_interval": "50ms"})
        return StreamLoop(PIPELINE, task_settings, "decisions", parts, tuning, StageLatency())

    def _tick(self) -> float:
        self.kafka.clock.now_ms += 5
        return self.kafka.clock.now_ms

    def run(self, max_batch: int, most_crashes: int) -> None:
        """Starts a worker whenever the last one has died, until all is decided."""
        while True:
            loop = self.worker(max_batch)
            loop.give([0, 1])
            try:
                self._run_until_done(loop)
                return
            except Killed:
                self.crashes += 1
                assert self.crashes <= most_crashes

    def _run_until_done(self, loop: StreamLoop[Payment]) -> None:
        ends = {each: len(self.kafka.logs[TopicPartition("payments", each)]) for each in (0, 1)}
        for _ in range(5_000):
            loop.step()
            if {row["partition"]: row["offset"] for row in loop.standing()} == ends:
                return
        raise AssertionError(loop.standing())

    def outcomes(self, partition: int) -> dict[int, tuple[str, float]]:
        """Of each offset: its cause when it is a dead letter, and its feature when it is decided."""
        found: dict[int, tuple[str, float]] = {}
        cursor = Cursor(-1)
        for stored in self.kafka.logs[TopicPartition("decisions", partition)]:
            header = decode_header(stored.headers)
            if not cursor.admit(header):
                continue
            frame = decode_frame(header, stored.value or b"")
            new = cursor.new_rows(frame)
            counts = frame.decided.features["payments"][new].tolist()
            found |= {
                offset: ("decided", number)
                for offset, number in zip(frame.decided.offsets[new].tolist(), counts, strict=True)
            }
            found |= {dead.offset: (dead.cause, 0.0) for dead in cursor.new_dead_letters(frame)}
            cursor.advance(header)
        return found


@pytest.fixture(autouse=True)
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "IDLE_WAIT_MS", 0.0)
    monkeypatch.setattr("app.runtime.opener.Task", MortalTask)


@settings(max_examples=60, deadline=None)
@given(
    first=st.text("pppppppk", max_size=40),
    second=st.text("pppppppk", max_size=20),
    max_batch=st.sampled_from([1, 3, 10, 4096]),
)
def test_exactly_the_records_that_kill_are_set_aside_and_the_others_are_decided(
    first: str, second: str, max_batch: int
) -> None:
    with TemporaryDirectory() as folder:
        world = World(Path(folder))
        for partition, kinds in enumerate((first, second)):
            for kind in kinds:
                world.append(partition, kind)
        killers = (first + second).count("k")
        world.run(max_batch, most_crashes=killers * MOST_CRASHES)
        for partition, kinds in enumerate((first, second)):
            found, seen = world.outcomes(partition), 0
            assert sorted(found) == list(range(len(kinds)))
            for offset, kind in enumerate(kinds):
                seen += kind == "p"
                assert found[offset] == (("crash", 0.0) if kind == "k" else ("decided", float(seen)))


def test_a_record_that_is_set_aside_is_not_read_by_a_later_owner_either(tmp_path: Path) -> None:
    world = World(tmp_path)
    for kind in "ppkpp":
        world.append(0, kind)
    world.run(100, MOST_CRASHES)
    assert world.crashes > 0
    for checkpoint in tmp_path.glob("fraud/*/*.safetensors"):
        checkpoint.unlink()  # so that the next owner reads all of it again
    died = world.crashes
    world.append(0, "p")
    world.run(100, MOST_CRASHES)
    assert world.crashes == died
    assert world.outcomes(0)[5] == ("decided", 5.0)


def test_openings_that_get_on_are_no_crashes() -> None:
    found: Attempts | None = None
    for offset in range(10):
        found = reopened(found, offset, offset - 1)
        assert (found.opened, found.size) == (1, None)


def test_a_worker_that_hands_over_while_it_takes_care_leaves_no_suspicion() -> None:
    found = None
    for _ in range(CRASHES_BEFORE_CARE + 1):
        found = reopened(found, 5, 4)
    assert found is not None
    assert found.size == 4096
    found = reopened(found.take(5, 5).put_down(), 6, 5)
    assert (found.size, dict(found.crashes), dict(found.set_aside)) == (4096, {}, {})
    relaxed = found.relax()
    assert (relaxed.size, relaxed.opened) == (None, 1)

"""Partitions that a source gets later: their logs, where they begin, and crashes at any point of it."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.config import Topics
from app.errors import BrokerError
from app.event import Event
from app.features import Features, count
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.growth import SourcePartitions
from app.runtime.opener import TaskOpener
from app.runtime.task import TaskSettings
from app.sources import TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka

TOPICS = ("payments", "decisions", "letters", "late")


class Payment(Event, frozen=True):
    card: str


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")


class Crash(BaseException):
    """A process that is killed; no `except Exception` catches it."""


class SteppingOpener(TaskOpener[Payment]):
    step: Callable[[], None]

    def pin(self, partition: int) -> None:
        self.step()
        super().pin(partition)


class SteppingAdmin:
    """What is asked of an Admin here, over logs in memory."""

    def __init__(self, broker: MemoryKafka, step: Callable[[], None] = lambda: None) -> None:
        self._broker = broker
        self._step = step

    def ensure_partitions(self, partitions_by_topic: Mapping[str, int]) -> dict[str, int]:
        self._step()
        for topic, wanted in partitions_by_topic.items():
            for partition in range(wanted):
                self._broker.logs.setdefault(TopicPartition(topic, partition), [])
        return self.topics()

    def topics(self) -> dict[str, int]:
        return dict(Counter(each.topic for each in self._broker.logs))

    def close(self) -> None: ...


@dataclass
class World:
    """A source with two partitions of three records each, and their logs."""

    folder: Path
    broker: MemoryKafka = field(default_factory=MemoryKafka)

    def __post_init__(self) -> None:
        self.admin = SteppingAdmin(self.broker)
        self.admin.ensure_partitions(dict.fromkeys(TOPICS, 2))
        self.write(0, 1)

    def write(self, *partitions: int) -> None:
        for partition in partitions:
            for _ in range(3):
                self.broker.append("payments", partition, b"{}", b"c")

    def partitions(self, *, create: bool = True, step: Callable[[], None] = lambda: None) -> SourcePartitions:
        """Those of a new worker; `step` is called before each thing that it does to the world."""
        topics = Topics(source="payments", decisions="decisions", dead_letters="letters", late="late", create=create)
        return SourcePartitions(
            topics, self._opener(step), MemoryConsumer(self.broker), lambda: SteppingAdmin(self.broker, step)
        )

    def _opener(self, step: Callable[[], None]) -> SteppingOpener:
        pipeline = Pipeline(source=Payment, features=[CardHistory])
        store = CheckpointStore(str(self.folder), "fraud")
        consumer = MemoryConsumer(self.broker)
        settings = TaskSettings("fraud", "payments")
        opener = SteppingOpener(pipeline, settings, "decisions", store, "latest", consumer)
        opener.step = step
        return opener

    def begin(self, partition: int) -> int:
        return self._opener(lambda: None).open(partition).task.next_offset


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_source_that_has_not_grown_is_all_there_is_to_work_on(world: World) -> None:
    partitions = world.partitions()
    assert partitions.look() == partitions.look() == [0, 1]
    assert [world.begin(partition) for partition in (0, 1)] == [3, 3], "the latest, as configured"


def test_a_new_partition_gets_its_logs_and_begins_at_its_first_record_whatever_the_start_is(world: World) -> None:
    partitions = world.partitions()
    partitions.look()
    world.admin.ensure_partitions({"payments": 4})
    world.write(2)
    assert partitions.look() == [0, 1, 2, 3]
    assert world.admin.topics() == dict.fromkeys(TOPICS, 4)
    assert [world.begin(partition) for partition in (2, 3)] == [0, 0]


def test_so_does_one_that_was_added_while_nobody_ran(world: World) -> None:
    world.begin(0)
    world.admin.ensure_partitions({"payments": 3})
    world.write(2)
    assert world.partitions().look() == [0, 1, 2]
    assert world.begin(2) == 0


def test_a_key_that_moves_is_told_to_lose_its_past(world: World, caplog: pytest.LogCaptureFixture) -> None:
    partitions = world.partitions()
    partitions.look()
    world.admin.ensure_partitions({"payments": 3})
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        partitions.look()
        partitions.look()
    [told] = [each.getMessage() for each in caplog.records]
    assert told.startswith("payments has 3 partitions now, 1 of them new: a key that its producers send to another")


@pytest.mark.parametrize("crash_at", range(6))
def test_a_crash_at_any_point_loses_no_record_of_a_new_partition(world: World, crash_at: int) -> None:
    steps = iter(range(6))

    def step() -> None:
        if next(steps) == crash_at:
            raise Crash

    partitions = world.partitions(step=step)
    partitions.look()
    world.admin.ensure_partitions({"payments": 4})
    world.write(2, 3)
    with pytest.raises(Crash) if crash_at < 5 else nullcontext():
        partitions.look()
    assert world.partitions().look() == [0, 1, 2, 3]
    assert [world.begin(partition) for partition in (2, 3)] == [0, 0]


def test_two_workers_that_see_it_at_the_same_time_pin_the_same(world: World) -> None:
    workers = [world.partitions(), world.partitions()]
    for each in workers:
        each.look()
    world.admin.ensure_partitions({"payments": 3})
    world.write(2)
    assert [each.look() for each in workers] == [[0, 1, 2]] * 2
    assert len(list((world.folder / "fraud" / "payments-2").iterdir())) == 1


def test_where_topics_are_not_to_be_made_a_new_partition_waits_for_its_logs_and_that_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    partitions = world.partitions(create=False)
    partitions.look()
    world.admin.ensure_partitions({"payments": 3})
    world.write(2)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert partitions.look() == partitions.look() == [0, 1]
    [told] = [each.getMessage() for each in caplog.records]
    assert "nobody reads those beyond 1, for they have no logs: add partitions to letters, late, decisions, or" in told
    world.admin.ensure_partitions({"decisions": 3})
    assert partitions.look() == [0, 1]
    world.admin.ensure_partitions({"letters": 3, "late": 3})
    assert partitions.look() == [0, 1, 2]
    assert world.begin(2) == 0


def test_a_broker_that_is_away_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    partitions = world.partitions()
    partitions.look()
    world.admin.ensure_partitions({"payments": 3})
    with monkeypatch.context() as patched:
        patched.setattr(SteppingAdmin, "ensure_partitions", _refuse)
        with pytest.raises(BrokerError):
            partitions.look()
    assert partitions.look() == [0, 1, 2]


def _refuse(*_: object) -> None:
    raise BrokerError("away")

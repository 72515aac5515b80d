"""Opening a task: the newest checkpoint, the tail of the decision log, and where the source goes on."""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from app.errors import BrokerError, LogError
from app.event import Event
from app.features import Features, count
from app.log.frame import Decided, Frame, FrameHeader, Stages, encode_frame
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint, CheckpointStore
from app.runtime.opener import Opened, TaskOpener, describe
from app.runtime.task import Outcome, TaskSettings, decide
from app.sources import TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka

SOURCE, LOG = TopicPartition("payments", 0), TopicPartition("decisions", 0)
START_MS = 1_600_000_000_000
STAGES = Stages(1.0, 2.0, 3.0, 4.0, 5.0)


class Payment(Event, frozen=True):
    card: str


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")


class CardLately(Features, of=Payment, by="card"):
    lately = count(last="1m")


class Kept(MemoryConsumer):
    """Reads logs whose beginning retention may have deleted."""

    kept_from: dict[TopicPartition, int]

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self.kept_from.get(each, 0) for each in partitions}


class World:
    """A source of 20 payments of one card, a decision log, and checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryKafka()
        for topic in ("payments", "decisions"):
            self.broker.create(topic, 1)
        self.store = CheckpointStore(str(folder), "fraud")
        self.kept_from: dict[TopicPartition, int] = {}
        for offset in range(20):
            record = {"id": str(offset), "time": START_MS + offset, "card": "c"}
            self.broker.append("payments", 0, json.dumps(record).encode(), b"c")

    def open(
        self,
        start: Literal["earliest", "latest"] = "earliest",
        features: type[Features] = CardHistory,
        lateness_ms: int = 3_600_000,
    ) -> Opened[Payment]:
        consumer = Kept(self.broker)
        consumer.kept_from = self.kept_from
        settings = TaskSettings("fraud", "payments", lateness_ms, max_ahead_ms=10**12)
        pipeline = Pipeline(source=Payment, features=[features])
        return TaskOpener(pipeline, settings, "decisions", self.store, start, consumer).open(0)

    def log(self, first: int, last: int) -> None:
        """Appends a frame that covers these offsets; nobody looks inside it here."""
        empty = np.empty(0, dtype=np.int64)
        rows = Decided(empty, empty, {}, {}, {}, empty.astype(np.int8), [], {})
        header, value = encode_frame(Frame(FrameHeader("fraud", "payments", 0, first, last, 0, 0, 0), STAGES, rows))
        self.broker.append("decisions", 0, value, headers=[header])

    def checkpoint(self, offset: int, log_offset: int) -> None:
        """What a task that has read up to `offset` saves."""
        task = self.open().task
        consumer = MemoryConsumer(self.broker)
        consumer.assign({SOURCE: task.next_offset})
        for records in consumer.poll(offset - task.next_offset, 0):
            task.admit(records)
        self.store.save(task.snapshot(log_offset))

    def saved(self) -> list[int]:
        return [each.position.offset for each in self.store.load("payments", 0) if isinstance(each, Checkpoint)]

    def go_on(self, opened: Opened[Payment]) -> Frame | None:
        """Reads everything that is left, as the loop would."""
        consumer = MemoryConsumer(self.broker)
        consumer.assign({SOURCE: opened.task.next_offset})
        [records] = consumer.poll(1_000, 0)
        part = opened.task.admit(records)
        settings = TaskSettings("fraud", "payments")
        pipeline = Pipeline(source=Payment, features=[CardHistory])
        return decide(pipeline, settings, part, Outcome({}, {}, "rules"), STAGES) if part else None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def standing(opened: Opened[Any]) -> tuple[int, int, int]:
    return opened.task.next_offset, opened.task.decided_through, opened.log_offset


def test_without_anything_it_starts_at_the_earliest_record(world: World) -> None:
    world.kept_from = {SOURCE: 4}
    assert standing(world.open("earliest")) == (4, 3, 0)


def test_or_behind_the_latest(world: World) -> None:
    assert standing(world.open("latest")) == (20, 19, 0)


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_where_a_partition_began_is_pinned_at_once(world: World, start: Literal["earliest", "latest"]) -> None:
    first = standing(world.open(start))
    for _ in range(5):
        world.broker.append("payments", 0, b"{}", b"c")
    assert standing(world.open(start)) == first
    assert world.saved() == [first[0]]


def test_an_empty_topic_starts_at_its_first_record(world: World) -> None:
    world.broker.logs[SOURCE].clear()
    assert standing(world.open("latest")) == (0, -1, 0)
    assert standing(world.open("earliest")) == (0, -1, 0)


def test_a_lost_checkpoint_is_rebuilt_from_the_beginning_even_where_the_start_is_the_latest(world: World) -> None:
    world.log(0, 9)
    world.log(10, 14)
    opened = world.open("latest")
    assert standing(opened) == (0, 14, 2)
    frame = world.go_on(opened)
    assert frame is not None
    assert (frame.header.first, frame.header.last) == (15, 19)
    assert frame.decided.features["payments"].tolist() == [16, 17, 18, 19, 20]


def test_a_checkpoint_goes_on_and_the_log_tells_how_far_events_are_decided(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    world.log(0, 9)
    world.log(10, 14)
    world.log(3, 9)  # from a worker that was thought dead
    opened = world.open()
    assert standing(opened) == (8, 14, 3)
    frame = world.go_on(opened)
    assert frame is not None
    assert frame.decided.features["payments"].tolist() == [16, 17, 18, 19, 20]


def test_a_foreign_record_in_the_log_is_an_error_unless_it_lies_before_the_checkpoint_s_place(world: World) -> None:
    world.checkpoint(5, log_offset=2)
    world.log(0, 4)
    world.broker.append("decisions", 0, b"not a frame")
    world.log(5, 11)
    assert standing(world.open()) == (5, 11, 3)
    world.broker.append("decisions", 0, b"not a frame")
    with pytest.raises(LogError, match="no 'headrace' header; was something else written to this topic"):
        world.open()


def test_a_log_behind_its_checkpoint_changes_nothing(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    world.log(0, 3)
    assert standing(world.open()) == (8, 7, 1)


def test_a_log_that_was_shortened_by_retention_still_tells_its_end(world: World) -> None:
    world.checkpoint(2, log_offset=0)
    for first in range(0, 12, 3):
        world.log(first, first + 2)
    world.kept_from = {LOG: 3}
    assert standing(world.open()) == (2, 11, 4)


def test_records_that_retention_deleted_unread_are_told_and_covered_by_the_next_frame(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.checkpoint(3, log_offset=0)
    world.log(0, 2)
    world.kept_from = {SOURCE: 10}
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        opened = world.open()
    assert "payments/0: records 3..9 were deleted by the topic's retention before they were read" in caplog.text
    assert standing(opened) == (10, 2, 1)
    frame = world.go_on(opened)
    assert frame is not None
    assert (frame.header.first, frame.header.last, frame.header.decided) == (3, 19, 10)


def test_a_checkpoint_beyond_the_end_of_its_source_is_refused_with_the_remedy(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    del world.broker.logs[SOURCE][5:]
    with pytest.raises(
        BrokerError, match="payments/0 ends at offset 5, but is decided up to 8: the topic was made anew"
    ):
        world.open()


@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("end", [0, 5, 19])
def test_a_decision_log_beyond_the_end_of_its_source_is_refused_because_it_would_swallow_new_events(
    world: World, start: Literal["earliest", "latest"], end: int
) -> None:
    world.log(0, 19)
    del world.broker.logs[SOURCE][end:]
    with pytest.raises(BrokerError, match="remove the pipeline's checkpoints and its decision log, or give"):
        world.open(start)
    assert world.saved() == []


def test_a_source_decided_to_its_very_end_is_not_refused(world: World) -> None:
    world.log(0, 19)
    assert standing(world.open()) == (0, 19, 1)


@pytest.mark.parametrize("change", [{"features": CardLately}, {"lateness_ms": 60_000}])
def test_a_checkpoint_of_other_features_or_lateness_is_told_and_rebuilt(
    world: World, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    world.checkpoint(8, log_offset=0)
    world.log(0, 9)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        opened = world.open(**change)
    assert "the checkpoint of payments[0] at offset 8 is of pipeline 'fraud' with features" in caplog.text
    assert standing(opened) == (0, 9, 1)
    assert opened.task.keys == 0


def test_a_torn_checkpoint_is_told_and_the_older_one_taken(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.checkpoint(4, log_offset=0)
    world.checkpoint(8, log_offset=0)
    newest = max(tmp_path.rglob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert standing(world.open()) == (4, 3, 0)
    assert "is torn" in caplog.text


def test_one_line_says_where_it_goes_on(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    world.log(0, 14)
    assert describe(world.open()) == "partition 0: goes on at offset 8, 7 events are decided already"

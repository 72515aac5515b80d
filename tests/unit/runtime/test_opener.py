"""Opening a task: the newest checkpoint, the tail of the decision log, and where the source goes on."""

import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from app.config import OnChange
from app.errors import BrokerError, CheckpointError, LogError
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


class CardLife(Features, of=Payment, by="card"):
    orders = count()


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
        features: Sequence[type[Features]] = (CardHistory,),
        lateness_ms: int = 3_600_000,
        on_change: OnChange = "rebuild",
    ) -> Opened[Payment]:
        self.consumer = consumer = Kept(self.broker)
        consumer.kept_from = self.kept_from
        settings = TaskSettings("fraud", "payments", lateness_ms, max_ahead_ms=10**12)
        pipeline = Pipeline(source=Payment, features=features)
        opener = TaskOpener(pipeline, settings, "decisions", self.store, start, consumer, on_change)
        return opener.open(0)

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

    def go_on(self, opened: Opened[Payment], features: Sequence[type[Features]] = (CardHistory,)) -> Frame | None:
        """Reads everything that is left, as the loop would."""
        consumer = MemoryConsumer(self.broker)
        consumer.assign({SOURCE: opened.task.next_offset})
        [records] = consumer.poll(1_000, 0)
        part = opened.task.admit(records)
        settings = TaskSettings("fraud", "payments")
        pipeline = Pipeline(source=Payment, features=features)
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


def features_behind(world: World, opened: Opened[Payment], *features: type[Features]) -> dict[str, list[float]]:
    frame = world.go_on(opened, features)
    assert frame is not None
    return {name: column.tolist() for name, column in frame.decided.features.items()}


def test_a_class_that_is_added_is_rebuilt_from_the_source_and_the_others_keep_their_state(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.checkpoint(8, log_offset=0)
    world.log(0, 9)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        opened = world.open(features=[CardLife, CardHistory])
    assert "payments/0: rebuilds the state of CardLife from offsets 0..7" in caplog.text
    assert standing(opened) == (8, 9, 1)
    assert world.consumer.positions == {}
    found = features_behind(world, opened, CardLife, CardHistory)
    assert found == {"orders": list(range(11, 21)), "payments": list(range(11, 21))}


def test_a_class_that_is_removed_needs_no_reading(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.checkpoint(8, log_offset=0)
    world.kept_from = {SOURCE: 8}
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert standing(world.open(features=[])) == (8, 7, 0)
    assert caplog.text == ""


def test_another_lateness_rebuilds_everything(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    opened = world.open(lateness_ms=60_000)
    assert features_behind(world, opened, CardHistory) == {"payments": list(range(9, 21))}


def test_what_was_rebuilt_is_saved_at_once_so_that_no_crash_repeats_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.checkpoint(8, log_offset=0)
    world.open(features=[CardLife])
    caplog.clear()
    world.kept_from = {SOURCE: 8}
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        opened = world.open(features=[CardLife])
    assert caplog.text == ""
    assert features_behind(world, opened, CardLife) == {"orders": list(range(9, 21))}


def test_a_change_that_the_source_cannot_make_good_is_refused_by_name_with_the_remedy(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    world.kept_from = {SOURCE: 5}
    with pytest.raises(
        CheckpointError,
        match=r"payments/0: the state of CardLife and CardLately, which changed, cannot be rebuilt: records 0\.\.4, "
        r"which its windows look back on, are deleted; undo the change, .*set checkpoints\.on_change to 'rebuild_part",
    ):
        world.open(features=[CardHistory, CardLife, CardLately])
    assert world.saved() == [8, 0]


def test_or_is_made_in_part_where_the_yaml_says_so_and_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.checkpoint(8, log_offset=0)
    world.kept_from = {SOURCE: 5}
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        opened = world.open(features=[CardHistory, CardLife], on_change="rebuild_partly")
    assert "the state of CardLife is rebuilt in part only: records 0..4, which its windows look back on" in caplog.text
    found = features_behind(world, opened, CardHistory, CardLife)
    assert found == {"payments": list(range(9, 21)), "orders": list(range(4, 16))}


def test_a_window_that_the_source_still_holds_is_rebuilt_though_older_records_are_deleted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.broker.logs[SOURCE].clear()
    for minute in range(300):
        record = {"id": str(minute), "time": START_MS + minute * 60_000, "card": "c"}
        world.broker.append("payments", 0, json.dumps(record).encode(), b"c")
    task = world.open().task
    consumer = MemoryConsumer(world.broker)
    consumer.assign({SOURCE: 0})
    for _ in range(28):
        task.admit(*consumer.poll(10, 0))
        world.store.save(task.snapshot(0))
    world.kept_from = {SOURCE: 200}  # the windows after offset 280 begin an hour of lateness and a minute before
    opened = world.open(features=[CardLately])
    assert standing(opened)[0] == 280
    assert features_behind(world, opened, CardLately) == {"lately": [1.0] * 20}
    with pytest.raises(CheckpointError, match="the state of CardHistory and CardLately, which changed, cannot be"):
        world.open(features=[CardHistory, CardLately], lateness_ms=7_200_000)


def test_a_change_is_refused_where_the_yaml_says_so(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    with pytest.raises(
        CheckpointError,
        match=r"payments/0: its checkpoint at offset 8 has no state of CardLife as declared now, and "
        r"checkpoints\.on_change is 'refuse'; undo the change, or set it to 'rebuild'",
    ):
        world.open(features=[CardHistory, CardLife], on_change="refuse")
    assert standing(world.open(on_change="refuse")) == (8, 7, 0)


def test_a_change_that_is_rolled_back_goes_on_from_the_checkpoint_before_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.checkpoint(8, log_offset=0)
    changed = world.open(features=[CardLife]).task
    consumer = MemoryConsumer(world.broker)
    consumer.assign({SOURCE: 8})
    changed.admit(*consumer.poll(4, 0))
    world.store.save(changed.snapshot(0))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert standing(world.open()) == (8, 7, 0)
    assert caplog.text == ""
    world.kept_from = {SOURCE: 9}
    with pytest.raises(CheckpointError, match=r"records 0\.\.8, which its windows look back on, are deleted"):
        world.open()


@pytest.mark.parametrize(
    ("kept_from", "meaning"),
    [
        (0, "which it still holds whole: features come out as they were"),
        (4, r"of which records 0\.\.3 are deleted: features know nothing of them, those with a window until"),
    ],
)
def test_when_no_checkpoint_is_left_the_state_is_rebuilt_and_what_that_means_is_said_loudly(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept_from: int, meaning: str
) -> None:
    world.checkpoint(8, log_offset=0)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(b"")
    world.log(0, 9)
    world.kept_from = {SOURCE: kept_from}
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        opened = world.open()
    assert re.search(
        f"payments/0: no checkpoint is left, so its state is rebuilt from the source, {meaning}", caplog.text
    )
    assert standing(opened) == (kept_from, 9, 1)
    assert features_behind(world, opened, CardHistory) == {"payments": [at - kept_from for at in range(11, 21)]}


def test_a_lost_pin_of_a_partition_that_began_at_the_latest_skips_nothing(world: World, tmp_path: Path) -> None:
    world.open("latest")
    [pin] = tmp_path.rglob("*.safetensors")
    pin.write_bytes(b"")
    world.broker.append("payments", 0, b"{}", b"c")
    assert standing(world.open("latest")) == (0, -1, 0)


def test_one_line_says_where_it_goes_on(world: World) -> None:
    world.checkpoint(8, log_offset=0)
    world.log(0, 14)
    assert describe(world.open()) == "partition 0: goes on at offset 8, 7 events are decided already"

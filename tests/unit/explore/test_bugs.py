"""Bugs put into the product on purpose: the explorer finds each within few schedules."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from app.actions.loop import SinkLoop
from app.actions.position import to_committed
from app.actions.publish import Publisher
from app.actions.upsert import Upserter
from app.actions.writer import Batch
from app.log.frame import Cursor, Frame
from app.runtime.books import Books
from app.runtime.checkpoint import Checkpoint, CheckpointStore
from app.runtime.held import Held
from app.runtime.loop import StreamLoop
from app.runtime.opener import TaskOpener
from app.runtime.task import SEEN, Task
from tests.explore.explorer import explore

SCHEDULES = 400
Patch = Callable[[pytest.MonkeyPatch], None]


def save_before_logged(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint is saved as soon as it is taken."""
    checkpoint = Books._checkpoint

    def hurried(self: Books[Any], held: Held[Any], interval_ms: float, now_ms: float) -> None:
        logged_through, held.logged_through = held.logged_through, 2**60
        checkpoint(self, held, interval_ms, now_ms)
        held.logged_through = logged_through

    patch.setattr(Books, "_checkpoint", hurried)


def cursor_before_effect(patch: pytest.MonkeyPatch) -> None:
    """A sink's position is committed before it has carried out what leads there."""
    carry_out = SinkLoop._carry_out

    def hurried(self: SinkLoop[Any], batches: Sequence[Any]) -> Mapping[int, Any]:
        for batch in batches:
            self._places[batch.partition].position = batch.end
        self._commit(self._active)
        return carry_out(self, batches)

    patch.setattr(SinkLoop, "_carry_out", hurried)


def effect_without_cursor(patch: pytest.MonkeyPatch) -> None:
    """Rows are committed in a transaction of their own, before the cursor's."""
    write = Upserter._write

    def divided(self: Upserter, batch: Any, upsert: Callable[[Any], Any]) -> Any:
        with self._database.transaction():
            upsert(batch)
        return write(self, Batch(batch.partition, batch.start, batch.end), upsert)

    patch.setattr(Upserter, "_write", divided)


def state_without_its_offset(patch: pytest.MonkeyPatch) -> None:
    """What is saved holds one event more than its offset says."""
    save = CheckpointStore.save

    def shifted(self: CheckpointStore, checkpoint: Checkpoint) -> int:
        position = msgspec.structs.replace(checkpoint.position, offset=max(0, checkpoint.position.offset - 1))
        return save(self, msgspec.structs.replace(checkpoint, position=position))

    patch.setattr(CheckpointStore, "save", shifted)


def watermark_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint does not hold how far event time has come."""
    snapshot = Task.snapshot

    def timeless(self: Task[Any], log_offset: int) -> Checkpoint:
        found = snapshot(self, log_offset)
        return msgspec.structs.replace(found, position=msgspec.structs.replace(found.position, max_time_ms=None))

    patch.setattr(Task, "snapshot", timeless)


def ids_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint does not hold which ids were seen."""
    snapshot = Task.snapshot

    def forgetful(self: Task[Any], log_offset: int) -> Checkpoint:
        found = snapshot(self, log_offset)
        kept = {name: array for name, array in found.state.items() if not name.startswith(SEEN)}
        return msgspec.structs.replace(found, state=kept)

    patch.setattr(Task, "snapshot", forgetful)


def gap_in_the_frames(patch: pytest.MonkeyPatch) -> None:
    """Every seventh frame is not written."""
    write, numbers = StreamLoop._write, itertools.count(1)

    def forgetful(self: StreamLoop[Any], frame: Frame, reason: str) -> None:
        if next(numbers) % 7:
            write(self, frame, reason)

    patch.setattr(StreamLoop, "_write", forgetful)


def second_copies_count(patch: pytest.MonkeyPatch) -> None:
    """Readers apply what a zombie or a replay has logged again."""
    patch.setattr(Cursor, "admit", lambda self, header: True)
    patch.setattr(Cursor, "new_rows", lambda self, frame: slice(0, len(frame.decided.offsets)))


def answers_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """A micro-batch is logged as soon as its answer is there, whatever stands before it."""
    finish = StreamLoop._finish_batches

    def impatient(self: StreamLoop[Any]) -> None:
        self._in_flight = type(self._in_flight)(sorted(self._in_flight, key=lambda batch: not batch.answered))
        finish(self)

    patch.setattr(StreamLoop, "_finish_batches", impatient)


def published_beside_its_cursor(patch: pytest.MonkeyPatch) -> None:
    """Records and cursor are written in two transactions."""
    patch.setattr(Publisher, "_transact", transact_twice)


def transact_twice(self: Publisher[Any], producer: Any, batch: Batch[Any], _: Any) -> None:
    for delivery in batch.deliveries:
        self._send(producer, delivery)
    producer.commit(self._group, {})
    producer.commit(self._group, {self._log(batch.partition): to_committed(batch.end)})


def zombie_not_fenced(patch: pytest.MonkeyPatch) -> None:
    """A database's cursor is overwritten, wherever it stands."""
    patch.setattr(Upserter, "_take_cursor", lambda *_: None)


def decided_again(patch: pytest.MonkeyPatch) -> None:
    """What stands in the log behind a checkpoint is overlooked."""
    read = TaskOpener._read_decision_log

    def short_sighted(self: TaskOpener[Any], partition: int, checkpoint: Checkpoint | None) -> Any:
        end, through = read(self, partition, checkpoint)
        return end, None if through is None else through + 1

    patch.setattr(TaskOpener, "_read_decision_log", short_sighted)


@pytest.mark.parametrize(
    "bug",
    [
        save_before_logged,
        cursor_before_effect,
        effect_without_cursor,
        state_without_its_offset,
        watermark_forgotten,
        ids_forgotten,
        gap_in_the_frames,
        second_copies_count,
        answers_out_of_order,
        published_beside_its_cursor,
        zombie_not_fenced,
        decided_again,
    ],
)
def test_a_bug_that_is_put_in_is_found(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    assert explore(range(SCHEDULES)) is not None

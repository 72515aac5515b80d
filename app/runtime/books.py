"""What a stream worker keeps of its partitions beside deciding: checkpoints, committed offsets, lag."""

import logging
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

from app.event import Event
from app.runtime.held import Held
from app.runtime.opener import TaskOpener
from app.runtime.reader import SourceReader
from app.runtime.retry import failed_again

E = TypeVar("E", bound=Event)
logger = logging.getLogger("ray.serve")

COMMIT_INTERVAL_MS = 1_000.0
SURVEY_INTERVAL_MS = 1_000.0


class Books(Generic[E]):
    """Saves a checkpoint of each partition every so often, shows where each is, and looks up where the log ends.

    What takes long is done in threads: the broker is asked by `executor`, checkpoints are written by `saver`.
    """

    def __init__(self, opener: TaskOpener[Any], executor: Executor, saver: Executor, reader: SourceReader) -> None:
        self._opener = opener
        self._executor = executor
        self._saver = saver
        self._reader = reader
        self._next_commit_ms = self._next_survey_ms = 0.0
        self._survey: Future[dict[int, int]] | None = None

    def keep(self, held: Mapping[int, Held[E]], checkpoint_interval_ms: float, now_ms: float) -> None:
        for each in held.values():
            self._checkpoint(each, checkpoint_interval_ms, now_ms)
        if held and now_ms >= self._next_commit_ms:
            self._next_commit_ms = now_ms + COMMIT_INTERVAL_MS
            self._reader.commit({partition: each.logged_through + 1 for partition, each in held.items()})
        self._look_at_ends(held, now_ms)

    def save_last(self, held: Held[E]) -> None:
        """Waits for a checkpoint of a partition that is given away, if it lacks anything and all of it is logged."""
        if held.logged_through + 1 >= held.task.next_offset > held.checkpointed:
            error = self._saver.submit(self._opener.save, held.task.snapshot(held.log_offset)).exception()
            if error is not None:
                logger.error("partition %d goes on elsewhere from an older one: %s", held.task.partition, error)

    def _checkpoint(self, held: Held[E], interval_ms: float, now_ms: float) -> None:
        """Takes a snapshot when one is due, and saves it once everything that it reflects is logged."""
        if held.saving is not None and held.saving.done():
            note_saved(held, held.saving, now_ms)
        if held.task.next_offset <= held.checkpointed:
            held.current_ms = now_ms
        elif held.snapshot is None and now_ms >= held.checkpoint_due_ms:
            held.snapshot, held.snapshot_ms = held.task.snapshot(held.log_offset), now_ms
            held.checkpoint_due_ms = now_ms + interval_ms
        snapshot = held.snapshot
        if snapshot and held.saving is None and held.logged_through + 1 >= snapshot.position.offset:
            held.saving = self._saver.submit(self._opener.save, snapshot)

    def _look_at_ends(self, held: Mapping[int, Held[E]], now_ms: float) -> None:
        if self._survey is not None and self._survey.done():
            survey, self._survey = self._survey, None
            self._note_ends(held, {} if survey.exception() else survey.result(), now_ms)
        if self._survey is None and now_ms >= self._next_survey_ms and held:
            self._next_survey_ms = now_ms + SURVEY_INTERVAL_MS
            self._survey = self._executor.submit(self._opener.end_offsets, list(held))

    def _note_ends(self, held: Mapping[int, Held[E]], ends: Mapping[int, int], now_ms: float) -> None:
        for partition in held.keys() & ends.keys():
            held[partition].end_offset = ends[partition]
        if all(each.attempts is None for each in held.values()):  # what is read with care is read alone, and slowly
            self._reader.note_ends({each: held[each].task.next_offset for each in held}, ends, now_ms)


def note_saved(held: Held[E], saving: "Future[int]", now_ms: float) -> None:
    snapshot, held.snapshot, held.saving = held.snapshot, None, None
    failed, error = held.save_failed, saving.exception()
    if error is not None:
        held.save_failed = failed_again(failed, str(error), now_ms)
        held.checkpoint_due_ms = held.save_failed.retry_ms
        logger.error("%s; events go on, and it is tried again", error)
    elif snapshot is not None:
        held.checkpointed, held.current_ms = snapshot.position.offset, held.snapshot_ms
        held.checkpoint_bytes, held.save_failed = saving.result(), None
        if failed:
            seconds = (now_ms - failed.since_ms) / 1000
            logger.info(
                "the checkpoint of partition %d is written again, after %d failures in %.0f s",
                held.task.partition,
                failed.times,
                seconds,
            )

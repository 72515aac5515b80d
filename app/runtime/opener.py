"""Opening a task: from the newest checkpoint and the tail of the decision log to where the stream goes on."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from app.config import OnChange
from app.errors import BrokerError, CheckpointError
from app.event import Event
from app.log.frame import decode_header
from app.log.tail import read_to_end
from app.pipeline import Pipeline
from app.runtime.attempts import Attempts, reopened
from app.runtime.checkpoint import Checkpoint, CheckpointStore
from app.runtime.history import Milestone, latest_at
from app.runtime.rebuild import Fit, fit, needed_from, rebuild, up_to
from app.runtime.task import Task, TaskSettings
from app.sources import Consumer, Records, TopicPartition

E = TypeVar("E", bound=Event)
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Opened(Generic[E]):
    """A task ready to go on. `log_offset` is where the decision log of its partition ended when it was read,
    `end_offset` where the source did."""

    task: Task[E]
    log_offset: int
    end_offset: int
    attempts: Attempts


class TaskOpener(Generic[E]):
    """Opens tasks, with a consumer of its own. Blocks for as long as it takes: use it in a thread of its own."""

    def __init__(
        self,
        pipeline: Pipeline[E],
        settings: TaskSettings,
        decisions_topic: str,
        store: CheckpointStore,
        start: Literal["earliest", "latest"],
        consumer: Consumer,
        on_change: OnChange = "rebuild",
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._decisions_topic = decisions_topic
        self._store = store
        self._start = start
        self._consumer = consumer
        self._on_change = on_change

    def open(self, partition: int) -> Opened[E]:
        """The task at its newest whole checkpoint, or at the start of the source; and how far events are decided.

        State of features that have changed is made from the source first. Raises BrokerError or StoreError while one
        of them is away, and CheckpointError when the change is refused.
        """
        source = TopicPartition(self._settings.topic, partition)
        first = self._consumer.beginning_offsets([source])[source]
        checkpoint, refused = self._newest(partition, first)
        log_offset, logged_through = self._read_decision_log(partition, checkpoint)
        began = refused or logged_through is not None
        end_offset = self._consumer.end_offsets([source])[source]
        next_offset = self._next_offset(source, first, end_offset, checkpoint, logged_through, began)
        decided_through = next_offset - 1 if logged_through is None else logged_through
        attempts = reopened(self._store.noted(*source), next_offset, decided_through)
        self._store.note(*source, attempts)
        changed: Sequence[str] = ()
        if checkpoint:
            found = fit(self._pipeline, self._settings, checkpoint)
            changed = found.changed
            checkpoint = self._renewed(source, checkpoint, found, first, attempts.set_aside)
        elif began:
            logger.error("%s", _lost(source, first))
        task = Task(
            self._pipeline,
            self._settings,
            partition,
            next_offset=next_offset,
            decided_through=decided_through,
            checkpoint=checkpoint,
            set_aside=attempts.set_aside,
        )
        if checkpoint is None or changed:
            # Pins where this partition began, also for start: latest; and spares the next one to rebuild it again.
            self._store.save(task.snapshot(log_offset))
        return Opened(task, log_offset, end_offset, attempts)

    def pin(self, partition: int) -> None:
        """Lets a partition that was never opened begin at its first record, whatever `start` says."""
        if self._newest(partition, 0)[0] is None:
            task = Task(self._pipeline, self._settings, partition, next_offset=0, decided_through=-1)
            self._store.save(task.snapshot(log_offset=0))

    def end_offsets(self, partitions: list[int]) -> dict[int, int]:
        wanted = [TopicPartition(self._settings.topic, partition) for partition in partitions]
        return {each.partition: end for each, end in self._consumer.end_offsets(wanted).items()}

    def save(self, checkpoint: Checkpoint) -> int:
        return self._store.save(checkpoint)

    def note(self, partition: int, attempts: Attempts) -> None:
        self._store.note(self._settings.topic, partition, attempts)

    def close(self) -> None:
        self._consumer.close()

    def _newest(self, partition: int, first: int) -> tuple[Checkpoint | None, bool]:
        """The newest whole checkpoint, and whether any had to be refused.

        An older one that all features fit is preferred (a change was rolled back): to go on from it costs less than to
        rebuild, as long as the source still holds what came after it.
        """
        newest: Checkpoint | None = None
        refused = False
        for each in self._store.load(self._settings.topic, partition):
            if isinstance(each, CheckpointError):
                logger.error("%s", each)
                refused = True
            elif not fit(self._pipeline, self._settings, each).changed and (
                newest is None or each.position.offset >= first
            ):
                return each, refused
            else:
                newest = newest or each
        return newest, refused

    def _renewed(
        self,
        source: TopicPartition,
        checkpoint: Checkpoint,
        found: Fit,
        first: int,
        set_aside: Mapping[int, int],
    ) -> Checkpoint:
        """With the state of exactly what is declared now. Raises CheckpointError."""
        if not found.changed:
            return Checkpoint(checkpoint.position, found.kept)
        names, end = " and ".join(found.changed), checkpoint.position.offset
        if self._on_change == "refuse":
            raise CheckpointError(
                f"{source}: its checkpoint at offset {end} has no state of {names} as declared now, and "
                "checkpoints.on_change is 'refuse'; undo the change, or set it to 'rebuild'"
            )
        start = needed_from(found.features, self._settings, checkpoint)
        if start.offset < first and start.offset < end:
            lack = f"records {start.offset}..{min(first, end) - 1}, which its windows look back on, are deleted"
            if self._on_change == "rebuild":
                raise CheckpointError(
                    f"{source}: the state of {names}, which changed, cannot be rebuilt: {lack}; undo the change, "
                    "shorten the windows, or set checkpoints.on_change to 'rebuild_partly' and know these features to "
                    "be incomplete until their windows have passed"
                )
            logger.error("%s: the state of %s is rebuilt in part only: %s", source, names, lack)
            start = Milestone(min(first, end), latest_at(checkpoint.position.history, first).max_time_ms)
        logger.warning("%s: rebuilds the state of %s from offsets %d..%d", source, names, start.offset, end - 1)
        log = self._records(source, start.offset, end)
        return rebuild(self._pipeline, self._settings, checkpoint, start, log, set_aside)

    def _records(self, source: TopicPartition, start: int, end: int) -> Iterator[Records]:
        if start < end:
            yield from up_to(read_to_end(self._consumer, source, start), end)
            self._consumer.assign({})  # what lies beyond is not to be fetched

    def _read_decision_log(self, partition: int, checkpoint: Checkpoint | None) -> tuple[int, int | None]:
        log = TopicPartition(self._decisions_topic, partition)
        through = checkpoint.position.offset - 1 if checkpoint else None
        end = start = checkpoint.position.log_offset if checkpoint else 0
        for records in read_to_end(self._consumer, log, start):
            last = max(decode_header(headers).last for headers in records.headers())
            through = last if through is None else max(through, last)
            end = int(records.offsets[-1]) + 1
        return end, through

    def _next_offset(
        self,
        source: TopicPartition,
        first: int,
        end: int,
        checkpoint: Checkpoint | None,
        logged_through: int | None,
        began: bool,
    ) -> int:
        if logged_through is not None and logged_through >= end:
            raise BrokerError(
                f"{source} ends at offset {end}, but is decided up to {logged_through + 1}: the topic was made anew; "
                "remove the pipeline's checkpoints and its decision log, or give the pipeline another name"
            )
        if checkpoint is None:
            return end if self._start == "latest" and not began else first
        wanted = checkpoint.position.offset
        if wanted < first:
            logger.error(
                "%s: records %d..%d were deleted by the topic's retention before they were read; their effect on the "
                "features is lost",
                source,
                wanted,
                first - 1,
            )
        return max(wanted, first)


def _lost(source: TopicPartition, first: int) -> str:
    if first == 0:
        meaning = "which it still holds whole: features come out as they were"
    else:
        meaning = (
            f"of which records 0..{first - 1} are deleted: features know nothing of them, those with a window until "
            "it has passed, those without for good"
        )
    return f"{source}: no checkpoint is left, so its state is rebuilt from the source, {meaning}"


def describe(opened: Opened[Any]) -> str:
    """One line for the log."""
    task = opened.task
    replayed = max(0, task.decided_through + 1 - task.next_offset)
    care = "" if opened.attempts.size is None else ", with care: its last owners have died at this place"
    return (
        f"partition {task.partition}: goes on at offset {task.next_offset}, {replayed} events are decided already{care}"
    )

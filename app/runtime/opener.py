"""Opening a task: from the newest checkpoint and the tail of the decision log to where the stream goes on."""

import logging
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from app.errors import BrokerError
from app.event import Event
from app.log.frame import decode_header
from app.log.tail import read_to_end
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint, CheckpointStore, newest_fitting
from app.runtime.task import Task, TaskSettings, fingerprint
from app.sources import Consumer, TopicPartition

E = TypeVar("E", bound=Event)
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Opened(Generic[E]):
    """A task ready to go on. `log_offset` is where the decision log of its partition ended when it was read."""

    task: Task[E]
    log_offset: int


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
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._decisions_topic = decisions_topic
        self._store = store
        self._start = start
        self._consumer = consumer

    def open(self, partition: int) -> Opened[E]:
        """The task at its newest whole checkpoint, or at the start of the source; and how far events are decided."""
        checkpoint = self._checkpoint(partition)
        log_offset, logged_through = self._read_decision_log(partition, checkpoint)
        next_offset = self._next_offset(partition, checkpoint, logged_through)
        task = Task(
            self._pipeline,
            self._settings,
            partition,
            next_offset=next_offset,
            decided_through=next_offset - 1 if logged_through is None else logged_through,
            checkpoint=checkpoint,
        )
        if checkpoint is None:
            self._store.save(task.snapshot(log_offset))  # pins where this partition began, also for start: latest
        return Opened(task, log_offset)

    def pin(self, partition: int) -> None:
        """Lets a partition that was never opened begin at its first record, whatever `start` says."""
        if self._checkpoint(partition) is None:
            task = Task(self._pipeline, self._settings, partition, next_offset=0, decided_through=-1)
            self._store.save(task.snapshot(log_offset=0))

    def end_offsets(self, partitions: list[int]) -> dict[int, int]:
        wanted = [TopicPartition(self._settings.topic, partition) for partition in partitions]
        return {each.partition: end for each, end in self._consumer.end_offsets(wanted).items()}

    def save(self, checkpoint: Checkpoint) -> int:
        return self._store.save(checkpoint)

    def close(self) -> None:
        self._consumer.close()

    def _checkpoint(self, partition: int) -> Checkpoint | None:
        found, refused = newest_fitting(
            self._store,
            self._settings.pipeline,
            fingerprint(self._pipeline, self._settings),
            self._settings.topic,
            partition,
        )
        for error in refused:
            logger.warning("%s", error)
        return found

    def _read_decision_log(self, partition: int, checkpoint: Checkpoint | None) -> tuple[int, int | None]:
        log = TopicPartition(self._decisions_topic, partition)
        through = checkpoint.position.offset - 1 if checkpoint else None
        end = start = checkpoint.position.log_offset if checkpoint else 0
        for records in read_to_end(self._consumer, log, start):
            last = max(decode_header(headers).last for headers in records.headers())
            through = last if through is None else max(through, last)
            end = int(records.offsets[-1]) + 1
        return end, through

    def _next_offset(self, partition: int, checkpoint: Checkpoint | None, logged_through: int | None) -> int:
        source = TopicPartition(self._settings.topic, partition)
        first = self._consumer.beginning_offsets([source])[source]
        end = self._consumer.end_offsets([source])[source]
        if logged_through is not None and logged_through >= end:
            raise BrokerError(
                f"{source} ends at offset {end}, but is decided up to {logged_through + 1}: the topic was made anew; "
                "remove the pipeline's checkpoints and its decision log, or give the pipeline another name"
            )
        if checkpoint is None:
            return end if self._start == "latest" and logged_through is None else first
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


def describe(opened: Opened[Any]) -> str:
    """One line for the log."""
    task = opened.task
    replayed = max(0, task.decided_through + 1 - task.next_offset)
    return f"partition {task.partition}: goes on at offset {task.next_offset}, {replayed} events are decided already"

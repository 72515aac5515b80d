"""A partition that a stream worker has its hands on, and where that stands."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.event import Event
from app.runtime.attempts import Attempts
from app.runtime.checkpoint import Checkpoint
from app.runtime.retry import Failure
from app.runtime.task import Task

E = TypeVar("E", bound=Event)


@dataclass
class Held(Generic[E]):
    """A partition that the loop works on.

    `moved_ms` is when the log last got on with what was sent to it, `current_ms` when its newest checkpoint last lacked
    nothing. With `attempts` it is read with care, up to `care_until`; `read_ms` is when anything was read of it last,
    and `noting` is done when what is in hand is written down. Before `next_record` nothing is left to be read.
    """

    task: Task[E]
    log_offset: int
    logged_through: int
    sent_through: int
    moved_ms: float
    checkpointed: int
    checkpoint_due_ms: float
    current_ms: float
    snapshot: Checkpoint | None = None
    snapshot_ms: float = 0.0
    saving: "Future[int] | None" = None
    save_failed: Failure | None = None
    checkpoint_bytes: int | None = None
    end_offset: int | None = None
    leaving: bool = False
    attempts: Attempts | None = None
    noting: "Future[None] | None" = None
    next_record: int = 0
    care_until: int = 0
    read_ms: float = 0.0

    def standing(self, now_ms: float) -> dict[str, Any]:
        task = self.task
        done = self.logged_through + 1
        # The end was looked up a moment ago; what is done by now may lie beyond.
        end_offset = None if self.end_offset is None else max(self.end_offset, done)
        return {
            "partition": task.partition,
            "offset": done,
            "end_offset": end_offset,
            "lag": None if end_offset is None else end_offset - done,
            "watermark_ms": task.watermark_ms,
            "keys": task.keys,
            "state_bytes": task.state_bytes,
            "checkpoint_age_ms": max(0.0, now_ms - self.current_ms),
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoint_error": self.save_failed.error if self.save_failed else None,
        }

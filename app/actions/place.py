"""Places: how a loop stands in each of its partitions."""

import math
import random
from dataclasses import dataclass

from app.actions.backoff import backoff_ms
from app.actions.position import Position
from app.actions.status import PartitionStatus
from app.errors import HeadraceError


@dataclass
class Place:
    """One partition of a loop: active, that is read, or parked until `due_ms`: new, or failed and to be tried again.
    A dropped one is never due: it stays to be told of, until another assignment follows that of `dropped_under`.

    `position` is what is carried out, `committed` what the consumer group has of it; both None before they are known.
    """

    position: Position | None = None
    committed: Position | None = None
    committed_at_ms: float = 0.0
    due_ms: float | None = 0.0
    retries: int = 0
    error: HeadraceError | None = None
    lag: int | None = None
    dropped_under: int | None = None

    @property
    def active(self) -> bool:
        return self.due_ms is None

    @property
    def reached(self) -> Position:
        """The position of a place that is active."""
        assert self.position is not None, "an active place has a position"
        return self.position

    def resume(self, position: Position) -> None:
        self.position, self.due_ms = position, None

    def park(self, error: HeadraceError, now_ms: float, jitter: random.Random) -> bool:
        """To be resumed after a while, longer with each retry in a row. Returns whether the error is another one than
        the last time."""
        is_news = str(error) != str(self.error)
        self.retries += 1
        self.error = error
        self.due_ms = now_ms + backoff_ms(self.retries, jitter)
        return is_news

    def drop(self, error: HeadraceError, assignment: int) -> None:
        self.error, self.due_ms, self.dropped_under = error, math.inf, assignment

    def park_briefly(self) -> None:
        """To be resumed at once."""
        self.due_ms = 0.0

    def clear(self) -> int:
        """Forgets the failures; returns how many there were."""
        retries, self.retries, self.error = self.retries, 0, None
        return retries

    def note_end(self, end: int) -> None:
        self.lag = None if self.position is None else max(0, end - self.position.log_offset)

    def describe(self) -> PartitionStatus:
        applied, log_offset = self.position or (None, None)
        return PartitionStatus(applied, log_offset, self.lag, self.retries, str(self.error) if self.error else None)

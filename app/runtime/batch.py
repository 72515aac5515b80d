"""A micro-batch on its way from the source through the models to the decision log."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import ModelLateError
from app.event import Event
from app.inference import Scores
from app.runtime.task import Outcome, Slice

E = TypeVar("E", bound=Event)

NEVER_MS = float("inf")


@dataclass
class Batch(Generic[E]):
    """A micro-batch in flight. Its call is given up at `due_ms`, or at `deadline_ms` when there is a fallback.

    `deaths` counts its calls that the model's replicas died of. One such makes it a suspect, with which no new batch is
    started: another death may have been that of a neighbour's call, three cannot.
    """

    parts: Sequence[Slice[E]]
    fetched_ms: float
    featured_ms: float
    queued_ms: float
    work_ms: float
    answer: "Future[Scores] | None" = None
    outcome: Outcome | None = None
    scored_ms: float = 0.0
    due_ms: float = NEVER_MS
    deadline_ms: float = NEVER_MS
    given_up: ModelLateError | None = None
    deaths: int = 0
    suspect: bool = False
    attempts: int = 0
    retry_ms: float | None = None

    @property
    def rows(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    @property
    def answered(self) -> bool:
        return self.answer is None or self.answer.done()

    def give_up(self, now_ms: float) -> None:
        """Waits no longer for the answer, and lets the models know."""
        assert self.answer is not None
        self.given_up = ModelLateError(f"the models gave no answer in {now_ms - self.queued_ms:.0f} ms")
        self.answer.cancel()

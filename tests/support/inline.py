"""Models of a stream loop that answer at once, in the caller's thread."""

from collections.abc import Callable
from concurrent.futures import Future

from app.event import Columns
from app.inference import Scores
from app.testing.process import settle


class InlineModels:
    """Answers every call at once with what `predict` returns, or fails it with what `predict` raises."""

    def __init__(self, predict: Callable[[Columns], Columns]) -> None:
        self._predict = predict
        self.rows_asked = 0

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        self.rows_asked += rows
        future: Future[Scores] = Future()
        settle(future, lambda: Scores(self._predict(columns), {"risk": "v1"}))
        return future

"""Parts of a stream loop that do everything at once, in the caller's thread."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from app.event import Columns
from app.inference import Scores


class InlineExecutor(Executor):
    """Runs what it is given before `submit` returns."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future carries it to whoever asks
            future.set_exception(error)
        return future


class InlineModels:
    """Answers every call at once with what `predict` returns, or fails it with what `predict` raises."""

    def __init__(self, predict: Callable[[Columns], Columns]) -> None:
        self._predict = predict
        self.rows_asked = 0

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        self.rows_asked += rows
        future: Future[Scores] = Future()
        try:
            future.set_result(Scores(self._predict(columns), {"risk": "v1"}))
        except Exception as error:  # noqa: BLE001 - as with a real call
            future.set_exception(error)
        return future

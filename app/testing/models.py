"""Models in simulated time: plain functions that answer after a while, too late, or not at all."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from app.errors import DeclarationError, InferenceError
from app.event import Columns
from app.inference import Scores
from app.pipeline import model_class
from app.testing.clock import Clock

Predict = Callable[[Columns], Any]
VERSION = "simulated"


@dataclass(frozen=True)
class Delayed:
    """A model that answers `delay_ms` later than it would."""

    model: Any
    delay_ms: float


def _never(columns: Columns) -> Any:
    raise InferenceError("the model is not asked when its answer would come too late")


def failing(columns: Columns) -> Any:
    """A model that fails on every call."""
    raise InferenceError("the model fails, as the test wants")


late = Delayed(_never, float("inf"))
"""A model whose answer always comes too late."""


class Models:
    """All models of a pipeline, as every worker reaches them.

    `given` has for each name a function from the input columns to an array (or to columns, where it has several
    outputs), an object with such a method `predict`, or one of these Delayed.
    """

    def __init__(self, clock: Clock, declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        for name in declared.keys() ^ given.keys():
            raise DeclarationError(
                f"the pipeline has no model {name!r}; it has {', '.join(declared) or 'none'}"
                if name in given
                else f"the pipeline asks the model {name!r}; say what it answers: {name}=lambda columns: …"
            )
        self._clock = clock
        self._declared = {name: model_class(model) for name, model in declared.items()}
        self._given = dict(given)
        self.failing_until_ms = self.slow_until_ms = 0.0
        self.slow_by_ms = 0.0

    def ask(self, columns: Columns, rows: int, *, delay_ms: float) -> "Future[Scores]":
        """The future has the answer when it is due, or InferenceError, unless the caller gives it up before."""
        future: Future[Scores] = Future()
        delay_ms += sum(each.delay_ms for each in self._given.values() if isinstance(each, Delayed))
        if self._clock.now_ms < self.slow_until_ms:
            delay_ms += self.slow_by_ms
        self._clock.after(delay_ms, partial(_resolve, future, partial(self._answer, columns, rows)))
        return future

    def _answer(self, columns: Columns, rows: int) -> Scores:
        if self._clock.now_ms < self.failing_until_ms:
            raise InferenceError("the models are away")
        scores: Columns = {}
        for name, given in self._given.items():
            inputs = {column: columns[column] for column in self._declared[name].inputs}
            scores |= _outputs(name, self._declared[name].outputs, _predict(given)(inputs), rows)
        return Scores(scores, dict.fromkeys(self._given, VERSION))


def _predict(given: Any) -> Predict:
    model = given.model if isinstance(given, Delayed) else given
    return getattr(model, "predict", model)  # type: ignore[no-any-return]


def _outputs(name: str, outputs: tuple[str, ...], answer: Any, rows: int) -> Columns:
    columns = answer if isinstance(answer, Mapping) else {outputs[0]: answer}
    found = {output: np.asarray(columns[output]) for output in outputs if output in columns}
    for output in outputs:
        if output not in found or found[output].shape[:1] != (rows,):
            raise InferenceError(f"the model {name!r} answered {rows} rows with {columns!r}; it must give {output!r}")
    return found


def _resolve(future: "Future[Scores]", answer: Callable[[], Scores]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(answer())
    except InferenceError as error:
        future.set_exception(error)
    except Exception as error:  # noqa: BLE001 - whatever a model raises, its caller gets as a model's failure
        future.set_exception(InferenceError(f"the model failed: {error!r}"))

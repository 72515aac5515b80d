"""Inference: one Serve call per micro-batch and model; a batch that fails is halved until its poison rows are found.

Calls are made on an event loop, because Serve's fast mode (RAY_SERVE_THROUGHPUT_OPTIMIZED) allows them nowhere else;
the worker's thread gets a future, and gives the calls up by cancelling it.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from app.breaker import Breaker, BreakerState
from app.config import BreakerTuning
from app.errors import BreakerOpenError, InferenceError, ModelDiedError, ModelShedError
from app.event import Columns
from app.pipeline import model_class


class Answer(Protocol):
    """What a model server returns: one row of every column for each row asked about, and which weights it used."""

    @property
    def columns(self) -> Columns: ...
    @property
    def version(self) -> str: ...


class Scores(NamedTuple):
    """The answers of all models to one micro-batch. `failed` are the poison rows, each with what a model raised for it
    alone; their scores mean nothing."""

    columns: Columns
    versions: Mapping[str, str]
    failed: Mapping[int, Exception] = {}


class ModelRaisedError(InferenceError):
    """A model raised, or answered with something that is no answer: the fault may lie with a row that was asked."""


class ModelCalls:
    """Asks every model of a pipeline about a micro-batch. `handles` are Serve handles by the model's name; `models` the
    deployments as declared."""

    def __init__(
        self,
        handles: Mapping[str, Any],
        models: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        breaker: BreakerTuning,
        now_ms: Callable[[], float],
    ) -> None:
        self._models = [
            _Model(name, handle, model_class(models[name]), breaker, now_ms) for name, handle in handles.items()
        ]
        self._loop = loop

    def tune(self, breaker: BreakerTuning) -> None:
        for model in self._models:
            model.breaker.failures, model.breaker.pause_ms = breaker.failures, breaker.pause_ms

    def breakers(self) -> dict[str, BreakerState]:
        return {model.name: model.breaker.state for model in self._models}

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        """Starts the calls and returns at once. The future raises InferenceError when any model fails for good.

        Cancelled, it cancels the calls; each model that had not answered by then counts that as a failure.
        """
        return asyncio.run_coroutine_threadsafe(self._ask_all(columns, rows), self._loop)

    async def _ask_all(self, columns: Columns, rows: int) -> Scores:
        asked = (model.ask(columns, rows) for model in self._models)
        answers = await asyncio.gather(*asked, return_exceptions=True)  # each one's breaker is to learn of its own end
        merged: Columns = {}
        versions: dict[str, str] = {}
        failed: dict[int, Exception] = {}
        for model, answer in zip(self._models, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            merged |= answer.columns
            versions[model.name] = answer.version
            failed |= answer.failed
        return Scores(merged, versions, failed)


class _Found(NamedTuple):
    """One model's outputs for all rows of a micro-batch."""

    columns: Columns
    version: str
    failed: Mapping[int, Exception] = {}


class _Model:
    """One model of a pipeline, seen from a worker."""

    def __init__(
        self, name: str, handle: Any, declared: Any, breaker: BreakerTuning, now_ms: Callable[[], float]
    ) -> None:
        self.name = name
        self.breaker = Breaker(breaker.failures, breaker.pause_ms)
        self._score = handle.score  # each look-up of a method on a handle makes a new handle
        self._inputs = tuple(declared.inputs)
        self._outputs = tuple(declared.outputs)
        self._now_ms = now_ms
        self._good_row: Columns | None = None

    async def ask(self, columns: Columns, rows: int) -> _Found:
        if not self.breaker.admit(self._now_ms()):
            raise BreakerOpenError(f"the model {self.name!r} has failed too often and is left alone for a while")
        inputs = {column: columns[column] for column in self._inputs}
        try:
            found = await self._ask_or_bisect(inputs, rows)
        except (InferenceError, asyncio.CancelledError):
            self.breaker.fail(self._now_ms())
            raise
        self.breaker.succeed()
        return found

    async def _ask_or_bisect(self, inputs: Columns, rows: int) -> _Found:
        try:
            answer = await self._call(inputs, rows)
        except ModelRaisedError as error:
            return await self._bisect(inputs, rows, error)
        self._good_row = {name: column[:1].copy() for name, column in inputs.items()}
        return _Found({output: answer.columns[output] for output in self._outputs}, answer.version)

    async def _bisect(self, inputs: Columns, rows: int, error: ModelRaisedError) -> _Found:
        """Sets the poison rows aside and answers the others. Raises `error` when the model fails on rows that are
        known to be good, or on whatever it is asked."""
        good = await self._ask_good_row(inputs, rows)
        if good is None:
            raise error
        answered: dict[int, Answer] = {}
        failed: dict[int, Exception] = {}
        await self._halve(inputs, 0, rows, error, answered, failed)
        versions = {answer.version for answer in answered.values()} or {good.version}
        if len(versions) > 1:
            raise InferenceError(f"the model {self.name!r} took new weights between two halves of a micro-batch")
        found: Columns = {}
        for output in self._outputs:
            like = good.columns[output]
            found[output] = np.zeros((rows, *like.shape[1:]), like.dtype)
            for start, answer in answered.items():
                found[output][start : start + len(answer.columns[output])] = answer.columns[output]
        return _Found(found, versions.pop(), failed)

    async def _ask_good_row(self, inputs: Columns, rows: int) -> Answer | None:
        """The answer to a row that the model has answered before, or to one of this batch if it never has."""
        candidates = [_rows(inputs, row, row + 1) for row in sorted({0, rows // 2, rows - 1})] if rows > 1 else []
        for candidate in [self._good_row] if self._good_row else candidates:
            try:
                return await self._call(candidate, 1)
            except ModelRaisedError:
                continue
        return None

    async def _halve(
        self,
        inputs: Columns,
        start: int,
        end: int,
        error: ModelRaisedError,
        answered: dict[int, Answer],
        failed: dict[int, Exception],
    ) -> None:
        """Rows start..end failed together with `error`; asks about each half, both at the same time."""
        if end - start == 1:
            failed[start] = error
            return
        middle = (start + end) // 2

        async def ask(start: int, end: int) -> None:
            try:
                answered[start] = await self._call(_rows(inputs, start, end), end - start)
            except ModelRaisedError as error:
                await self._halve(inputs, start, end, error, answered, failed)

        await asyncio.gather(ask(start, middle), ask(middle, end))

    async def _call(self, inputs: Columns, rows: int) -> Answer:
        """One call, and a second one when the replica died with the first: that one waits in the router for another
        replica. Raises InferenceError."""
        from ray.exceptions import RayActorError

        try:
            try:
                answer = await self._request(inputs)
            except RayActorError:
                answer = await self._request(inputs)
        except RayActorError as error:
            raise ModelDiedError(f"the model {self.name!r} died twice with the same call") from error
        except Exception as error:
            raise self._explained(error) from error
        self._check(answer, rows)
        return answer

    async def _request(self, inputs: Columns) -> Answer:
        response = self._score.remote(inputs)
        try:
            return await response  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            response.cancel()  # or the replica would work on for nobody
            raise

    def _explained(self, error: Exception) -> InferenceError:
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        if isinstance(error, BackPressureError):
            return ModelShedError(f"the model {self.name!r} turned the call away: its queue is full")
        if isinstance(error, RayTaskError):
            return ModelRaisedError(f"the model {self.name!r} raised {_describe(error.cause)}")
        if isinstance(error, RayError | RayServeException):
            return InferenceError(f"the model {self.name!r} failed: {_describe(error)}")
        return ModelRaisedError(f"the model {self.name!r} raised {_describe(error)}")

    def _check(self, answer: Answer, rows: int) -> None:
        columns = getattr(answer, "columns", None)
        if not isinstance(columns, Mapping) or not isinstance(getattr(answer, "version", None), str):
            raise ModelRaisedError(
                f"the model {self.name!r} answered with a {type(answer).__name__}; it must have `columns`, arrays by "
                "name, and `version`, a str"
            )
        for output in self._outputs:
            column: Any = columns.get(output)
            if not isinstance(column, np.ndarray) or column.shape[:1] != (rows,) or column.ndim > 2:
                shape = getattr(column, "shape", type(column).__name__)
                raise ModelRaisedError(
                    f"the model {self.name!r} answered {rows} rows with {output!r} of shape {shape}; it must be an "
                    f"array of shape ({rows},) or ({rows}, n)"
                )


def _describe(error: BaseException) -> str:
    """One line; what Ray says of an error has many."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")


def _rows(columns: Columns, start: int, end: int) -> Columns:
    return {name: column[start:end] for name, column in columns.items()}

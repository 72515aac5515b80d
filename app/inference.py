"""Inference: one Serve call per micro-batch and model, with a deadline of its own and one retry.

Calls are made on an event loop, because Serve's fast mode (RAY_SERVE_THROUGHPUT_OPTIMIZED) allows them nowhere else;
the worker's thread gets a future.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from app.errors import InferenceError
from app.event import Columns
from app.pipeline import model_class


class Answer(Protocol):
    """What a model server returns: one row of every column for each row asked about, and which weights it used."""

    columns: Columns
    version: str


class Scores(NamedTuple):
    """The answers of all models to one micro-batch."""

    columns: Columns
    versions: dict[str, str]


class ModelCalls:
    """Asks every model of a pipeline about a micro-batch.

    `handles` are Serve handles by the model's name; `models` the deployments as declared. `timeout_ms` may be set while
    running. An answer is a promise only for the call it was given to: a call that is lost, late or refused raises.
    """

    def __init__(
        self, handles: Mapping[str, Any], models: Mapping[str, Any], loop: asyncio.AbstractEventLoop, timeout_ms: int
    ) -> None:
        self.timeout_ms = timeout_ms
        # Each look-up of a method on a handle makes a new handle.
        self._score = {name: handle.score for name, handle in handles.items()}
        self._inputs = {name: tuple(model_class(model).inputs) for name, model in models.items()}
        self._outputs = {name: tuple(model_class(model).outputs) for name, model in models.items()}
        self._loop = loop

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        """Starts the calls and returns at once. The future raises InferenceError when any model fails for good, or
        has not answered within `timeout_ms`."""
        return asyncio.run_coroutine_threadsafe(self._ask_all(columns, rows), self._loop)

    async def _ask_all(self, columns: Columns, rows: int) -> Scores:
        names = list(self._score)
        answers = await asyncio.gather(*(self._ask(name, columns, rows) for name in names))
        merged: Columns = {}
        for name, answer in zip(names, answers, strict=True):
            merged |= {output: answer.columns[output] for output in self._outputs[name]}
        return Scores(merged, {name: answer.version for name, answer in zip(names, answers, strict=True)})

    async def _ask(self, name: str, columns: Columns, rows: int) -> Answer:
        inputs = {column: columns[column] for column in self._inputs[name]}
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                answer = await self._call_twice(name, inputs)
        except TimeoutError as error:
            raise InferenceError(f"the model {name!r} gave no answer in {self.timeout_ms} ms") from error
        except Exception as error:
            raise InferenceError(f"the model {name!r} failed: {error}") from error
        _check(name, self._outputs[name], answer, rows)
        return answer

    async def _call_twice(self, name: str, inputs: Columns) -> Answer:
        from ray.exceptions import RayActorError

        try:
            return await self._score[name].remote(inputs)  # type: ignore[no-any-return]
        except RayActorError:
            # The replica died with the call; the next call waits in the router for another replica.
            return await self._score[name].remote(inputs)  # type: ignore[no-any-return]


def _check(name: str, outputs: tuple[str, ...], answer: Answer, rows: int) -> None:
    columns = getattr(answer, "columns", None)
    if not isinstance(columns, Mapping) or not isinstance(getattr(answer, "version", None), str):
        raise InferenceError(
            f"the model {name!r} answered with a {type(answer).__name__}; it must have `columns`, arrays by name, and "
            "`version`, a str"
        )
    for output in outputs:
        column: Any = columns.get(output)
        if not isinstance(column, np.ndarray) or column.shape[:1] != (rows,) or column.ndim > 2:
            shape = getattr(column, "shape", type(column).__name__)
            raise InferenceError(
                f"the model {name!r} answered {rows} rows with {output!r} of shape {shape}; it must be an array of "
                f"shape ({rows},) or ({rows}, n)"
            )

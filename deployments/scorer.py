"""The model server for torch models that score columns: what every one of them does alike."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import ray
from pydantic import Field
from ray import serve

from app.config import Settings
from app.errors import InferenceError
from app.event import Columns
from app.process import settle_process
from deployments.batching import predict_merged

PROJECT = Path(__file__).resolve().parent.parent
HEALTH_TIMEOUT_S = 2.0
WARM_UP_ROWS = 256


class Answer(NamedTuple):
    """The outputs of a model for the rows of one request, and the version of the weights that gave them."""

    columns: Columns
    version: str


class Model(Protocol):
    """A model with its weights on its device. `predict` may be called by one thread at a time."""

    version: str

    def predict(self, columns: Columns) -> Columns: ...


class ScorerTuning(Settings):
    """A scorer's `user_config`: what `serve deploy` changes in a running replica, without losing a request.

    weights:              a file; a relative path is one of the project. By default the one that ships with the model.
    max_batch_size:       requests, each a micro-batch of a worker, merged into one prediction.
    batch_wait_timeout_s: how long a prediction waits for more requests to come. At 0 it takes what has come while the
                          last one ran, which is the lower latency at any load.
    torch_threads:        of each replica; more than its share of the cores makes replicas fight.
    """

    weights: str | None = None
    max_batch_size: int = Field(default=16, ge=1, le=1024)
    batch_wait_timeout_s: float = Field(default=0.0, ge=0, le=1)
    torch_threads: int = Field(default=1, ge=1, le=256)


class Scorer(ABC):
    """A Serve replica that merges the requests of several workers into one prediction.

    Subclasses say `inputs`, `outputs` and `weights`, and `load` the model. Predictions run in one thread of
    their own, so that the replica's event loop keeps answering health checks and taking requests meanwhile.
    """

    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    weights: ClassVar[str]
    tuning: ClassVar[type[Settings]] = ScorerTuning

    def __init__(self) -> None:
        self._device = "cuda" if _has_gpu() else "cpu"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._model: Model | None = None
        # Not as a decorator: that makes one queue for the class, and two scorers in one process, as in
        # Serve's local testing mode, would answer each other's requests.
        self._enqueue = serve.batch(self._score_batch)

    @abstractmethod
    def load(self, weights: Path, device: str) -> Model:
        """Reads a model's weights. Whatever it raises keeps the replica at the weights it has."""

    def example(self) -> Columns:
        """One row that the model can score, for warming up and for health checks."""
        return {name: np.ones(1, dtype=np.int64 if name == "time" else np.float64) for name in self.inputs}

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes over a `ScorerTuning`. Called by Serve at the start and while requests run: those in the
        prediction under way are answered with the old weights, all later ones with the new.

        Raises ConfigError for an unusable value and whatever `load` raises; then nothing has changed.
        """
        tuning = ScorerTuning.load(user_config, "user_config")
        model = await asyncio.to_thread(self._load_warm, PROJECT / (tuning.weights or self.weights))
        await self._predicting(_set_torch_threads, tuning.torch_threads)
        self._enqueue.set_max_batch_size(tuning.max_batch_size)
        self._enqueue.set_batch_wait_timeout_s(tuning.batch_wait_timeout_s)
        self._model = model
        settle_process()

    async def score(self, columns: Columns) -> Answer:
        """Scores the rows of one request: `inputs` in, `outputs` out. Raises what the model raised for these rows."""
        answer: Answer | Exception = await self._enqueue(columns)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def check_health(self) -> None:
        """Scores one row on the way that every request takes: a batch loop that died is otherwise silent."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self.score(self.example())
        except TimeoutError as error:
            raise InferenceError(f"no prediction came through in {HEALTH_TIMEOUT_S:.0f} s") from error

    async def _score_batch(self, requests: Sequence[Columns]) -> list[Answer | Exception]:
        model = self._model
        if model is None:
            error = InferenceError("no weights are loaded; give the deployment a user_config, be it `{}`")
            return [error] * len(requests)
        results = await self._predicting(predict_merged, model.predict, requests)
        return [each if isinstance(each, Exception) else Answer(each, model.version) for each in results]

    async def _predicting(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *args))

    def _load_warm(self, weights: Path) -> Model:
        model = self.load(weights, self._device)
        model.predict({name: column.repeat(WARM_UP_ROWS) for name, column in self.example().items()})
        return model


def _has_gpu() -> bool:
    """Whether Ray gave this replica a GPU. torch cannot tell: Ray leaves the GPUs of others visible to it."""
    return ray.is_initialized() and bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def _set_torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)

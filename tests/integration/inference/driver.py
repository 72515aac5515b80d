"""Calls real Serve replicas through ModelCalls from another replica, as a stream worker does; writes what came back to
the file that it is given."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import ray
from ray import serve

from app.config import BreakerTuning
from app.errors import InferenceError
from app.event import Columns
from app.inference import ModelCalls

POISON, SLEEPER, KILLER = 9.0, 7.0, 5.0


class Doubler:
    inputs: ClassVar = ("amount",)
    outputs: ClassVar = ("double",)

    def __init__(self) -> None:
        self.asleep = self.cancelled = 0

    async def score(self, columns: Columns) -> Any:
        amounts = columns["amount"]
        if POISON in amounts:
            raise ValueError("nine\nis poison")
        if KILLER in amounts:
            os._exit(1)
        if SLEEPER in amounts:
            self.asleep += 1
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return SimpleNamespace(columns={"double": amounts * 2}, version="v1")

    async def stats(self) -> tuple[int, int]:
        return self.asleep, self.cancelled


class Worker:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._calls = ModelCalls(
            {"double": model},
            {"double": Doubler},
            asyncio.get_running_loop(),
            BreakerTuning(failures=100),
            lambda: time.time() * 1000,
        )

    async def ask(self, amounts: list[float]) -> Any:
        try:
            scores = await asyncio.wrap_future(self._calls.ask({"amount": np.array(amounts)}, len(amounts)))
        except InferenceError as error:
            return [type(error).__name__, str(error)]
        failed = {row: str(error) for row, error in scores.failed.items()}
        return {"double": scores.columns["double"].tolist(), "failed": failed}

    async def give_up(self) -> int:
        """Cancels a call under way; returns how many calls the replica saw cancelled."""
        asked = self._calls.ask({"amount": np.array([SLEEPER])}, 1)
        asleep = cancelled = 0
        while not asleep:
            asleep, _ = await self._model.stats.remote()
        asked.cancel()
        while not cancelled:
            _, cancelled = await self._model.stats.remote()
        return int(cancelled)


async def main() -> None:
    # Without an address it would join the cluster of another test; without a server it needs no port of its own.
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"location": "NoServer"})
    model = serve.deployment(max_ongoing_requests=64)(Doubler).bind()
    application = serve.deployment(Worker).bind(model)
    worker: Any = await asyncio.to_thread(serve.run, application)
    found = {
        "plain": await worker.ask.remote([1.0, 2.0]),
        "poison": await worker.ask.remote([1.0, POISON, 3.0, 4.0, POISON]),
        "cancelled": await worker.give_up.remote(),
        "killed": await worker.ask.remote([1.0, KILLER]),
        "after": await worker.ask.remote([4.0]),
    }
    Path(sys.argv[1]).write_text(json.dumps(found))
    await asyncio.to_thread(serve.shutdown)


if __name__ == "__main__":
    asyncio.run(main())

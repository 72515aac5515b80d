import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import ConfigError, InferenceError
from app.event import Columns
from deployments import scorer
from deployments.scorer import Answer, Scorer

pytestmark = pytest.mark.usefixtures("replica")


class Echo:
    """Answers y = x. Waits for `go` before it does, and counts the rows of each prediction."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.go = threading.Event()
        self.go.set()
        self.busy = threading.Event()
        self.batches: list[int] = []

    def predict(self, columns: Columns) -> Columns:
        self.busy.set()
        assert self.go.wait(timeout=20)
        if (columns["x"] < 0).any():
            raise ValueError(f"cannot score {columns['x'].min()}")
        self.batches.append(len(columns["x"]))
        return {"y": columns["x"]}


class EchoScorer(Scorer):
    inputs = ("x",)
    outputs = ("y",)
    weights = "first"

    def load(self, weights: Path, device: str) -> Echo:
        if weights.name == "missing":
            raise FileNotFoundError(weights)
        return Echo(version=f"{weights.name} on {device}")


def rows(*values: float) -> Columns:
    return {"x": np.array(values)}


def run(test: Coroutine[Any, Any, None]) -> None:
    async def within_deadline() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(within_deadline())


async def started(user_config: dict[str, Any] | None = None) -> tuple[EchoScorer, Echo]:
    server = EchoScorer()
    await server.reconfigure(user_config or {})
    model = server._model
    assert isinstance(model, Echo)
    model.batches.clear()
    model.busy.clear()
    return server, model


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


async def keep_busy(server: EchoScorer, model: Echo) -> "asyncio.Task[Answer]":
    """Starts a prediction that ends only when `model.go` is set."""
    model.go.clear()
    task = asyncio.create_task(server.score(rows(0)))
    await until(model.busy)
    return task


def test_requests_that_come_while_a_prediction_runs_are_merged_into_the_next() -> None:
    async def test() -> None:
        server, model = await started()
        first = await keep_busy(server, model)
        others = [asyncio.create_task(server.score(rows(at, at))) for at in range(1, 6)]
        await asyncio.sleep(0)
        model.go.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.columns["y"].tolist() for answer in answers] == [
            [0],
            *([at, at] for at in range(1, 6)),
        ]
        assert model.batches == [1, 10]

    run(test())


def test_max_batch_size_bounds_the_requests_of_a_prediction() -> None:
    async def test() -> None:
        server, model = await started({"max_batch_size": 2})
        first = await keep_busy(server, model)
        others = [asyncio.create_task(server.score(rows(at))) for at in range(4)]
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(first, *others)
        assert model.batches == [1, 2, 2]

    run(test())


def test_a_request_that_fails_fails_alone() -> None:
    async def test() -> None:
        server, model = await started()
        first = await keep_busy(server, model)
        others = [asyncio.create_task(server.score(rows(value))) for value in (1, -7, 2)]
        await asyncio.sleep(0)
        model.go.set()
        good, bad, fine = await asyncio.gather(*others, return_exceptions=True)
        await first
        assert isinstance(bad, ValueError)
        assert str(bad) == "cannot score -7"
        assert isinstance(good, Answer)
        assert isinstance(fine, Answer)
        assert (good.columns["y"][0], fine.columns["y"][0]) == (1, 2)

    run(test())


def test_new_weights_are_taken_over_while_a_request_runs() -> None:
    async def test() -> None:
        server, model = await started()
        running = await keep_busy(server, model)
        changing = asyncio.create_task(server.reconfigure({"weights": "second"}))
        model.go.set()
        await changing
        assert (await running).version == "first on cpu"
        assert (await server.score(rows(1))).version == "second on cpu"

    run(test())


@pytest.mark.parametrize("user_config", [{"weights": "missing", "max_batch_size": 1}, {"torch_threads": 0}])
def test_a_change_that_fails_changes_nothing(user_config: dict[str, Any]) -> None:
    async def test() -> None:
        server, _ = await started()
        with pytest.raises((FileNotFoundError, ConfigError)):
            await server.reconfigure(user_config)
        assert (await server.score(rows(1))).version == "first on cpu"
        assert server._enqueue._get_max_batch_size() == 16

    run(test())


def test_an_unknown_key_of_the_user_config_is_refused() -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match=r"user_config\.max_batchsize.*max_batch_size"):
            await EchoScorer().reconfigure({"max_batchsize": 3})

    run(test())


def test_without_a_user_config_the_reason_is_said() -> None:
    async def test() -> None:
        server = EchoScorer()
        for call in (server.score(rows(1)), server.check_health()):
            with pytest.raises(InferenceError, match="no weights are loaded; give the deployment a user_config"):
                await call

    run(test())


def test_the_event_loop_goes_on_while_a_prediction_runs() -> None:
    async def test() -> None:
        server, model = await started()
        running = await keep_busy(server, model)
        await asyncio.sleep(0)
        assert not running.done()
        model.go.set()
        await running

    run(test())


def test_a_prediction_that_hangs_fails_the_health_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "HEALTH_TIMEOUT_S", 0.05)

    async def test() -> None:
        server, model = await started()
        await server.check_health()
        running = await keep_busy(server, model)
        with pytest.raises(InferenceError, match="no prediction came through"):
            await server.check_health()
        model.go.set()
        await running
        await server.check_health()

    run(test())


def test_a_model_that_cannot_score_is_not_taken_over() -> None:
    class Unable(EchoScorer):
        def example(self) -> Columns:
            return rows(-1)

    async def test() -> None:
        server = Unable()
        with pytest.raises(ValueError, match="cannot score"):
            await server.reconfigure({})
        assert server._model is None

    run(test())


def test_two_scorers_in_one_process_do_not_answer_each_others_requests() -> None:
    async def test() -> None:
        (first, _), (second, _) = await started(), await started({"weights": "second"})
        answers = await asyncio.gather(first.score(rows(1)), second.score(rows(1)))
        assert [answer.version for answer in answers] == ["first on cpu", "second on cpu"]

    run(test())

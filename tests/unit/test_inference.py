"""Model calls: one per micro-batch and model, late or broken answers refused, a dead replica asked again once."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from ray.exceptions import RayActorError

from app.errors import InferenceError
from app.event import Columns
from app.inference import ModelCalls, Scores


class RiskModel:
    inputs: ClassVar = ("amount", "payments")
    outputs: ClassVar = ("risk",)


class ValueModel:
    inputs: ClassVar = ("amount",)
    outputs: ClassVar = ("value", "embedding")


Reply = Callable[[Columns], Awaitable[Any]]


class Handle:
    """A Serve handle that answers with what `replies` give, one call after the other; the last one goes on."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.asked: list[Columns] = []
        self.score = SimpleNamespace(remote=self._remote)

    async def _remote(self, inputs: Columns) -> Any:
        self.asked.append(inputs)
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        return await reply(inputs)


def answer(version: Any = "v1", **columns: Any) -> Reply:
    async def reply(inputs: Columns) -> Any:
        return SimpleNamespace(columns=columns, version=version)

    return reply


def error(raised: BaseException) -> Reply:
    async def reply(inputs: Columns) -> Any:
        raise raised

    return reply


async def silence(inputs: Columns) -> Any:
    await asyncio.Event().wait()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


Ask = Callable[..., Scores]


@pytest.fixture
def ask(loop: asyncio.AbstractEventLoop) -> Ask:
    """Asks about two rows, from another thread than the event loop's, as a worker does."""

    def asking(timeout_ms: int = 10_000, **handles: Handle) -> Scores:
        models = {"risk": RiskModel, "value": SimpleNamespace(func_or_class=ValueModel)}
        declared = {name: models[name] for name in handles}
        columns: Columns = {name: np.arange(2) * 1.0 for name in ("amount", "payments", "time")}
        return ModelCalls(handles, declared, loop, timeout_ms).ask(columns, 2).result(10)

    return asking


def test_a_model_is_asked_once_for_the_whole_batch_and_with_its_inputs_alone(ask: Ask) -> None:
    handle = Handle(answer(risk=np.array([0.25, 0.5])))
    scores = ask(risk=handle)
    assert scores.columns["risk"].tolist() == [0.25, 0.5]
    assert scores.versions == {"risk": "v1"}
    assert [list(inputs) for inputs in handle.asked] == [["amount", "payments"]]


def test_the_outputs_of_several_models_are_merged_each_with_its_version(ask: Ask) -> None:
    scores = ask(
        risk=Handle(answer("v1", risk=np.zeros(2), surplus=np.zeros(2))),
        value=Handle(answer("v7", value=np.ones(2), embedding=np.ones((2, 3)))),
    )
    assert {name: column.shape for name, column in scores.columns.items()} == {
        "risk": (2,),
        "value": (2,),
        "embedding": (2, 3),
    }
    assert scores.versions == {"risk": "v1", "value": "v7"}


def test_several_models_are_asked_at_the_same_time(ask: Ask) -> None:
    both = asyncio.Barrier(2)

    def meeting(reply: Reply) -> Reply:
        async def together(inputs: Columns) -> Any:
            await both.wait()
            return await reply(inputs)

        return together

    ask(
        risk=Handle(meeting(answer(risk=np.zeros(2)))),
        value=Handle(meeting(answer(value=np.zeros(2), embedding=np.zeros(2)))),
    )


def test_a_model_that_does_not_answer_in_time_is_an_error_that_says_so(ask: Ask) -> None:
    with pytest.raises(InferenceError, match="the model 'risk' gave no answer in 20 ms"):
        ask(timeout_ms=20, risk=Handle(silence))


def test_the_time_limit_can_be_set_while_running(loop: asyncio.AbstractEventLoop) -> None:
    calls = ModelCalls({"risk": Handle(silence)}, {"risk": RiskModel}, loop, timeout_ms=60_000)
    calls.timeout_ms = 10
    with pytest.raises(InferenceError, match="no answer in 10 ms"):
        calls.ask({"amount": np.zeros(1), "payments": np.zeros(1)}, 1).result(10)


def test_a_replica_that_died_with_the_call_is_asked_again_once(ask: Ask) -> None:
    handle = Handle(error(RayActorError()), answer(risk=np.ones(2)))
    assert ask(risk=handle).columns["risk"].tolist() == [1.0, 1.0]
    assert len(handle.asked) == 2
    assert handle.asked[0] == handle.asked[1]


def test_a_second_death_is_an_error(ask: Ask) -> None:
    handle = Handle(error(RayActorError()))
    with pytest.raises(InferenceError, match="the model 'risk' failed"):
        ask(risk=handle)
    assert len(handle.asked) == 2


def test_both_attempts_share_one_time_limit(ask: Ask) -> None:
    with pytest.raises(InferenceError, match="no answer in 20 ms"):
        ask(timeout_ms=20, risk=Handle(error(RayActorError()), silence))


@pytest.mark.parametrize("raised", [ValueError("bad weights"), RuntimeError("bad weights"), KeyError("bad weights")])
def test_an_error_of_the_model_itself_is_not_asked_again(ask: Ask, raised: Exception) -> None:
    handle = Handle(error(raised))
    with pytest.raises(InferenceError, match=r"the model 'risk' failed: .*bad weights") as refusal:
        ask(risk=handle)
    assert refusal.value.__cause__ is raised
    assert len(handle.asked) == 1


def test_one_model_that_fails_fails_the_batch(ask: Ask) -> None:
    with pytest.raises(InferenceError, match="the model 'value' failed"):
        ask(risk=Handle(answer(risk=np.zeros(2))), value=Handle(error(ValueError("no"))))


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ({}, "NoneType"),
        ({"other": np.zeros(2)}, "NoneType"),
        ({"risk": [0.0, 1.0]}, "list"),
        ({"risk": np.zeros(1)}, r"\(1,\)"),
        ({"risk": np.zeros(3)}, r"\(3,\)"),
        ({"risk": np.zeros((1, 2))}, r"\(1, 2\)"),
        ({"risk": np.array(0.5)}, r"\(\)"),
        ({"risk": np.zeros((2, 1, 1))}, r"\(2, 1, 1\)"),
    ],
)
def test_an_answer_without_a_row_for_each_row_asked_is_refused(ask: Ask, columns: dict[str, Any], shape: str) -> None:
    message = rf"the model 'risk' answered 2 rows with 'risk' of shape {shape}; it must be an array of shape \(2,\)"
    with pytest.raises(InferenceError, match=message):
        ask(risk=Handle(answer(**columns)))


@pytest.mark.parametrize(
    "reply",
    [None, {"risk": np.zeros(2)}, SimpleNamespace(columns=np.zeros(2), version="v1"), SimpleNamespace(columns={})],
)
def test_an_answer_of_another_kind_is_refused(ask: Ask, reply: Any) -> None:
    async def odd(inputs: Columns) -> Any:
        return reply

    with pytest.raises(InferenceError, match="it must have `columns`, arrays by name, and `version`, a str"):
        ask(risk=Handle(odd))


def test_asking_returns_before_the_model_answers(loop: asyncio.AbstractEventLoop) -> None:
    gate = asyncio.Event()

    async def gated(inputs: Columns) -> Any:
        await gate.wait()
        return SimpleNamespace(columns={"risk": np.zeros(1)}, version="v1")

    asked = ModelCalls({"risk": Handle(gated)}, {"risk": RiskModel}, loop, 10_000).ask(
        {"amount": np.zeros(1), "payments": np.zeros(1)}, 1
    )
    assert not asked.done()
    loop.call_soon_threadsafe(gate.set)
    assert asked.result(10).columns["risk"].tolist() == [0.0]

"""Model calls: one per micro-batch and model; poison rows found, broken answers refused, a dead replica asked again."""

import asyncio
import itertools
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError

from app.config import BreakerTuning
from app.errors import BreakerOpenError, InferenceError, ModelDiedError, ModelShedError
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
        self.cancelled = 0
        self.score = SimpleNamespace(remote=self._remote)

    def _remote(self, inputs: Columns) -> "Response":
        self.asked.append(inputs)
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        return Response(reply(inputs), self)


class Response:
    """What Serve gives for a call: it can be awaited, and cancelled."""

    def __init__(self, reply: Awaitable[Any], handle: Handle) -> None:
        self._reply = reply
        self._handle = handle

    def __await__(self) -> Any:
        return self._reply.__await__()

    def cancel(self) -> None:
        self._handle.cancelled += 1


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
NEVER_OPEN = BreakerTuning(failures=1_000)


def columns_of(rows: int) -> Columns:
    return {name: np.arange(rows) * 1.0 for name in ("amount", "payments", "time")}


def calls_to(
    loop: asyncio.AbstractEventLoop, breaker: BreakerTuning = NEVER_OPEN, now_ms: float = 0.0, **handles: Handle
) -> ModelCalls:
    models = {"risk": RiskModel, "value": SimpleNamespace(func_or_class=ValueModel)}
    return ModelCalls(handles, {name: models[name] for name in handles}, loop, breaker, lambda: now_ms)


@pytest.fixture
def ask(loop: asyncio.AbstractEventLoop) -> Ask:
    """Asks about two rows, from another thread than the event loop's, as a worker does."""
    return lambda **handles: calls_to(loop, **handles).ask(columns_of(2), 2).result(10)


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


def test_giving_a_call_up_cancels_it_and_counts_against_the_models_that_had_not_answered(
    loop: asyncio.AbstractEventLoop,
) -> None:
    value_answered = threading.Event()

    async def at_once(inputs: Columns) -> Any:
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, value_answered.set)
        return SimpleNamespace(columns={"value": np.zeros(1), "embedding": np.zeros(1)}, version="v1")

    risk, value = Handle(silence), Handle(at_once)
    calls = calls_to(loop, BreakerTuning(failures=1), risk=risk, value=value)
    asked = calls.ask(columns_of(1), 1)
    assert value_answered.wait(10)
    asked.cancel()
    _settle(loop)
    assert (risk.cancelled, value.cancelled) == (1, 0)
    assert calls.breakers() == {"risk": "open", "value": "closed"}


def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """Until the event loop has run what was due when this was called, and what that made due."""
    for _ in range(5):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)


def test_a_model_that_fails_again_and_again_is_not_asked_until_the_pause_is_over(
    loop: asyncio.AbstractEventLoop,
) -> None:
    now_ms = [0.0]
    handle = Handle(*[error(RayError())] * 3, answer(risk=np.zeros(2)))
    calls = ModelCalls(
        {"risk": handle}, {"risk": RiskModel}, loop, BreakerTuning(failures=3, pause="1s"), lambda: now_ms[0]
    )
    for _ in range(3):
        with pytest.raises(InferenceError, match="failed: RayError"):
            calls.ask(columns_of(2), 2).result(10)
    with pytest.raises(BreakerOpenError, match="'risk' has failed too often"):
        calls.ask(columns_of(2), 2).result(10)
    assert len(handle.asked) == 3
    now_ms[0] = 1_000
    assert calls.ask(columns_of(2), 2).result(10).versions == {"risk": "v1"}
    assert calls.breakers() == {"risk": "closed"}


def test_the_breaker_can_be_tuned_while_running(loop: asyncio.AbstractEventLoop) -> None:
    calls = calls_to(loop, risk=Handle(error(RayError())))
    calls.tune(BreakerTuning(failures=1))
    with pytest.raises(InferenceError):
        calls.ask(columns_of(2), 2).result(10)
    assert calls.breakers() == {"risk": "open"}


def test_a_call_that_is_turned_away_says_so(ask: Ask) -> None:
    with pytest.raises(ModelShedError, match="its queue is full"):
        ask(risk=Handle(error(BackPressureError(num_queued_requests=8, max_queued_requests=8))))


def test_a_replica_that_died_with_the_call_is_asked_again_once(ask: Ask) -> None:
    handle = Handle(error(RayActorError()), answer(risk=np.ones(2)))
    assert ask(risk=handle).columns["risk"].tolist() == [1.0, 1.0]
    assert len(handle.asked) == 2
    assert handle.asked[0] == handle.asked[1]


def test_a_second_death_is_an_error(ask: Ask) -> None:
    handle = Handle(error(RayActorError()))
    with pytest.raises(ModelDiedError, match="the model 'risk' died twice with the same call"):
        ask(risk=handle)
    assert len(handle.asked) == 2


@pytest.mark.parametrize("raised", [ValueError("bad weights"), RuntimeError("bad weights"), KeyError("bad weights")])
def test_a_model_that_fails_on_whatever_it_is_asked_fails_the_batch(ask: Ask, raised: Exception) -> None:
    handle = Handle(error(raised))
    with pytest.raises(InferenceError, match=r"the model 'risk' raised .*bad weights") as refusal:
        ask(risk=handle)
    assert refusal.value.__cause__ is raised
    assert [len(inputs["amount"]) for inputs in handle.asked] == [2, 1, 1]


POISON = 7.0


def careful(most_rows: int = 10**6) -> Reply:
    """A model that raises when it is asked about a poison row, or about too many."""

    async def reply(inputs: Columns) -> Any:
        amounts = inputs["amount"]
        if POISON in amounts or len(amounts) > most_rows:
            raise ValueError("poison")
        return SimpleNamespace(columns={"risk": amounts * 2}, version="v1")

    return reply


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON]), min_size=1, max_size=70), st.booleans())
def test_only_the_poison_rows_fail_and_the_others_get_their_scores(amounts: list[float], known: bool) -> None:
    handle = Handle(careful())

    async def main() -> Scores | InferenceError:
        calls = calls_to(asyncio.get_running_loop(), risk=handle)
        if known:
            await asyncio.wrap_future(calls.ask(columns_of(1), 1))
        columns: Columns = {"amount": np.array(amounts), "payments": np.zeros(len(amounts))}
        try:
            return await asyncio.wrap_future(calls.ask(columns, len(amounts)))
        except InferenceError as failure:
            return failure

    found = asyncio.run(main())
    poison = [row for row, amount in enumerate(amounts) if amount == POISON]
    if isinstance(found, InferenceError):  # nothing that was asked went well: the fault seems to be the model's
        assert not known
        assert {0, len(amounts) // 2, len(amounts) - 1} <= set(poison)
        return
    assert sorted(found.failed) == poison
    assert all(str(each) == "the model 'risk' raised ValueError: poison" for each in found.failed.values())
    kept = [row for row in range(len(amounts)) if row not in found.failed]
    assert found.columns["risk"][kept].tolist() == [amounts[row] * 2 for row in kept]
    rounds = math.ceil(math.log2(len(amounts))) if len(amounts) > 1 else 0
    assert len(handle.asked) <= 6 + 2 * len(poison) * (rounds + 1)


def test_the_poison_of_each_of_several_models_is_found(loop: asyncio.AbstractEventLoop) -> None:
    async def values(inputs: Columns) -> Any:
        if 2.0 in inputs["amount"]:
            raise KeyError("two")
        rows = len(inputs["amount"])
        return SimpleNamespace(columns={"value": np.ones(rows), "embedding": np.ones((rows, 3))}, version="v7")

    found = calls_to(loop, risk=Handle(careful()), value=Handle(values)).ask(columns_of(9), 9).result(10)
    assert sorted(found.failed) == [2, 7]
    assert found.columns["embedding"].shape == (9, 3)
    assert found.columns["risk"][8] == 16.0


def test_weights_that_change_between_two_halves_leave_no_batch_of_two_versions(loop: asyncio.AbstractEventLoop) -> None:
    versions = itertools.count()

    async def changing(inputs: Columns) -> Any:
        if POISON in inputs["amount"]:
            raise ValueError("poison")
        return SimpleNamespace(columns={"risk": inputs["amount"]}, version=f"v{next(versions)}")

    with pytest.raises(InferenceError, match="took new weights between two halves"):
        calls_to(loop, risk=Handle(changing)).ask(columns_of(20), 20).result(10)


def test_one_model_that_fails_fails_the_batch(ask: Ask) -> None:
    with pytest.raises(InferenceError, match="the model 'value' raised"):
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
        ask(risk=Handle(answer(**columns), error(ValueError("no"))))


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

    asked = calls_to(loop, risk=Handle(gated)).ask(columns_of(1), 1)
    assert not asked.done()
    loop.call_soon_threadsafe(gate.set)
    assert asked.result(10).columns["risk"].tolist() == [0.0]

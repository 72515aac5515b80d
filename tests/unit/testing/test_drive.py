"""drive(): what a pipeline's author can say and ask, fault by fault."""

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from app.actions.action import Action, Decision, Sink
from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.upsert import Upsert
from app.errors import DeclarationError, InferenceError
from app.event import Columns, Event
from app.features import Features, count
from app.pipeline import Pipeline
from app.pipelines.fraud import Payment as FraudPayment
from app.pipelines.fraud import fraud
from app.runtime.checkpoint import CheckpointStore
from app.sources import TopicPartition
from app.testing import (
    ACTION_CRASH,
    BROKER_AWAY,
    COORDINATOR_SILENT,
    CRASH,
    DUPLICATE,
    MODEL_AWAY,
    PAUSE,
    REORDER,
    TORN,
    Away,
    Crash,
    Delayed,
    Record,
    Result,
    Simulation,
    Slow,
    StuckError,
    Wait,
    drive,
    failing,
    late,
)
from app.testing.simulation import SOURCE

NOON_MS = 1_700_000_000_000


class Payment(Event, frozen=True):
    card: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")


class RiskModel:
    inputs: ClassVar[tuple[str, ...]] = ("amount",)
    outputs: ClassVar[tuple[str, ...]] = ("risk",)


class Hold(Action, frozen=True):
    payment: str
    risk: float


def decide(payment: Payment, risk: float) -> Iterator[Action]:
    if risk > 0.5:
        yield Hold(payment.id, risk)


def rules(payment: Payment, card: CardHistory) -> Iterator[Action]:
    if card.payments > 2:
        yield Hold(payment.id, 1.0)


def pipeline(
    *, fallback: bool = True, sinks: tuple[Sink, ...] = (Publish("holds"), Post("cases"), Upsert("held"))
) -> Any:
    return Pipeline(
        source=Payment,
        features=[CardHistory],
        models={"risk": RiskModel},
        decide=decide,
        fallback=rules if fallback else None,
        actions={Hold: sinks},
    )


def pay(event_id: str, amount: float = 10.0, card: str = "c") -> Payment:
    return Payment(id=event_id, time=NOON_MS, card=card, amount=amount)


def risk(columns: Columns) -> Any:
    return columns["amount"] / 100


def held(result: Result, sink: str = "holds") -> list[str]:
    return [effect.fields["payment"] for effect in result.effects[sink]]


def test_a_blatant_payment_is_held_though_the_model_is_late_and_the_worker_dies() -> None:
    def payment(event_id: str, amount: float) -> FraudPayment:
        return FraudPayment(id=event_id, time=NOON_MS, card="c", terminal="t", amount=amount)

    result = drive(fraud, [payment("a", 250), CRASH, Away("case-system"), payment("b", 10)], risk=late)
    assert result["a"].reason == "fallback-late"
    assert [effect.fields["payment"] for effect in result.effects["holds"]] == ["a"]
    assert held(result, "case-system") == held(result, "held_payments") == ["a"]


def test_decisions_say_features_scores_and_actions() -> None:
    result = drive(pipeline(), [pay("a"), pay("b", 90.0)], risk=risk)
    decided = result["b"]
    assert (decided.partition, decided.offset, decided.reason) == (result["a"].partition, 1, "model")
    assert decided.event["amount"] == 90.0
    assert decided.features == {"payments": 2.0}
    assert decided.scores == {"risk": 0.9}
    assert decided.actions == [{"type": "Hold", "payment": "b", "risk": 0.9}]
    assert 1 < decided.latency_ms < 100
    with pytest.raises(KeyError, match="no decision is about 'c'; there are a, b"):
        result["c"]


def test_every_sink_gets_what_it_would_get() -> None:
    result = drive(pipeline(), [pay("a", 90.0), pay("b"), pay("c", 80.0)], risk=risk)
    assert held(result, "holds") == held(result, "cases") == held(result, "held") == ["a", "c"]
    assert result.effects["held"][0].key == f"test/{result['a'].partition}/0/0"
    assert result.repeats == {"holds": 0, "cases": 0, "held": 0, "dead-letters": 0, "late": 0}


def test_the_same_arguments_give_the_same_result_and_another_seed_another_one() -> None:
    items = [pay("a", 90.0), CRASH, pay("b", 80.0), PAUSE, pay("c", 70.0), Crash("action", 7), pay("d", 95.0)]
    once, again, otherwise = (drive(pipeline(), items, risk=risk, seed=seed) for seed in (3, 3, 4))
    assert once == again
    assert [each.latency_ms for each in once.decisions] != [each.latency_ms for each in otherwise.decisions]


def test_no_thread_is_started_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(owner: Any, timeout: float | None = None) -> bool:
        assert timeout == 0, "a simulation has no real time"
        return False

    for owner, name in ((time, "sleep"), (threading.Thread, "start"), (threading.Condition, "wait")):
        monkeypatch.setattr(owner, name, refuse)
    items = [pay("a", 90.0), CRASH, Wait(10_000), pay("b", 80.0), BROKER_AWAY, Slow("broker"), pay("c", 70.0)]
    assert held(drive(pipeline(), items, risk=risk)) == ["a", "b", "c"]


def test_another_worker_takes_over_from_one_that_died() -> None:
    result = drive(pipeline(), [pay("a", 90.0), Wait(100), CRASH, pay("b", 80.0)], risk=risk)
    assert len(result.deaths) == 1
    assert result["b"].features == {"payments": 2.0}
    assert 2_500 < result["b"].latency_ms < 5_000
    assert held(result) == ["a", "b"]


def test_a_worker_that_is_alone_is_replaced() -> None:
    result = drive(pipeline(), [pay("a", 90.0), CRASH, pay("b", 80.0)], risk=risk, workers=1)
    assert 5_700 < result["b"].latency_ms < 9_000
    assert held(result) == ["a", "b"]


def test_a_zombie_writes_second_copies_that_change_nothing() -> None:
    zombies = 0
    for seed in range(20):
        simulation = Simulation(pipeline(), {"risk": risk}, seed=seed)
        with simulation:
            simulation.wait_until_ready()
            for item in (pay("a", 90.0), Wait(3), PAUSE, pay("b", 80.0)):
                simulation.take(item)
            simulation.drain()
            frames = len(simulation.kafka.records(simulation.decisions))
            assert [effect.fields["payment"] for effect in simulation.receivers.effects["held"]] == ["a", "b"]
        zombies += frames > 2
    assert zombies


def test_a_decision_that_comes_out_otherwise_each_time_takes_effect_once_and_the_same_everywhere() -> None:
    draws = itertools.count(1)

    def draw(payment: Payment, risk: float) -> Iterator[Action]:
        yield Hold(payment.id, float(next(draws)))

    sinks = (Publish("holds"), Post("cases"), Upsert("held"))
    risky = {"risk": RiskModel}
    fickle = Pipeline(source=Payment, features=[CardHistory], models=risky, decide=draw, actions={Hold: sinks})
    comes_back = [pay("a", 90.0), Wait(1), PAUSE, pay("b", 80.0), Wait(12_000)]
    items = [*comes_back, ACTION_CRASH, CRASH, pay("c", 70.0)]
    for seed in range(20):
        result = drive(fickle, items, risk=risk, seed=seed, every_ms=2)
        logged = sorted((each.actions[0]["payment"], each.actions[0]["risk"]) for each in result.decisions)
        assert [payment for payment, _ in logged] == ["a", "b", "c"]
        for sink in ("holds", "cases", "held"):
            done = [(effect.fields["payment"], effect.fields["risk"]) for effect in result.effects[sink]]
            assert sorted(done) == logged
    assert next(draws) > 20 * 3 + 1, "a zombie decided again"


def test_late_failing_and_absent_models_are_stood_in_for() -> None:
    for model, reason in (
        (late, "fallback-late"),
        (failing, "fallback-failed"),
        (Delayed(risk, 1_500), "fallback-late"),
    ):
        assert drive(pipeline(), [pay("a"), pay("b")], risk=model).count(reason) == 2
    assert drive(pipeline(), [MODEL_AWAY, pay("a")], risk=risk)["a"].reason == "fallback-failed"
    assert drive(pipeline(), [Slow("model", 2_000), pay("a")], risk=risk)["a"].reason == "fallback-late"
    assert drive(pipeline(), [pay("a")], risk=Delayed(risk, 500))["a"].reason == "model"


def test_without_a_fallback_the_stream_waits_for_the_model() -> None:
    result = drive(pipeline(fallback=False), [MODEL_AWAY, pay("a", 90.0)], risk=risk)
    assert result["a"].reason == "model"
    assert result["a"].latency_ms > 1_900


def test_a_model_may_be_an_object_with_predict() -> None:
    class Model:
        def predict(self, columns: Columns) -> Columns:
            return {"risk": columns["amount"] * 0 + 0.75}

    assert drive(pipeline(), [pay("a")], risk=Model())["a"].scores == {"risk": 0.75}


def test_a_model_that_answers_with_the_wrong_shape_has_failed() -> None:
    assert drive(pipeline(), [pay("a")], risk=lambda columns: [1.0, 2.0])["a"].reason == "fallback-failed"


def test_a_sink_that_is_away_delays_only_itself() -> None:
    result = drive(pipeline(), [Away("cases", 3_000), pay("a", 90.0)], risk=risk)
    assert result.effects["cases"][0].latency_ms > 2_000
    assert result.effects["holds"][0].latency_ms < 100
    assert held(result, "cases") == held(result, "holds") == ["a"]


def test_an_action_worker_that_dies_between_effect_and_cursor_repeats_only_what_its_sink_keeps_apart() -> None:
    for seed in range(10):
        result = drive(pipeline(sinks=(Post("cases"),)), [ACTION_CRASH, pay("a", 90.0)], risk=risk, seed=seed)
        assert (held(result, "cases"), result.repeats["cases"]) == (["a"], 1)
        result = drive(pipeline(sinks=(Publish("holds"),)), [ACTION_CRASH, pay("a", 90.0)], risk=risk, seed=seed)
        assert (held(result), result.repeats["holds"], len(result.deaths)) == (["a"], 0, 1)


def test_while_the_broker_is_away_nothing_is_lost() -> None:
    result = drive(pipeline(), [pay("a", 90.0), BROKER_AWAY, pay("b", 80.0), pay("c", 70.0)], risk=risk)
    assert held(result) == held(result, "cases") == ["a", "b", "c"]


def test_without_the_coordinator_everybody_goes_on_with_what_they_have() -> None:
    result = drive(pipeline(), [COORDINATOR_SILENT, pay("a", 90.0), Wait(5_000), pay("b", 80.0)], risk=risk)
    assert max(each.latency_ms for each in result.decisions) < 100


def test_a_torn_checkpoint_costs_only_time() -> None:
    items = [pay("a"), Wait(11_000), TORN, CRASH, pay("b")]
    assert drive(pipeline(), items, risk=risk)["b"].features == {"payments": 2.0}


def test_what_is_no_event_becomes_a_dead_letter() -> None:
    result = drive(pipeline(), [Record(b"{", b"c"), pay("a")], risk=risk)
    [rejected] = result.dead_letters
    assert "truncated" in rejected.reason
    assert result.effects["dead-letters"][0].fields["value"] == b"{"


def test_records_can_come_twice_and_in_another_order() -> None:
    with Simulation(pipeline(), {"risk": risk}, partitions=1) as simulation:
        simulation.take(pay("a"))
        simulation.take(DUPLICATE)
        first, second = simulation.kafka.logs[TopicPartition(SOURCE, 0)]
        assert (first.key, first.value) == (second.key, second.value)
    result = drive(pipeline(), [REORDER, pay("a"), CRASH, pay("b"), pay("c")], risk=risk, partitions=1)
    assert [each.id for each in result.decisions] == ["b", "a", "c"]


def test_a_copy_of_an_event_is_dropped_where_ids_are_remembered() -> None:
    items = [pay("a", 90.0), DUPLICATE, CRASH, DUPLICATE, pay("b", 80.0)]
    assert [each.id for each in drive(pipeline(), items, risk=risk, deduplicate_ms=None).decisions] == list("aaab")
    result = drive(pipeline(), items, risk=risk)
    assert [each.id for each in result.decisions] == held(result) == ["a", "b"]
    assert result["b"].features == {"payments": 2.0}


def test_every_decision_can_be_an_effect() -> None:
    declared = Pipeline(source=Payment, actions={Decision: [Publish("scores")]})
    result = drive(declared, [pay("a"), pay("b")])
    assert sorted(effect.fields["id"] for effect in result.effects["scores"]) == ["a", "b"]


def test_a_pipeline_that_does_not_get_done_says_where_it_stands() -> None:
    with pytest.raises(StuckError, match=r"not done after 120 simulated seconds: .*no answer in 1000 ms"):
        drive(pipeline(fallback=False), [pay("a")], risk=late)


def test_a_pipeline_that_does_not_even_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no checkpoint for you")

    monkeypatch.setattr(CheckpointStore, "save", refuse)
    with pytest.raises(StuckError, match=r"workers died of \{'no checkpoint for you'\}"):
        drive(pipeline(), [pay("a")], risk=risk)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "the pipeline asks the model 'risk'; say what it answers: risk="),
        ({"risk": risk, "rsik": risk}, "the pipeline has no model 'rsik'; it has risk"),
    ],
)
def test_models_are_those_that_the_pipeline_asks(models: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        drive(pipeline(), [], **models)


def test_what_cannot_be_simulated_is_refused_by_name() -> None:
    with pytest.raises(DeclarationError, match="only Publish, Post, Upsert are simulated"):
        drive(pipeline(sinks=(Sink("x"),)), [], risk=risk)
    with pytest.raises(ValueError, match="nothing is called 'case' here that could be away; name one of model, broker"):
        drive(pipeline(), [Away("case")], risk=risk)
    with pytest.raises(InferenceError):
        failing({})

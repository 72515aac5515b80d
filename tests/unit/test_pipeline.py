"""Pipelines: what does not fit is refused at import, and what is declared is what happens."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Action, Decision, Sink
from app.errors import DeclarationError
from app.event import Columns, Event, EventDecoder
from app.features import Features, count, mean, total
from app.pipeline import Pipeline


class Payment(Event, frozen=True):
    card: str
    terminal: str
    amount: float


class Refund(Event, frozen=True):
    card: str


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")
    usual = mean("amount", last=["1d", "7d"])


class TerminalHistory(Features, of=Payment, by="terminal"):
    visits = count(last="1h")


class RefundHistory(Features, of=Refund, by="card"):
    refunds = count(last="1h")


class Typed(Action, frozen=True):
    type: str


class Hold(Action, frozen=True):
    payment: str
    risk: float = 0.0


class Note(Action, frozen=True):
    text: Any


class RiskModel:
    inputs: ClassVar = ("amount", "payments")
    outputs: ClassVar = ("risk",)


class TwoHeads:
    inputs: ClassVar = ("amount",)
    outputs: ClassVar = ("value", "embedding")


class Deployment:
    """As Serve wraps a class."""

    func_or_class = RiskModel


def declare(**parts: Any) -> Pipeline[Payment]:
    defaults: dict[str, Any] = {"source": Payment, "features": [CardHistory], "models": {"risk": RiskModel}}
    return Pipeline(**defaults | parts)


def payments(*amounts: float) -> list[Payment]:
    return [Payment(str(at), at, "c", "t", amount) for at, amount in enumerate(amounts)]


def columns(events: Sequence[Payment], **more: Any) -> Columns:
    decoded = EventDecoder(Payment, max_ahead_ms=10**15).decode(
        [msgspec.json.encode(event) for event in events], [None] * len(events), np.zeros(len(events), np.int64)
    )
    history = {name: np.arange(len(events)) * 1.0 for name in CardHistory.columns()}
    return decoded.columns | history | {name: np.asarray(value) for name, value in more.items()}


def judge(pipeline: Pipeline[Payment], *amounts: float, fallback: bool = False, **more: Any) -> list[Any]:
    """The actions of each row, decoded; the exception where there is one."""
    events = payments(*amounts)
    verdicts = pipeline.judge(events, columns(events, **more), fallback=fallback)
    assert verdicts.count == sum(len(json.loads(each)) for each in verdicts.actions if each)
    answers: list[Any] = [None if each is None else json.loads(each) for each in verdicts.actions]
    for row, error in verdicts.failed.items():
        assert answers[row] is None
        answers[row] = error
    return answers


# What is refused, and with which remedy.


def _foreign_parameter(payment: Payment, score: float) -> Iterable[Action]:
    return ()


def _score_parameter(payment: Payment, risk: float) -> Iterable[Action]:
    return ()


def _foreign_features(history: TerminalHistory) -> Iterable[Action]:
    return ()


def _keyword_only(payment: Payment, *, risk: float) -> Iterable[Action]:
    return ()


def _any_number(*payments: Payment) -> Iterable[Action]:
    return ()


class NeedsMore:
    inputs: ClassVar = ("amount", "visits", "weather")
    outputs: ClassVar = ("risk",)


class Shadowing:
    inputs: ClassVar = ("amount",)
    outputs: ClassVar = ("risk", "payments")


class Silent:
    pass


class Odd(Event, frozen=True):
    tags: list[str]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a model with inputs that nothing gives": (
        {"models": {"risk": NeedsMore}},
        r"the model 'risk' \(NeedsMore\) needs visits, weather, which no field or feature gives; there are id, time, ",
    ),
    "a model named after none of its outputs": (
        {"models": {"score": RiskModel}},
        r"the model 'score' \(RiskModel\) gives risk; name it after one of these",
    ),
    "a model that does not say its columns": (
        {"models": {"risk": Silent}},
        "the model 'risk' .*does not say its columns; give its class `inputs` and `outputs`",
    ),
    "a score with a feature's name": (
        {"models": {"risk": Shadowing}},
        "'payments' names more than one of the pipeline's fields, features and scores; rename one",
    ),
    "two models with one output": (
        {"models": {"risk": RiskModel, "payments": Shadowing}},
        "'payments' names more than one|'risk' names more than one",
    ),
    "the same features twice": ({"features": [CardHistory, CardHistory]}, "'CardHistory' names more than one"),
    "features of two keys": (
        {"features": [CardHistory, TerminalHistory]},
        "keyed by card and terminal; a pipeline has one key",
    ),
    "features of another event": (
        {"features": [RefundHistory]},
        "RefundHistory is of Refund, but the pipeline's source is Payment",
    ),
    "a decide parameter that is nothing": (
        {"decide": _foreign_parameter},
        r"_foreign_parameter\(\) has a parameter 'score' that is nothing of this pipeline; annotate it with Payment or "
        "CardHistory, or name one of id, time, card, terminal, amount, payments, usual_1d, usual_7d, risk",
    ),
    "a decide parameter of features that are not declared": ({"decide": _foreign_features}, "parameter 'history'"),
    "a decide parameter that only a keyword can give": ({"decide": _keyword_only}, "'risk: float' .*without \\*"),
    "a decide with any number of parameters": ({"decide": _any_number}, r"'\*payments: .*without \*"),
    "a fallback that asks for a score": ({"fallback": _score_parameter}, "has a parameter 'risk' that is nothing"),
    "a score without its model": ({"models": {}, "decide": _score_parameter}, "parameter 'risk'"),
    "two sinks of one name": (
        {"actions": {Hold: [Sink("holds")], Decision: [Sink("scores"), Sink("holds")]}},
        "two sinks are called 'holds'; the YAML and the cursors need distinct names",
    ),
    "actions of a class that is none": ({"actions": {Payment: [Sink("holds")]}}, r"Payment.* is no Action class"),
    "an action with a field that hides its name": (
        {"actions": {Typed: [Sink("holds")]}},
        r"Typed\.type hides the action's own name in the log; rename the field",
    ),
    "actions of an instance": ({"actions": {Hold("1"): [Sink("holds")]}}, r"Hold\(.* is no Action class; declare"),
    "a source with an impossible field": (
        {"source": Odd, "features": []},
        r"Odd\.tags is a .* which is no column",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_at_import(case: str) -> None:
    parts, message = REFUSED[case]
    with pytest.raises(DeclarationError, match=message):
        declare(**parts)


# What is declared.


def test_a_pipeline_of_a_topic_a_model_and_a_topic_is_three_lines_and_has_no_key() -> None:
    scores = Pipeline(source=Payment, models={"value": TwoHeads}, actions={Decision: [Sink("scores")]})
    assert scores.by is None
    assert scores.inputs == {"amount"}
    assert scores.sinks == {"scores": (Decision, Sink("scores"))}
    assert judge(scores, 1.0, 2.0) == [None, None]
    assert judge(scores, 1.0, fallback=True) == [None]


def test_a_source_alone_is_a_pipeline() -> None:
    alone = Pipeline(source=Payment)
    assert (alone.by, alone.inputs, alone.sinks) == (None, frozenset(), {})


def test_key_inputs_and_sinks_are_those_declared() -> None:
    declared = declare(
        models={"risk": Deployment(), "embedding": TwoHeads},
        actions={Hold: [Sink("a"), Sink("b")], Note: []},
    )
    assert declared.by == "card"
    assert declared.inputs == {"amount", "payments"}
    assert declared.sinks == {"a": (Hold, Sink("a")), "b": (Hold, Sink("b"))}


def test_decide_is_given_events_and_features_by_annotation_and_columns_by_name() -> None:
    seen: list[Any] = []

    def decide(usual_7d: float, it: Payment, risk: float, past: CardHistory, card, embedding: Any) -> list[Action]:  # type: ignore[no-untyped-def]
        seen.append((usual_7d, it, risk, past.payments, past.usual_1d, card, embedding.tolist()))
        return []

    declared = declare(models={"risk": RiskModel, "value": TwoHeads}, decide=decide)
    judge(declared, 5.0, 6.0, risk=np.array([0.25, 0.5], np.float32), value=[0, 0], embedding=[[1, 2], [3, 4]])
    assert seen == [
        (0.0, Payment("0", 0, "c", "t", 5.0), 0.25, 0.0, 0.0, "c", [1, 2]),
        (1.0, Payment("1", 1, "c", "t", 6.0), 0.5, 1.0, 1.0, "c", [3, 4]),
    ]
    assert {type(value) for row in seen for value in row[:1] + row[2:5]} == {float}


def test_an_annotation_wins_over_a_name() -> None:
    def decide(amount: Payment) -> Iterator[Action]:
        yield Note(amount.id)

    assert judge(declare(decide=decide), 3.0) == [[{"type": "Note", "text": "0"}]]


def test_actions_are_json_in_the_order_in_which_decide_gave_them() -> None:
    def decide(payment: Payment, risk: float) -> Iterator[Action]:
        if risk > 0.5:
            yield Hold(payment.id, risk)
            yield Note(["ä", None, {"a": 1}])
            yield Hold("again")

    declared = declare(decide=decide)
    assert judge(declared, 1.0, 2.0, risk=[0.5, 0.75]) == [
        None,
        [
            {"type": "Hold", "payment": "1", "risk": 0.75},
            {"type": "Note", "text": ["ä", None, {"a": 1}]},
            {"type": "Hold", "payment": "again", "risk": 0.0},
        ],
    ]


def test_an_exception_of_decide_concerns_its_own_row_alone() -> None:
    def decide(payment: Payment) -> Iterator[Action]:
        yield Hold(payment.id)
        if payment.amount == 13:
            raise ValueError("unlucky")

    first, second, third = judge(declare(decide=decide), 1.0, 13.0, 2.0)
    assert isinstance(second, ValueError)
    assert (first[0]["payment"], third[0]["payment"]) == ("0", "2")


@pytest.mark.parametrize("yielded", ["text", None, Payment, {"type": "Hold"}, Note(object()), Note({1, object()})])
def test_what_is_no_action_or_no_json_fails_its_own_row_alone(yielded: Any) -> None:
    def decide(payment: Payment) -> Iterator[Any]:
        yield yielded if payment.amount == 13 else Hold(payment.id)

    first, second, third = judge(declare(decide=decide), 1.0, 13.0, 2.0)
    assert isinstance(second, TypeError)
    assert (first[0]["payment"], third[0]["payment"]) == ("0", "2")


def test_a_decide_that_forgets_to_answer_fails_its_rows() -> None:
    [error] = judge(declare(decide=lambda amount: None), 1.0)
    assert isinstance(error, TypeError)


def test_numpy_values_in_an_action_are_plain_json() -> None:
    def decide(embedding: Any) -> Iterator[Action]:
        yield Note([embedding[0], embedding, np.int64(3), np.bool_(True)])

    declared = declare(models={"value": TwoHeads}, decide=decide)
    assert judge(declared, 1.0, value=[0.0], embedding=np.array([[0.5, 2.0]], np.float32)) == [
        [{"type": "Note", "text": [0.5, [0.5, 2.0], 3, True]}]
    ]


def hold_all(payment: Payment) -> Iterator[Action]:
    yield Hold(payment.id)


def held(answers: list[Any]) -> list[int]:
    return [at for at, each in enumerate(answers) if isinstance(each, list)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 1))
def test_decide_is_called_only_where_the_condition_holds(risks: list[float], limit: float) -> None:
    declared = declare(decide=hold_all, when=lambda c: c["risk"] > limit)
    answers = judge(declared, *[1.0] * len(risks), risk=np.array(risks))
    assert held(answers) == [at for at, risk in enumerate(risks) if risk > limit]


def test_the_condition_does_not_bind_the_fallback() -> None:
    declared = declare(decide=hold_all, fallback=hold_all, when=lambda c: c["risk"] > 0.5)
    assert held(judge(declared, 1.0, 2.0, fallback=True)) == [0, 1]


def test_a_condition_that_raises_fails_the_rows_that_it_raises_for() -> None:
    def when(c: Columns) -> Any:
        if (c["amount"] == 13).any():
            raise ZeroDivisionError
        return c["amount"] > 1

    answers = judge(declare(decide=hold_all, when=when), 1.0, 13.0, 2.0)
    assert isinstance(answers[1], ZeroDivisionError)
    assert held(answers) == [2]


@pytest.mark.parametrize(
    "when", [lambda c: True, lambda c: c["amount"], lambda c: c["amount"][:, None] > 0, lambda c: None]
)
def test_a_condition_that_is_not_one_bool_a_row_fails_every_row(when: Callable[[Columns], Any]) -> None:
    answers = judge(declare(decide=hold_all, when=when), 1.0, 2.0, 3.0)
    assert [type(each) for each in answers] == [TypeError] * 3
    assert "not one bool for each" in str(answers[0])


def test_the_fallback_decides_without_scores() -> None:
    def rules(payment: Payment, past: CardHistory) -> Iterator[Action]:
        if past.payments >= 1:
            yield Hold(payment.id, 1.0)

    declared = declare(decide=lambda risk: [], fallback=rules)
    assert judge(declared, 1.0, 2.0, fallback=True) == [None, [{"type": "Hold", "payment": "1", "risk": 1.0}]]


def test_a_deadline_is_a_duration() -> None:
    assert declare(fallback=lambda amount: [], deadline="100ms").deadline_ms == 100


@pytest.mark.parametrize(
    ("fallback", "deadline", "message"),
    [
        (None, "100ms", "deadline is '100ms', and nothing could decide when it is near; give the pipeline a fallback"),
        (lambda amount: [], "soon", "deadline: 'soon' is not a duration; write a number and a unit"),
    ],
)
def test_a_deadline_that_cannot_be_kept_is_refused_at_import(fallback: Any, deadline: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        declare(fallback=fallback, deadline=deadline)


def test_without_a_fallback_nothing_is_decided_by_it() -> None:
    assert judge(declare(decide=hold_all), 1.0, fallback=True) == [None]


class Spent(Features, of=Payment, by="card"):
    spent = total("amount", last="1h")


def test_several_features_of_one_key_stand_side_by_side() -> None:
    def decide(a: CardHistory, b: Spent) -> Iterator[Action]:
        yield Note([a.payments, b.spent])

    declared = declare(features=[CardHistory, Spent], decide=decide)
    assert judge(declared, 1.0, spent=[7.5]) == [[{"type": "Note", "text": [0.0, 7.5]}]]

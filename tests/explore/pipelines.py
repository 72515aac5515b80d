"""A pipeline that costs little, with every kind of sink, and a model that never answers the same twice."""

from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar

import numpy as np

from app.actions.action import Action
from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.upsert import Upsert
from app.event import Columns, Event
from app.features import Features, total
from app.features import count as counted
from app.pipeline import Pipeline

UNLUCKY = 13.0


class Payment(Event, frozen=True):
    card: str
    amount: float


class History(Features, of=Payment, by="card"):
    payments = counted(last="1m")
    spent = total("amount", last="1m")


class Risk:
    inputs: ClassVar[tuple[str, ...]] = ("amount", "payments")
    outputs: ClassVar[tuple[str, ...]] = ("risk",)


class Hold(Action, frozen=True):
    payment: str
    risk: float


class Alert(Action, frozen=True):
    card: str
    spent: float


def decide(payment: Payment, history: History, risk: float) -> Iterator[Action]:
    if payment.amount == UNLUCKY:
        raise ValueError("unlucky")
    if risk > 2:
        yield Hold(payment.id, risk)
    if payment.amount > 3:
        yield Alert(payment.card, history.spent)


def rules(payment: Payment, history: History) -> Iterator[Action]:
    yield Hold(payment.id, -1.0)


ACTIONS: dict[type[Action], list[Any]] = {Hold: [Publish("holds"), Upsert("held")], Alert: [Post("cases")]}
patient = Pipeline(source=Payment, features=[History], models={"risk": Risk}, decide=decide, actions=ACTIONS)
hasty = Pipeline(
    source=Payment, features=[History], models={"risk": Risk}, decide=decide, fallback=rules, actions=ACTIONS
)


class MoodyModel:
    """Its answer depends on how often it was asked before: what is logged first has to stand."""

    def __init__(self) -> None:
        self._calls = count()

    def predict(self, columns: Columns) -> Any:
        return columns["amount"] + columns["payments"] / 8 + np.float64(next(self._calls) % 3)

"""The fraud pipeline as chaos runs it: more payments are held, some are poison, and the model can be slowed down."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve

from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.redis import Redis
from app.actions.upsert import Upsert
from app.event import Columns
from app.pipeline import Pipeline
from app.pipelines.fraud import CardHistory, Hold, Payment
from deployments.fraud import FraudScorer
from deployments.scorer import Model

RISKY = 0.005
"""Holds more payments than the pipeline that ships: an effect that is lost or repeated shows the sooner."""
POISON_AMOUNT = 0.0
"""No simulated payment has it. The model raises for it, and so does the fallback."""


class SlowedModel:
    """A model, and how long it takes longer."""

    def __init__(self, model: Model) -> None:
        self.version = model.version
        self.delay_s = 0.0
        self._model = model

    def predict(self, columns: Columns) -> Columns:
        time.sleep(self.delay_s)
        if np.any(columns["amount"] == POISON_AMOUNT):
            raise ValueError("a payment of nothing")
        return self._model.predict(columns)


@serve.deployment(name="FraudScorer", user_config={})
class ChaosScorer(FraudScorer.func_or_class):  # type: ignore[name-defined,misc]
    """FraudScorer with one more key in its `user_config`: `delay_s`, how much longer a prediction takes."""

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        await super().reconfigure({name: value for name, value in user_config.items() if name != "delay_s"})
        self._model.delay_s = float(user_config.get("delay_s", 0.0))

    def load(self, weights: Path, device: str) -> Model:
        return SlowedModel(super().load(weights, device))


def hold(payment: Payment, risk: float) -> Iterator[Hold]:
    """Raises ValueError for a poison payment."""
    if payment.amount == POISON_AMOUNT:
        raise ValueError("a payment of nothing")
    yield Hold(payment.id, payment.card, payment.amount, risk)


def rules(payment: Payment, card: CardHistory) -> Iterator[Hold]:
    if payment.amount == POISON_AMOUNT or payment.amount > 150 or card.payments_1d > 20:
        yield from hold(payment, 1.0)


chaos = Pipeline(
    source=Payment,
    features=[CardHistory],
    models={"risk": ChaosScorer},
    decide=hold,
    when=lambda columns: (columns["risk"] > RISKY) | (columns["amount"] == POISON_AMOUNT),
    fallback=rules,
    actions={Hold: [Publish("holds"), Post("case-system"), Upsert("held_payments"), Redis("held-hashes")]},
)

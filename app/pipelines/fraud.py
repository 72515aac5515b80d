"""Card fraud: judge each payment against its card's past, and hold the risky ones."""

from collections.abc import Iterator

from app.actions.action import Action
from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.upsert import Upsert
from app.event import Event
from app.features import Features, count, mean
from app.pipeline import Pipeline
from deployments.fraud import FraudScorer

RISKY = 0.02
"""0.8 % of simulated payments score above it, and one in three of these is fraud."""


class Payment(Event, frozen=True):
    card: str
    terminal: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    """What the card did up to and including this payment."""

    payments = count(last=["1d", "7d", "30d"])
    mean_amount = mean("amount", last=["1d", "7d", "30d"])


class Hold(Action, frozen=True):
    """Do not let the payment through before somebody has looked at it."""

    payment: str
    card: str
    amount: float
    risk: float


def decide(payment: Payment, risk: float) -> Iterator[Action]:
    if risk > RISKY:
        yield Hold(payment.id, payment.card, payment.amount, risk)


def rules(payment: Payment, card: CardHistory) -> Iterator[Action]:
    """The model is late or down: hold only what is blatant."""
    if payment.amount > 220 or card.payments_1d > 20:
        yield Hold(payment.id, payment.card, payment.amount, risk=1.0)


fraud = Pipeline(
    source=Payment,
    features=[CardHistory],
    models={"risk": FraudScorer},
    decide=decide,
    when=lambda columns: columns["risk"] > RISKY,
    fallback=rules,
    deadline="100ms",
    actions={Hold: [Publish("holds"), Post("case-system"), Upsert("held_payments")]},
)

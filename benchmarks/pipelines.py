"""The fraud pipeline as it is compared with the hand-written loop: a record for each decision, and nothing else."""

from app.actions.action import Decision
from app.actions.publish import Publish
from app.pipeline import Pipeline
from app.pipelines.fraud import CardHistory, Payment
from deployments.fraud import FraudScorer

scores = Pipeline(
    source=Payment,
    features=[CardHistory],
    models={"risk": FraudScorer},
    actions={Decision: [Publish("scores")]},
)

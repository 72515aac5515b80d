"""Serves the fraud model. Imported by stream workers for its names alone: torch is loaded in the replica only."""

from pathlib import Path

from ray import serve

from deployments.scorer import Model, Scorer
from models.fraud_signals import INPUTS


@serve.deployment(
    name="FraudScorer",
    user_config={},
    max_ongoing_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 4},
    ray_actor_options={"num_cpus": 0.5},
    health_check_period_s=2,
    health_check_timeout_s=10,
)
class FraudScorer(Scorer):
    """The risk, a probability, that a payment is fraud. The config's YAML overrides every setting above."""

    inputs = INPUTS
    outputs = ("risk",)
    weights = "models/fraud.safetensors"

    def load(self, weights: Path, device: str) -> Model:
        from models import fraud

        return fraud.load(weights, device)

"""Keyed as-of features: what an entity did up to an event, over exact sliding windows of event time."""

from app.features.declaration import Features
from app.features.feature import (
    count,
    distinct,
    latest,
    maximum,
    mean,
    minimum,
    std,
    time_since_last,
    total,
)
from app.features.state import KeyedState

__all__ = [
    "Features",
    "KeyedState",
    "count",
    "distinct",
    "latest",
    "maximum",
    "mean",
    "minimum",
    "std",
    "time_since_last",
    "total",
]

"""Headrace: real-time AI pipelines on Ray.

What a pipeline file needs can be imported from here: `from app import Event, Features, Pipeline, count, Publish`.
Names are looked up when they are first used, so that `python -m app broker` does not load numba.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.actions.action import Action, Decision
    from app.actions.post import Post
    from app.actions.publish import Publish
    from app.actions.upsert import Upsert
    from app.errors import HeadraceError
    from app.event import Columns, Event
    from app.features import (
        Features,
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
    from app.pipeline import Pipeline

_HOMES = {
    "app.actions.action": ("Action", "Decision"),
    "app.actions.post": ("Post",),
    "app.actions.publish": ("Publish",),
    "app.actions.upsert": ("Upsert",),
    "app.errors": ("HeadraceError",),
    "app.event": ("Columns", "Event"),
    "app.features": (
        "Features",
        "count",
        "distinct",
        "latest",
        "maximum",
        "mean",
        "minimum",
        "std",
        "time_since_last",
        "total",
    ),
    "app.pipeline": ("Pipeline",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Action",
    "Columns",
    "Decision",
    "Event",
    "Features",
    "HeadraceError",
    "Pipeline",
    "Post",
    "Publish",
    "Upsert",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'app' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)

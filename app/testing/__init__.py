"""Tests of pipelines: drive() runs one in simulated time, with everything that can go wrong as items of its input.

What it is made of can be used by itself: Simulation, which is moved on by hand, and a Kafka in memory.
"""

from app.testing.drive import Decided, Rejected, Result, drive
from app.testing.faults import (
    ACTION_CRASH,
    BROKER_AWAY,
    COORDINATOR_SILENT,
    CRASH,
    DUPLICATE,
    MODEL_AWAY,
    PAUSE,
    REORDER,
    SLOW,
    TORN,
    Away,
    Crash,
    Pause,
    Record,
    Slow,
    Wait,
)
from app.testing.models import Delayed, failing, late
from app.testing.simulation import Simulation, StuckError
from app.testing.sinks import Effect

__all__ = [
    "ACTION_CRASH",
    "BROKER_AWAY",
    "COORDINATOR_SILENT",
    "CRASH",
    "DUPLICATE",
    "MODEL_AWAY",
    "PAUSE",
    "REORDER",
    "SLOW",
    "TORN",
    "Away",
    "Crash",
    "Decided",
    "Delayed",
    "Effect",
    "Pause",
    "Record",
    "Rejected",
    "Result",
    "Simulation",
    "Slow",
    "StuckError",
    "Wait",
    "drive",
    "failing",
    "late",
]

"""What a sink loop tells of itself."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from app.actions.reading import Passed
from app.breaker import BreakerState


class StepReport(NamedTuple):
    """What one step has done. An event counts when the sink is past it, with or without an action of the sink's.

    events:              decided events that the sink has passed.
    actions:             deliveries carried out, dead letters included.
    dead_letters:        deliveries given up.
    append_to_acted_ms:  (events,) float64.
    logged_to_acted_ms:  (events,) float64.
    """

    events: int
    actions: int
    dead_letters: int
    append_to_acted_ms: npt.NDArray[np.float64]
    logged_to_acted_ms: npt.NDArray[np.float64]


def report(passed: Sequence[Passed], actions: int, dead_letters: int, now_ms: float) -> StepReport:
    """The report of a step that was over at `now_ms`."""
    append_ms = np.concatenate([np.empty(0), *(each.append_ms for each in passed)])
    logged_ms = np.concatenate([np.empty(0), *(each.logged_ms for each in passed)])
    return StepReport(len(logged_ms), actions, dead_letters, now_ms - append_ms, now_ms - logged_ms)


class PartitionStatus(msgspec.Struct, frozen=True):
    """Where a sink is in one partition.

    applied:    the last source offset that is carried out, None before the first.
    log_offset: the next record of the decision log to read; None before the sink knows.
    lag:        records of the decision log still to read, as of the last second.
    retries:    failures since something was last carried out; `error` is the latest one.
    """

    applied: int | None = None
    log_offset: int | None = None
    lag: int | None = None
    retries: int = 0
    error: str | None = None


class SinkStatus(msgspec.Struct, frozen=True):
    """How a sink is.

    error:   what concerns the whole sink: it or the broker is away, the cursor cannot be committed.
    breaker: open or half-open while the sink is away; `retries` are the tries in a row that found it so.
    """

    sink: str
    partitions: Mapping[int, PartitionStatus] = {}
    error: str | None = None
    breaker: BreakerState = "closed"
    retries: int = 0

"""Latency, stage by stage: what workers count, what the coordinator sums up, and when a budget is exceeded.

Workers observe into a `StageLatency` and send what is new with each heartbeat; the coordinator adds it to its
`LatencyBoard`. Only counts travel, never single values, so the cost does not grow with the stream.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal, NamedTuple, TypedDict, get_args

import numpy as np
import numpy.typing as npt

Stage = Literal["fetched", "features", "queued", "scored", "decided", "logged", "acted", "end_to_end"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Each stage's latency runs from the end of the one before it: `fetched` from the append of the event to the
source topic, `acted` from the acknowledged write to the decision log until the sink has it. `end_to_end` is
append to acted."""

OCTAVES = 24
STEPS = 16
LOWEST_MS = 2.0**-4
HIGHEST_MS = LOWEST_MS * 2**OCTAVES
BUCKETS = OCTAVES * STEPS + 1
MANTISSA_BITS = 48
"""A float64 without these keeps its exponent and 4 bits of mantissa: the number of a bucket 1/16 octave wide.
That replaces a logarithm: 100 values cost about 9 µs."""

WINDOW_MS = 60_000
SLOTS = 12
MIN_SAMPLES = 100
"""Below this a p99 is the one slowest event; no alert begins or ends on it."""


class Counts(TypedDict):
    """A histogram that travels, JSON or pickle: only the buckets that hold something."""

    sum_ms: float
    buckets: list[int]
    counts: list[int]


StageCounts = dict[str, Counts]
"""Per stage what a worker has counted, of the stages it has anything of."""


_FIRST_BUCKET = int(np.float64(LOWEST_MS).view(np.int64)) >> MANTISSA_BITS
_LOWER_MS = ((_FIRST_BUCKET + np.arange(BUCKETS)) << MANTISSA_BITS).view(np.float64)
_MIDDLE_MS = np.append((_LOWER_MS[:-1] + _LOWER_MS[1:]) / 2, HIGHEST_MS)
_COARSE = range(3 * STEPS, 21 * STEPS, STEPS // 2)
"""Prometheus' bounds: two an octave, from 0.5 ms to 98 s, each a bound of the fine buckets too."""


class Histogram:
    """How often a latency fell into each of 385 fixed buckets, 1/16 octave wide, 0.0625 ms to 17 minutes.

    A quantile is off by at most 3.2 %. What is smaller (or negative: two clocks) counts as 0.0625 ms, what is
    larger as 17 minutes.
    """

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS, dtype=np.int64)
        self.sum_ms = 0.0

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def observe(self, values_ms: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> None:
        """Counts each value. NaN counts as the smallest."""
        clamped = np.fmin(np.fmax(values_ms, LOWEST_MS, dtype=np.float64), HIGHEST_MS)
        buckets = (clamped.view(np.int64) >> MANTISSA_BITS) - _FIRST_BUCKET
        self.counts += np.bincount(buckets, minlength=BUCKETS)
        self.sum_ms += float(clamped.sum())

    def observe_batch(self, value_ms: float, rows: int) -> None:
        """Counts one value for each of the `rows` events of a micro-batch, which share it."""
        clamped = np.float64(min(max(value_ms, LOWEST_MS), HIGHEST_MS))
        self.counts[(int(clamped.view(np.int64)) >> MANTISSA_BITS) - _FIRST_BUCKET] += rows
        self.sum_ms += float(clamped) * rows

    def merge(self, other: "Histogram") -> None:
        self.counts += other.counts
        self.sum_ms += other.sum_ms

    def add(self, counts: Counts) -> None:
        """Adds what `to_dict` gave, of this or another histogram."""
        self.counts[counts["buckets"]] += np.asarray(counts["counts"], dtype=np.int64)
        self.sum_ms += counts["sum_ms"]

    def to_dict(self) -> Counts:
        buckets = np.flatnonzero(self.counts)
        return Counts(sum_ms=self.sum_ms, buckets=buckets.tolist(), counts=self.counts[buckets].tolist())

    @classmethod
    def from_dict(cls, counts: Counts) -> "Histogram":
        histogram = cls()
        histogram.add(counts)
        return histogram

    def quantile(self, q: float) -> float | None:
        """The latency in ms that a share `q` of all values does not exceed; None when there are none."""
        return self.quantiles([q])[0]

    def quantiles(self, qs: Sequence[float]) -> list[float | None]:
        """`quantile` for several shares, at the cost of one."""
        up_to = np.cumsum(self.counts)
        count = int(up_to[-1])
        if count == 0:
            return [None] * len(qs)
        ranks = [max(1, ceil(q * count)) for q in qs]
        return [float(value) for value in _MIDDLE_MS[np.searchsorted(up_to, ranks)]]

    def coarse(self) -> list[tuple[float, int]]:
        """Prometheus' view: pairs of an upper bound in ms and how many values lie below it."""
        up_to = np.cumsum(self.counts)
        return [(float(_LOWER_MS[bound]), int(up_to[bound - 1])) for bound in _COARSE]


class StageLatency:
    """A worker's side: counts what has happened since the last heartbeat.

    Its task threads observe while its heartbeat takes; every method is safe to call from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[str, Histogram] = {}

    def observe(self, stage: Stage, values_ms: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> None:
        """Counts each event's own latency."""
        with self._lock:
            self._of(stage).observe(values_ms)

    def observe_batch(self, stage: Stage, value_ms: float, rows: int) -> None:
        """Counts the one latency that `rows` events of a micro-batch share."""
        with self._lock:
            self._of(stage).observe_batch(value_ms, rows)

    def take(self) -> StageCounts:
        """What was observed since the last `take`: the latency part of a heartbeat."""
        with self._lock:
            taken, self._stages = self._stages, {}
        return {stage: histogram.to_dict() for stage, histogram in taken.items()}

    def put_back(self, counts: StageCounts) -> None:
        """Counts again what `take` gave, because the heartbeat did not reach the coordinator."""
        with self._lock:
            for stage, each in counts.items():
                self._of(stage).add(each)

    def _of(self, stage: str) -> Histogram:
        if stage not in self._stages:
            if stage not in STAGES:
                raise KeyError(f"{stage!r} is not a stage; the stages are {', '.join(STAGES)}")
            self._stages[stage] = Histogram()
        return self._stages[stage]


class RollingHistogram:
    """The histogram of the last minute, in 12 slots of 5 s: the oldest slot leaves as a whole."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, Histogram]] = deque()

    def add(self, now_ms: int, counts: Counts) -> None:
        """Adds to the current slot. A clock that is set back adds to the newest one."""
        slot = now_ms * SLOTS // WINDOW_MS
        if not self._slots or self._slots[-1][0] < slot:
            self._slots.append((slot, Histogram()))
        self._slots[-1][1].add(counts)
        self._forget(slot)

    def total(self, now_ms: int) -> Histogram:
        self._forget(now_ms * SLOTS // WINDOW_MS)
        total = Histogram()
        for _, histogram in self._slots:
            total.merge(histogram)
        return total

    def _forget(self, slot: int) -> None:
        while self._slots and self._slots[0][0] <= slot - SLOTS:
            self._slots.popleft()


Budgets = Mapping[Stage, int]
"""The most that a stage's p99 over the last minute may be, in ms. Stages that are absent have no budget."""


class Alert(NamedTuple):
    """A stage whose p99 over the last minute is above its budget, since `since_ms`."""

    stage: Stage
    budget_ms: int
    since_ms: int
    p99_ms: float


class AlertChange(NamedTuple):
    """An alert that began, or one that ended at `at_ms`, to be logged. `p99_ms` is None when it ended because
    nothing was observed for a minute."""

    kind: Literal["began", "ended"]
    stage: Stage
    budget_ms: int
    since_ms: int
    at_ms: int
    p99_ms: float | None

    def __str__(self) -> str:
        if self.p99_ms is None:
            return f"latency of {self.stage}: the alert ended, nothing was observed for a minute"
        measured = f"p99 {self.p99_ms:.1f} ms over the last minute, budget {self.budget_ms} ms"
        if self.kind == "began":
            return f"latency of {self.stage} is above its budget: {measured}"
        lasted_s = (self.at_ms - self.since_ms) / 1000
        return f"latency of {self.stage} is within its budget again after {lasted_s:.0f} s: {measured}"


class BudgetWatch:
    """Turns p99s into alerts: one change when an alert begins, one when it ends, none in between.

    Fewer than 100 events in the last minute change nothing; none at all end an alert.
    """

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.open: dict[Stage, Alert] = {}

    def check(self, now_ms: int, last_minute: Mapping[str, Histogram]) -> list[AlertChange]:
        changes = (self._check_stage(now_ms, stage, last_minute[stage]) for stage in self.budgets)
        return [change for change in changes if change is not None]

    def _check_stage(self, now_ms: int, stage: Stage, histogram: Histogram) -> AlertChange | None:
        budget_ms, p99_ms = self.budgets[stage], histogram.quantile(0.99)
        if p99_ms is None:
            return self._end(now_ms, stage, None)
        if histogram.count < MIN_SAMPLES:
            return None
        if p99_ms <= budget_ms:
            return self._end(now_ms, stage, p99_ms)
        known = self.open.get(stage)
        since_ms = known.since_ms if known else now_ms
        self.open[stage] = Alert(stage, budget_ms, since_ms, p99_ms)
        return None if known else AlertChange("began", stage, budget_ms, now_ms, now_ms, p99_ms)

    def _end(self, now_ms: int, stage: Stage, p99_ms: float | None) -> AlertChange | None:
        ended = self.open.pop(stage, None)
        return ended and AlertChange("ended", stage, ended.budget_ms, ended.since_ms, now_ms, p99_ms)


class Spread(TypedDict):
    """A distribution in four numbers; the quantiles are None without events."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class StageSummary(Spread):
    """A stage over the board's whole life, and over the last minute against its budget."""

    last_minute: Spread
    budget_ms: int | None
    alert: bool


class LatencyBoard:
    """The coordinator's side: sums up what all workers counted, over its life and over the last minute.

    Not safe to call from several threads. A board that restarts starts at zero, as Prometheus' counters may.
    """

    def __init__(self, budgets: Budgets) -> None:
        self._totals: dict[str, Histogram] = {stage: Histogram() for stage in STAGES}
        self._rolling: dict[str, RollingHistogram] = {stage: RollingHistogram() for stage in STAGES}
        self._watch = BudgetWatch(budgets)

    def add(self, now_ms: int, delta: StageCounts) -> None:
        """Adds what one worker's heartbeat brought (`StageLatency.take`)."""
        for stage, counts in delta.items():
            self._totals[stage].add(counts)
            self._rolling[stage].add(now_ms, counts)

    def check(self, now_ms: int) -> list[AlertChange]:
        """Compares with the budgets; call it about once a second and log what it returns."""
        return self._watch.check(now_ms, self._last_minute(now_ms))

    def alerts(self) -> list[dict[str, str | int | float]]:
        """The alerts that the last `check` left open: `[{"stage", "budget_ms", "since_ms", "p99_ms"}]`."""
        return [alert._asdict() for alert in self._watch.open.values()]

    def summary(self, now_ms: int) -> dict[str, StageSummary]:
        """Every stage, in the order of STAGES."""
        last_minute = self._last_minute(now_ms)
        return {
            stage: StageSummary(
                **_spread(self._totals[stage]),
                last_minute=_spread(last_minute[stage]),
                budget_ms=self._watch.budgets.get(stage),
                alert=stage in self._watch.open,
            )
            for stage in STAGES
        }

    def histograms(self) -> StageCounts:
        """Every stage's counts over the board's life, for Prometheus."""
        return {stage: histogram.to_dict() for stage, histogram in self._totals.items()}

    def _last_minute(self, now_ms: int) -> dict[str, Histogram]:
        return {stage: rolling.total(now_ms) for stage, rolling in self._rolling.items()}


def _spread(histogram: Histogram) -> Spread:
    p50_ms, p95_ms, p99_ms = histogram.quantiles([0.5, 0.95, 0.99])
    return Spread(count=histogram.count, p50_ms=p50_ms, p95_ms=p95_ms, p99_ms=p99_ms)

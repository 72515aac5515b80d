"""How many stream workers there should be: a policy for Serve's autoscaling, by lag and by how busy the workers are.

In the YAML, in place of `num_replicas`:

    autoscaling_config:
      min_replicas: 1
      max_replicas: 4
      look_back_period_s: 15
      upscale_delay_s: 5
      downscale_delay_s: 300
      policy:
        policy_function: app.runtime.scaling:ScaleByLag
        policy_kwargs: {catch_up_s: 30}

Serve keeps the number within min and max, and waits for its delays before it follows. Its controller gets this module
by value and has no `app` to import from: nothing but the standard library may be imported here. Its command line
imports it by name, and does not look into the folder it is in: `PYTHONPATH=. serve deploy …`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Limits:
    """When more workers are wanted, and when fewer.

    behind_s:   a lag that would take so long at the present rate is a backlog; below, batches are just under way.
    catch_up_s: a backlog that will not be gone in so long, as it grows or shrinks now, wants more workers.
    busy_above: so does a worker's thread that is busy for more than this share of the time.
    busy_below: one worker fewer is enough when the others would then be used for less than this share.
    settle_s:   after a change nothing is wanted for so long: a worker starts in 5 s and then loads its state. Not
                shorter than the look-back period, or what was measured before the change is taken for its result.
    """

    behind_s: float = 2.0
    catch_up_s: float = 30.0
    busy_above: float = 0.8
    busy_below: float = 0.5
    settle_s: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field.name} is {value!r}; write a number above 0")
        if not self.busy_below < self.busy_above <= 1:
            raise ValueError(
                f"busy_below is {self.busy_below}, busy_above {self.busy_above}; write shares of the time, the "
                "first one the lower"
            )


@dataclass(frozen=True)
class Load:
    """What all workers together have to do. `capacity` is the rate of one worker that had all it could do, when that
    was last seen; `busy` the mean share of the time of the workers' threads."""

    workers: int
    partitions: int
    lag: float
    growth_per_s: float
    events_per_s: float
    busy: float
    capacity: float | None = None


def is_behind(load: Load, limits: Limits) -> bool:
    return load.lag > limits.behind_s * load.events_per_s


def learn_capacity(load: Load, limits: Limits) -> float | None:
    """Workers that are behind get through what they can; those that are not can do at least what they do."""
    rate = load.events_per_s / load.workers
    if is_behind(load, limits):
        return rate or load.capacity
    return None if load.capacity is None else max(load.capacity, rate)


def wanted_workers(load: Load, limits: Limits) -> int:
    """Never more than there are partitions, and at least one."""
    return max(1, min(_wanted(load, limits), load.partitions))


def _wanted(load: Load, limits: Limits) -> int:
    if is_behind(load, limits):
        return _to_catch_up(load, limits)
    if load.busy > limits.busy_above:
        return load.workers + 1
    used = max(load.busy, load.events_per_s / load.workers / load.capacity if load.capacity else 0.0)
    fewer = load.workers - 1
    return fewer if fewer and used * load.workers / fewer < limits.busy_below else load.workers


def _to_catch_up(load: Load, limits: Limits) -> int:
    """As many as would be through with the backlog in time. None more where nothing moves at all: what holds one worker
    up, a broker or a model that is away, would hold up the others, too."""
    if not load.events_per_s:
        return load.workers
    arriving_per_s = max(0.0, load.events_per_s + load.growth_per_s)
    needed = load.workers * (arriving_per_s + load.lag / limits.catch_up_s) / load.events_per_s
    return max(load.workers, math.ceil(min(needed - TOLERANCE * load.workers, load.partitions)))


TOLERANCE = 0.1
"""Rates are measured to about so much; less of a difference is none."""


class Sample(NamedTuple):
    at_s: float
    value: float


Series = Mapping[str, Mapping[Any, Sequence[Sample]]]
"""By metric and worker, the samples of the look-back period."""


def observe(series: Series, workers: int) -> Load | None:
    """None while not every worker has said how it stands."""
    lags = series.get("lag", {}).values()
    if not workers or len(lags) < workers or not all(lags):
        return None
    return Load(
        workers=workers,
        partitions=round(max(each[-1].value for each in series["partitions"].values())),
        lag=sum(each[-1].value for each in lags),
        growth_per_s=sum(map(_slope, lags)),
        events_per_s=sum(map(_mean, series["events_per_s"].values())),
        busy=sum(map(_mean, series["busy"].values())) / workers,
    )


def _mean(samples: Sequence[Sample]) -> float:
    return sum(each.value for each in samples) / len(samples)


def _slope(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last.value - first.value) / (last.at_s - first.at_s) if last.at_s > first.at_s else 0.0


class ScaleByLag:
    """Serve calls it about ten times a second with its AutoscalingContext."""

    def __init__(self, **limits: float) -> None:
        known = [field.name for field in fields(Limits)]
        for name in limits:
            if name not in known:
                raise ValueError(f"nothing is called {name!r} here; known here: {', '.join(known)}")
        self.limits = Limits(**limits)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of workers that is wanted now, and what is to be remembered."""
        capacity = context.policy_state.get("capacity")
        load = observe(_series(context.raw_metrics), context.current_num_replicas)
        changes_s = [at_s for at_s in (context.last_scale_up_time, context.last_scale_down_time) if at_s is not None]
        settled = context.current_time - max(changes_s, default=0.0) >= self.limits.settle_s
        if load is None or not settled or context.current_num_replicas != context.target_num_replicas:
            return context.target_num_replicas, {"capacity": capacity}
        capacity = learn_capacity(replace(load, capacity=capacity), self.limits)
        return wanted_workers(replace(load, capacity=capacity), self.limits), {"capacity": capacity}


def _series(metrics: Mapping[str, Mapping[Any, Sequence[Any]]]) -> Series:
    return {
        name: {worker: [Sample(each.timestamp, each.value) for each in samples] for worker, samples in of_each.items()}
        for name, of_each in metrics.items()
    }

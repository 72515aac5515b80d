"""How many stream workers are wanted: by lag, its growth and busy share; and a simulated stream that is followed."""

import ast
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime import scaling
from app.runtime.scaling import Limits, Load, Sample, ScaleByLag, learn_capacity, observe, wanted_workers

LIMITS = Limits()
STEADY = Load(workers=2, partitions=8, lag=50, growth_per_s=0, events_per_s=10_000, busy=0.6)


def wanted(**changes: Any) -> int:
    return wanted_workers(replace(STEADY, **changes), LIMITS)


def test_what_is_under_way_is_no_lag() -> None:
    assert wanted() == 2
    assert wanted(lag=20_000) == 2


def test_a_backlog_that_will_not_be_gone_in_time_wants_as_many_workers_as_would_be_through_with_it() -> None:
    assert wanted(lag=600_000) == 6  # 10,000/s arriving and 20,000/s of the backlog, at 5,000/s a worker
    assert wanted(lag=100_000, growth_per_s=10_000) == 5


def test_a_backlog_that_shrinks_fast_enough_wants_nobody() -> None:
    assert wanted(lag=200_000, growth_per_s=-8_000) == 2


def test_there_are_never_more_workers_than_partitions() -> None:
    assert wanted(lag=10**9) == 8
    assert wanted(workers=8, busy=1.0) == 8


def test_nobody_is_added_where_nothing_moves_at_all() -> None:
    assert wanted(lag=10**9, events_per_s=0, growth_per_s=5_000) == 2


def test_busy_workers_get_help_before_there_is_a_lag() -> None:
    assert wanted(busy=0.81) == 3


def test_one_goes_when_the_others_would_not_be_busy_without_it() -> None:
    assert wanted(busy=0.24) == 1
    assert wanted(busy=0.26) == 2
    assert wanted(workers=1, busy=0.0, events_per_s=0, lag=0) == 1


def test_none_goes_while_there_is_a_backlog() -> None:
    assert wanted(busy=0.0, lag=100_000, growth_per_s=-9_000) == 2


def test_none_goes_when_the_others_could_not_keep_up_however_idle_their_threads_are() -> None:
    """A model that is slow keeps a worker's thread waiting, not busy."""
    assert wanted(busy=0.1, capacity=6_000) == 2
    assert wanted(busy=0.1, capacity=21_000) == 1


def test_capacity_is_what_workers_get_through_that_are_behind_or_more_if_they_do_more() -> None:
    assert learn_capacity(STEADY, LIMITS) is None
    assert learn_capacity(replace(STEADY, lag=10**6), LIMITS) == 5_000
    assert learn_capacity(replace(STEADY, capacity=4_000.0), LIMITS) == 5_000
    assert learn_capacity(replace(STEADY, capacity=9_000.0), LIMITS) == 9_000
    assert learn_capacity(replace(STEADY, lag=10**6, events_per_s=0, capacity=9_000.0), LIMITS) == 9_000


loads = st.builds(
    Load,
    workers=st.integers(1, 40),
    partitions=st.integers(1, 32),
    lag=st.floats(0, 1e9),
    growth_per_s=st.floats(-1e6, 1e6),
    events_per_s=st.floats(0, 1e6),
    busy=st.floats(0, 1),
    capacity=st.none() | st.floats(1, 1e6),
)


@given(loads)
def test_whatever_the_load_the_number_is_between_one_and_the_partitions_and_falls_by_one_at_most(load: Load) -> None:
    number = wanted_workers(load, LIMITS)
    assert 1 <= number <= load.partitions
    assert number >= min(load.workers - 1, load.partitions)


@given(loads, st.floats(1, 1e9))
def test_more_lag_never_wants_fewer(load: Load, more: float) -> None:
    assert wanted_workers(replace(load, lag=load.lag + more), LIMITS) >= wanted_workers(load, LIMITS)


def series(**values: list[list[float]]) -> dict[str, dict[str, list[Sample]]]:
    return {
        name: {f"w{at}": [Sample(2.0 * tick, value) for tick, value in enumerate(each)] for at, each in enumerate(many)}
        for name, many in values.items()
    }


def test_the_load_is_read_off_all_workers_samples() -> None:
    seen = series(
        lag=[[100, 200, 300], [50, 40, 30]],
        events_per_s=[[1_000, 2_000], [500, 500]],
        busy=[[0.2, 0.4], [0.1, 0.1]],
        partitions=[[4], [6]],
    )
    load = observe(seen, 2)
    assert load is not None
    assert (load.partitions, load.lag, load.growth_per_s, load.events_per_s) == (6, 330, 45, 2_000)
    assert load.busy == pytest.approx(0.2)


def test_nothing_is_said_before_every_worker_has_been_heard() -> None:
    assert observe({}, 1) is None
    assert observe(series(lag=[[1]], events_per_s=[[1]], busy=[[1]], partitions=[[1]]), 2) is None


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"catchup_s": 3}, "nothing is called 'catchup_s' here; known here: behind_s, catch_up_s, busy_above"),
        ({"behind_s": 0}, "behind_s is 0; write a number above 0"),
        ({"catch_up_s": "30s"}, "catch_up_s is '30s'; write a number above 0"),
        ({"busy_below": 0.9}, "busy_below is 0.9, busy_above 0.8; write shares of the time, the first one the lower"),
        ({"busy_above": 80}, "busy_below is 0.5, busy_above 80; write shares"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ScaleByLag(**limits)


@dataclass
class Stream:
    """Workers of 1,000 events/s each, a stream that they follow, and Serve's part of it, a second at a time."""

    arriving_per_s: float = 400.0
    lag: float = 0.0
    workers: int = 1
    now_s: float = 1_000.0
    changed_s: float | None = None
    state: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    history: list[int] = field(default_factory=list)

    def run(self, seconds: int, policy: ScaleByLag) -> list[int]:
        for _ in range(seconds):
            self.now_s += 1
            done = min(self.lag + self.arriving_per_s, 1_000.0 * self.workers)
            self.lag += self.arriving_per_s - done
            self.samples = [*self.samples, (self.now_s, self.lag, done)][-10:]
            wanted, self.state = policy(self._context())
            if wanted != self.workers:
                self.workers, self.changed_s = wanted, self.now_s
            self.history.append(self.workers)
        return self.history[-seconds:]

    def _context(self) -> SimpleNamespace:
        def of_each(values: list[float]) -> dict[int, list[SimpleNamespace]]:
            times = [at_s for at_s, _, _ in self.samples]
            points = [SimpleNamespace(timestamp=at_s, value=value) for at_s, value in zip(times, values, strict=True)]
            return dict.fromkeys(range(self.workers), points)

        share = [done / self.workers for _, _, done in self.samples]
        return SimpleNamespace(
            raw_metrics={
                "lag": of_each([lag / self.workers for _, lag, _ in self.samples]),
                "events_per_s": of_each(share),
                "busy": of_each([each / 1_000 * 0.3 for each in share]),  # a slow model: the thread waits
                "partitions": of_each([8.0] * len(share)),
            },
            current_num_replicas=self.workers,
            target_num_replicas=self.workers,
            last_scale_up_time=self.changed_s,
            last_scale_down_time=None,
            current_time=self.now_s,
            policy_state=self.state,
        )


def test_a_rush_is_followed_up_and_down_and_a_steady_stream_changes_nothing() -> None:
    stream, policy = Stream(), ScaleByLag()
    assert set(stream.run(120, policy)) == {1}
    stream.arriving_per_s = 2_500
    stream.run(120, policy)
    assert stream.workers in (3, 4)
    assert stream.lag == 0
    assert len(set(stream.run(300, policy))) == 1, "it keeps up, however idle its threads look"
    stream.arriving_per_s = 400
    assert set(stream.run(200, policy)[-50:]) == {1}
    changes = sum(before != after for before, after in zip(stream.history, stream.history[1:], strict=False))
    assert changes <= 6


def test_after_a_change_nothing_is_wanted_until_it_has_settled() -> None:
    stream, policy = Stream(lag=10_000_000), ScaleByLag(settle_s=60)
    stream.run(5, policy)
    first = stream.workers
    assert first > 1
    stream.lag, stream.arriving_per_s = 0, 0
    assert set(stream.run(55, policy)) == {first}
    assert stream.run(10, policy)[-1] == first - 1


def test_the_policy_can_be_loaded_where_nothing_of_the_application_can_be_imported() -> None:
    """Serve's controller gets the module by value."""
    nodes = ast.walk(ast.parse(Path(scaling.__file__).read_text()))
    modules = [each.module or "" for each in nodes if isinstance(each, ast.ImportFrom)]
    nodes = ast.walk(ast.parse(Path(scaling.__file__).read_text()))
    modules += [name.name for each in nodes if isinstance(each, ast.Import) for name in each.names]
    assert {each.partition(".")[0] for each in modules} <= sys.stdlib_module_names

import json
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.latency import (
    STAGES,
    BudgetWatch,
    Histogram,
    LatencyBoard,
    RollingHistogram,
    StageLatency,
)

latencies_ms = st.floats(0.1, 600_000, allow_nan=False)
batches_ms = st.lists(latencies_ms, min_size=1, max_size=300)


def histogram(*values_ms: float) -> Histogram:
    made = Histogram()
    made.observe(np.array(values_ms))
    return made


@given(batches_ms, st.sampled_from([0.0, 0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_five_percent_of_the_exact_one(values, q):
    exact = np.quantile(values, q, method="inverted_cdf")
    assert histogram(*values).quantile(q) == pytest.approx(exact, rel=0.032)


@given(batches_ms, batches_ms)
def test_merging_is_observing_both(some, more):
    merged = histogram(*some)
    merged.merge(histogram(*more))
    together = histogram(*some, *more)
    assert merged.counts.tolist() == together.counts.tolist()
    assert merged.sum_ms == pytest.approx(together.sum_ms)


@given(batches_ms)
def test_a_histogram_survives_its_journey_as_json(values):
    sent = histogram(*values)
    received = Histogram.from_dict(json.loads(json.dumps(sent.to_dict())))
    assert received.counts.tolist() == sent.counts.tolist()
    assert received.sum_ms == sent.sum_ms


@given(latencies_ms, st.integers(1, 5000))
def test_a_micro_batch_counts_its_latency_once_for_each_event(value, rows):
    shared = Histogram()
    shared.observe_batch(value, rows)
    one_by_one = histogram(*[value] * rows)
    assert shared.counts.tolist() == one_by_one.counts.tolist()
    assert shared.sum_ms == pytest.approx(one_by_one.sum_ms)


@given(batches_ms)
def test_the_coarse_view_counts_what_lies_below_each_bound(values):
    for bound_ms, below in histogram(*values).coarse():
        assert below == sum(value < bound_ms for value in values)


def test_the_coarse_view_covers_half_a_millisecond_to_a_minute_in_steps_of_at_most_half():
    bounds_ms = [bound for bound, _ in Histogram().coarse()]
    assert bounds_ms[:5] == [0.5, 0.75, 1.0, 1.5, 2.0]
    assert bounds_ms[-1] > 60_000
    assert max(b / a for a, b in pairwise(bounds_ms)) <= 1.5


@pytest.mark.parametrize("value", [-5.0, 0.0, float("nan"), float("-inf")])
def test_what_is_below_the_range_counts_as_the_smallest(value):
    assert histogram(value).quantile(1.0) == pytest.approx(0.0625, rel=0.04)


@pytest.mark.parametrize("value", [2e6, float("inf")])
def test_what_is_above_the_range_counts_as_the_largest(value):
    assert histogram(value).quantile(1.0) == 2.0**20


def test_integers_are_latencies_too():
    assert histogram(*np.array([10, 20], dtype=np.int64)).quantile(1.0) == pytest.approx(20, rel=0.032)


def test_an_empty_histogram_has_no_quantiles():
    assert Histogram().quantiles([0.5, 0.99]) == [None, None]


def test_an_empty_batch_changes_nothing():
    assert histogram().count == 0


def test_a_worker_sends_only_what_is_new():
    latency = StageLatency()
    latency.observe("fetched", np.array([1.0, 2.0]))
    latency.observe_batch("scored", 5.0, 2)
    assert {stage: sum(each["counts"]) for stage, each in latency.take().items()} == {
        "fetched": 2,
        "scored": 2,
    }
    assert latency.take() == {}


def test_what_did_not_reach_the_coordinator_is_sent_with_the_next_heartbeat():
    latency = StageLatency()
    latency.observe("fetched", np.array([1.0, 2.0]))
    lost = latency.take()
    latency.observe("fetched", np.array([3.0]))
    latency.put_back(lost)
    assert sum(latency.take()["fetched"]["counts"]) == 3


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(KeyError, match="'thinking' is not a stage; the stages are fetched, features"):
        StageLatency().observe("thinking", np.array([1.0]))


steps = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 50)), max_size=40)


@given(steps, st.integers(0, 100_000))
def test_the_rolling_histogram_holds_the_current_slot_and_the_eleven_before_it(steps, rest_ms):
    rolling, seen, now_ms = RollingHistogram(), [], 1_700_000_000_123
    for pause_ms, rows in steps:
        now_ms += pause_ms
        rolling.add(now_ms, histogram(*[1.0] * rows).to_dict())
        seen.append((now_ms // 5000, rows))
    now_ms += rest_ms
    assert rolling.total(now_ms).count == sum(rows for slot, rows in seen if now_ms // 5000 - slot < 12)


def test_a_clock_that_is_set_back_loses_no_counts():
    rolling = RollingHistogram()
    rolling.add(100_000, histogram(1.0).to_dict())
    rolling.add(40_000, histogram(1.0).to_dict())
    assert rolling.total(101_000).count == 2


def last_minute(*values_ms: float) -> dict[str, Histogram]:
    return {"scored": histogram(*values_ms)}


def test_an_alert_begins_once_and_ends_once():
    watch = BudgetWatch({"scored": 50})
    slow, fast = last_minute(*[80.0] * 200), last_minute(*[20.0] * 200)
    changes = [watch.check(now_ms, each) for now_ms, each in enumerate([fast, slow, slow, slow, fast, fast])]
    assert [[change.kind for change in each] for each in changes] == [[], ["began"], [], [], ["ended"], []]
    (ended,) = changes[4]
    assert (ended.stage, ended.since_ms, ended.at_ms, ended.budget_ms) == ("scored", 1, 4, 50)


def test_a_few_slow_events_neither_begin_nor_end_an_alert():
    watch = BudgetWatch({"scored": 50})
    assert watch.check(0, last_minute(*[80.0] * 99)) == []
    watch.check(1, last_minute(*[80.0] * 100))
    assert watch.check(2, last_minute(*[20.0] * 99)) == []
    assert list(watch.open) == ["scored"]


def test_a_minute_without_events_ends_an_alert():
    watch = BudgetWatch({"scored": 50})
    watch.check(0, last_minute(*[80.0] * 100))
    (ended,) = watch.check(1, last_minute())
    assert str(ended) == "latency of scored: the alert ended, nothing was observed for a minute"
    assert watch.open == {}


def test_an_alert_reads_as_a_sentence():
    watch = BudgetWatch({"scored": 50})
    (began,) = watch.check(0, last_minute(*[80.0] * 100))
    assert str(began).startswith("latency of scored is above its budget: p99 8")
    (ended,) = watch.check(90_000, last_minute(*[20.0] * 100))
    assert str(ended).startswith("latency of scored is within its budget again after 90 s: p99 ")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(100, 9000), st.sampled_from([10.0, 80.0]), st.integers(0, 150)), max_size=40))
def test_the_board_alerts_exactly_when_a_brute_force_reading_of_the_last_minute_does(steps):
    board, seen, now_ms, alerting = LatencyBoard({"scored": 50}), [], 60_000, False
    for pause_ms, value_ms, rows in steps:
        now_ms += pause_ms
        if rows:
            board.add(now_ms, {"scored": histogram(*[value_ms] * rows).to_dict()})
            seen += [(now_ms // 5000, value_ms)] * rows
        window = sorted(value for slot, value in seen if now_ms // 5000 - slot < 12)
        before = alerting
        if not window:
            alerting = False
        elif len(window) >= 100:
            alerting = window[ceil(0.99 * len(window)) - 1] > 50
        kinds = [change.kind for change in board.check(now_ms)]
        assert kinds == ([] if alerting == before else ["began" if alerting else "ended"])
        assert board.summary(now_ms)["scored"]["alert"] is alerting
        assert [alert["stage"] for alert in board.alerts()] == ["scored"] * alerting


def test_the_board_sums_up_all_workers_over_its_life_and_over_the_last_minute():
    board = LatencyBoard({"end_to_end": 100})
    board.add(0, {"end_to_end": histogram(*[40.0] * 300).to_dict()})
    board.add(120_000, {"end_to_end": histogram(*[10.0] * 100).to_dict()})
    stages = board.summary(120_001)
    assert list(stages) == list(STAGES)
    total = stages["end_to_end"]
    assert total["count"] == 400
    assert total["p50_ms"] == pytest.approx(40, rel=0.032)
    assert total["last_minute"]["count"] == 100
    assert total["last_minute"]["p99_ms"] == pytest.approx(10, rel=0.032)
    assert (total["budget_ms"], stages["fetched"]["budget_ms"]) == (100, None)
    assert sum(board.histograms()["end_to_end"]["counts"]) == 400

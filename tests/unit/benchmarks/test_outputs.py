import numpy as np
import pytest

from benchmarks.outputs import between, latencies, percentiles


def test_a_latency_runs_from_the_append_of_the_payment_to_that_of_its_score() -> None:
    sources = [("a", 1_000), ("b", 1_010), ("c", 1_020)]
    targets = [("c", 1_025), ("a", 1_030), ("b", 1_011)]
    assert sorted(latencies(sources, targets, warm_up_s=0).tolist()) == [1, 5, 30]


def test_payments_without_an_outcome_count_nothing() -> None:
    assert latencies([("a", 1_000), ("b", 1_010)], [("b", 1_012)], warm_up_s=0).tolist() == [2]


def test_what_is_appended_while_warming_up_is_left_out() -> None:
    sources = [("a", 1_000), ("b", 2_999), ("c", 3_000)]
    targets = [("a", 9_000), ("b", 9_000), ("c", 3_007)]
    assert latencies(sources, targets, warm_up_s=2).tolist() == [7]


def test_an_outcome_of_an_unknown_payment_is_an_error() -> None:
    with pytest.raises(KeyError):
        latencies([("a", 1_000)], [("b", 1_001)], warm_up_s=0)


def test_what_counts_of_a_drain_is_without_its_beginning_and_its_end() -> None:
    times_ms = np.concatenate([[0], np.arange(100_000, 200_001, 100), [900_000]])
    begin_s, end_s = between(times_ms, 0.4, 0.8)
    assert begin_s == pytest.approx(140, abs=1)
    assert end_s == pytest.approx(180, abs=1)


def test_percentiles_are_named_after_themselves() -> None:
    assert percentiles(np.arange(101)) == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}

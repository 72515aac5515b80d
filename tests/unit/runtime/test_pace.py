"""Pace: between its bounds, slower the dearer a micro-batch is."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.runtime.pace import Pace

batches = st.lists(st.tuples(st.floats(0, 1_000), st.floats(0, 10_000)), max_size=30)


def paced(costs: list[tuple[float, float]], *, in_flight: int = 2) -> Pace:
    pace = Pace(shortest_ms=5, longest_ms=30, max_in_flight=in_flight, busy_share=0.35)
    for work_ms, call_ms in costs:
        pace.observe(work_ms=work_ms, call_ms=call_ms)
    return pace


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(1, 8))
def test_the_interval_stays_within_its_bounds(costs: list[tuple[float, float]], in_flight: int) -> None:
    assert 5 <= paced(costs, in_flight=in_flight).interval_ms <= 30


@settings(max_examples=60, deadline=None)
@given(batches, st.floats(0, 100), st.floats(0, 100))
def test_dearer_batches_never_make_it_faster(costs: list[tuple[float, float]], work_ms: float, call_ms: float) -> None:
    dearer = [(work + work_ms, call + call_ms) for work, call in costs]
    assert paced(dearer).interval_ms >= paced(costs).interval_ms


def test_it_begins_as_fast_as_it_may() -> None:
    assert paced([]).interval_ms == 5


def test_it_settles_where_the_work_takes_its_share_of_the_time() -> None:
    assert abs(paced([(3.5, 0)] * 100).interval_ms - 10) < 0.01


def test_it_settles_where_calls_do_not_queue() -> None:
    assert abs(paced([(0, 40)] * 100, in_flight=2).interval_ms - 20) < 0.01
    assert abs(paced([(0, 40)] * 100, in_flight=4).interval_ms - 10) < 0.01


def test_one_slow_batch_does_not_make_the_pace() -> None:
    calm = [(1.0, 10.0)] * 100
    for slow in [(1.0, 100.0), (20.0, 10.0)]:
        assert paced([*calm, slow]).interval_ms < 20
        assert paced([*calm, slow, *calm]).interval_ms < 5.01

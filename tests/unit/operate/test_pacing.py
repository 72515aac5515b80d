"""Open-loop pacing, with the clock in the test's hand."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.operate.options import parse_rate
from app.operate.sending import CHUNK, TICK_S, paced


class Clock:
    """Time passes only when somebody pauses, or is held up."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def pause(self, seconds: float) -> None:
        self.now_s += seconds


def schedule(count: int, rate: float, hold_up: Callable[[Clock, int], None] = lambda clock, sent: None) -> list[float]:
    """When each item came, in seconds behind the start."""
    clock = Clock()
    times_s: list[float] = []
    for batch in paced(range(count), rate, lambda: clock.now_s, clock.pause):
        assert batch == list(range(len(times_s), len(times_s) + len(batch)))
        times_s += [clock.now_s - 1_000.0] * len(batch)
        hold_up(clock, len(times_s))
    return times_s


@given(count=st.integers(0, 300), rate=st.floats(0.1, 20_000))
def test_each_item_comes_at_its_time_and_never_before(count: int, rate: float) -> None:
    times_s = schedule(count, rate)
    assert len(times_s) == count
    for number, time_s in enumerate(times_s):
        assert number / rate - 1e-6 <= time_s <= number / rate + TICK_S + 1e-6


def test_after_a_hold_up_what_is_due_comes_at_once_and_no_more() -> None:
    def hold_up(clock: Clock, sent: int) -> None:
        if sent == 10:
            clock.pause(1.0)

    times_s = schedule(200, 100.0, hold_up)
    late = [time_s for time_s in times_s[10:] if time_s == times_s[10]]
    assert 100 <= len(late) <= 102
    assert times_s[150] == pytest.approx(1.5, abs=0.02)


def test_without_a_rate_everything_is_due() -> None:
    def pause(seconds: float) -> None:
        raise AssertionError("nobody has to wait")

    batches = list(paced(range(2 * CHUNK + 1), None, lambda: 0.0, pause))
    assert [len(batch) for batch in batches] == [CHUNK, CHUNK, 1]


@pytest.mark.parametrize(("text", "rate"), [("500", 500.0), ("0.5", 0.5), ("max", None)])
def test_a_rate_is_a_number_or_max(text: str, rate: float | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "-1", "fast", "inf", "nan", ""])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no rate; write events per second, like 500, or max"):
        parse_rate(text)

"""The breaker against a plain model of it: closed, open, half-open with one probe."""

from hypothesis import given
from hypothesis import strategies as st

from app.breaker import Breaker

PAUSE_MS = 100.0


def test_after_so_many_failures_in_a_row_nothing_is_admitted_for_the_pause() -> None:
    breaker = Breaker(3, PAUSE_MS)
    for _ in range(3):
        assert breaker.admit(0)
        assert breaker.state == "closed"
        breaker.fail(0)
    assert breaker.state == "open"
    assert not breaker.admit(99.9)
    assert breaker.admit(100)
    assert breaker.state == "half-open"


def test_a_success_between_them_starts_the_count_anew() -> None:
    breaker = Breaker(2, PAUSE_MS)
    for _ in range(10):
        breaker.fail(0)
        breaker.succeed()
    assert breaker.state == "closed"


def test_half_open_admits_one_probe_whose_end_decides() -> None:
    breaker = Breaker(1, PAUSE_MS)
    breaker.fail(0)
    assert [breaker.admit(100) for _ in range(3)] == [True, False, False]
    breaker.fail(110)
    assert breaker.state == "open"
    assert not breaker.admit(209)
    assert breaker.admit(210)
    breaker.succeed()
    assert breaker.state == "closed"
    assert all(breaker.admit(211) for _ in range(3))


def test_a_probe_that_never_ends_is_followed_by_another_after_the_pause() -> None:
    breaker = Breaker(1, PAUSE_MS)
    breaker.fail(0)
    assert breaker.admit(100)
    assert not breaker.admit(199)
    assert breaker.admit(200)


@given(
    failures=st.integers(1, 4),
    calls=st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=60),
)
def test_calls_one_after_the_other_see_a_pause_after_each_run_of_failures(
    failures: int, calls: list[tuple[int, bool]]
) -> None:
    breaker = Breaker(failures, PAUSE_MS)
    now_ms, in_a_row, opened_ms = 0, 0, None
    for wait_ms, succeeds in calls:
        now_ms += wait_ms
        expected = opened_ms is None or now_ms - opened_ms >= PAUSE_MS
        assert breaker.admit(now_ms) is expected
        if not expected:
            continue
        if succeeds:
            breaker.succeed()
            in_a_row, opened_ms = 0, None
        else:
            breaker.fail(now_ms)
            in_a_row += 1
            opened_ms = now_ms if in_a_row >= failures else None

"""The history of a partition: short, and never further back than asked for by more than an eighth."""

from hypothesis import given
from hypothesis import strategies as st

from app.runtime.history import History, Milestone, extended, latest_at, latest_before

BEGAN = Milestone(7, None)
advances = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 1, 60, 10_000, 3_600_000])), max_size=120)


def told(steps: list[tuple[int, int]]) -> tuple[History, list[Milestone]]:
    """The history that is kept, and every milestone that went into it."""
    history: History = (BEGAN,)
    every = [BEGAN]
    offset, time_ms = 7, -5_000
    for records, later_ms in steps:
        offset, time_ms = offset + records, time_ms + later_ms
        every.append(Milestone(offset, time_ms))
        history = extended(history, offset, time_ms)
    return history, every


@given(advances)
def test_what_is_kept_was_said_and_stands_in_order_from_where_the_partition_began(steps: list[tuple[int, int]]) -> None:
    history, every = told(steps)
    assert history[0] == BEGAN
    assert history[-1] == every[-1]
    assert set(history) <= set(every)
    assert list(history) == sorted(history, key=lambda each: each.offset)


@given(advances, st.integers(0, 20_000_000))
def test_a_milestone_is_never_too_late_and_at_most_an_eighth_of_its_age_too_early(
    steps: list[tuple[int, int]], age_ms: int
) -> None:
    history, every = told(steps)
    newest = every[-1].max_time_ms
    if newest is None:
        return
    found, best = latest_before(history, newest - age_ms), latest_before(every, newest - age_ms)
    assert found.offset <= best.offset
    if best.max_time_ms is not None and found != best:
        assert found.max_time_ms is not None
        assert (newest - found.max_time_ms) <= (newest - best.max_time_ms) * 8 / 7 + 1


def test_a_month_of_checkpoints_every_ten_seconds_is_a_few_milestones() -> None:
    history: History = (BEGAN,)
    for at in range(1, 30 * 24 * 360):
        history = extended(history, 7 + at, at * 10_000)
    assert len(history) <= 125


def test_no_event_and_no_record_is_no_milestone() -> None:
    assert extended((BEGAN,), 9, None) == (BEGAN,)
    assert extended((BEGAN, Milestone(9, 5)), 9, 5) == (BEGAN, Milestone(9, 5))


def test_of_two_with_the_same_time_the_later_offset_is_kept() -> None:
    assert extended((BEGAN, Milestone(9, 5)), 12, 5) == (BEGAN, Milestone(12, 5))


def test_the_last_milestone_at_or_before_an_offset_is_found() -> None:
    history = (BEGAN, Milestone(9, 5), Milestone(12, 6))
    assert [latest_at(history, offset).offset for offset in (3, 7, 8, 9, 11, 12, 99)] == [7, 7, 7, 9, 9, 12, 12]

"""What failed and is tried again: how often, since when, and when next. Pure: the time is an argument."""

from typing import NamedTuple

FIRST_MS, LONGEST_MS, DOUBLINGS = 1_000.0, 60_000.0, 6
"""A second, doubled each time, up to a minute; more doublings would only make large numbers."""


class Failure(NamedTuple):
    """So many failures in a row; `error` is the latest."""

    error: str
    times: int
    since_ms: float
    retry_ms: float


def failed_again(before: Failure | None, error: str, now_ms: float) -> Failure:
    """Counts one more failure, and says when to try again."""
    times, since_ms = (before.times + 1, before.since_ms) if before else (1, now_ms)
    delay_ms = min(LONGEST_MS, FIRST_MS * 2 ** min(times - 1, DOUBLINGS))
    return Failure(error, times, since_ms, now_ms + delay_ms)

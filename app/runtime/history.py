"""The history of a partition: a few places of its log, and how far event time had come there.

From it one knows how far back the log must be read so that windows of a given length are complete, and the watermark
to begin with there.
"""

from collections.abc import Sequence
from typing import NamedTuple

SPACING = 1 / 8
"""Of a milestone's age: at most that much more than necessary is read again. 30 days in steps of 10 s keep 125."""


class Milestone(NamedTuple):
    """Every event before `offset` has a time of at most `max_time_ms`; None where the partition's history begins."""

    offset: int
    max_time_ms: int | None


History = tuple[Milestone, ...]
"""By offset, from where the partition began; times do not fall."""


def extended(history: History, offset: int, max_time_ms: int | None) -> History:
    """With one more milestone, and without those that their neighbours make superfluous."""
    if max_time_ms is None or offset <= history[-1].offset:
        return history
    known = history[:-1] if history[-1].max_time_ms == max_time_ms else history
    kept = [Milestone(offset, max_time_ms)]
    for older, each in zip(reversed(known[:-1]), reversed(known[1:]), strict=True):
        if not _close(older, kept[-1], max_time_ms):
            kept.append(each)
    return (*known[:1], *reversed(kept))


def _close(older: Milestone, newer: Milestone, now_ms: int) -> bool:
    if older.max_time_ms is None or newer.max_time_ms is None:
        return False
    return newer.max_time_ms - older.max_time_ms <= SPACING * (now_ms - older.max_time_ms)


def latest_before(history: Sequence[Milestone], time_ms: int) -> Milestone:
    """The last milestone with no event later than time_ms before it; if there is none, where the history begins."""
    known = (each for each in reversed(history) if each.max_time_ms is not None and each.max_time_ms <= time_ms)
    return next(known, history[0])


def latest_at(history: Sequence[Milestone], offset: int) -> Milestone:
    """The last milestone at or before an offset; if there is none, where the history begins."""
    return next((each for each in reversed(history) if each.offset <= offset), history[0])

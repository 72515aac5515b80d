"""Attempts: which record kills whoever reads it, found by what is known of a partition's last owners. Pure.

A segfault or a lack of memory leaves no exception, only openings that come back to the same place. After two of them
the partition is read with care: each poll is written down before it is worked on, and who comes back after another
crash takes less at a time, until one record is known to have been in hand. After two crashes of its own it is set
aside.
"""

from collections.abc import Mapping

import msgspec

CRASHES_BEFORE_CARE = 2
CRASHES_OF_A_RECORD = 2
MOST_RECORDS = 4096
SHRINK = 64
"""4,096 records, 64, 1: eight crashes at most until a killer is set aside, about 40 s with Serve's restarts."""


class Attempts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is written down of a partition.

    It was opened `opened` times in a row at `next_offset`, with `decided_through` decided. With a `size` it is read
    with care, so many records at a time; `trying` are the first and the last offset in hand. `crashes` counts those of
    single records, `set_aside` keeps the number of those that are not read any more.
    """

    next_offset: int
    decided_through: int
    opened: int = 1
    size: int | None = None
    trying: tuple[int, int] | None = None
    crashes: Mapping[int, int] = {}
    set_aside: Mapping[int, int] = {}

    def take(self, first: int, last: int) -> "Attempts":
        """These records are about to be worked on."""
        return msgspec.structs.replace(self, trying=(first, last))

    def put_down(self) -> "Attempts":
        """What was in hand is done."""
        return msgspec.structs.replace(self, trying=None)

    def relax(self) -> "Attempts":
        """All records that were there at the opening have been read: no more care."""
        return Attempts(self.next_offset, self.decided_through, set_aside=self.set_aside)


def reopened(before: Attempts | None, next_offset: int, decided_through: int) -> Attempts:
    """What there is to write down when a partition is opened at this place."""
    here = Attempts(next_offset, decided_through)
    if before is None:
        return here
    if before.trying is not None:
        return _after_a_crash(before, here, *before.trying)
    if (before.next_offset, before.decided_through) != (next_offset, decided_through):
        return msgspec.structs.replace(here, size=before.size, set_aside=before.set_aside)
    opened = before.opened + 1
    care = before.size is not None or opened > CRASHES_BEFORE_CARE
    size = (before.size or MOST_RECORDS) if care else None
    return msgspec.structs.replace(before, opened=opened, size=size)


def _after_a_crash(before: Attempts, here: Attempts, first: int, last: int) -> Attempts:
    if first < last:
        size = max(1, (last - first + 1) // SHRINK)
        return msgspec.structs.replace(here, size=size, crashes=before.crashes, set_aside=before.set_aside)
    count = before.crashes.get(first, 0) + 1
    if count < CRASHES_OF_A_RECORD:
        return msgspec.structs.replace(here, size=1, crashes={first: count}, set_aside=before.set_aside)
    return msgspec.structs.replace(here, size=MOST_RECORDS, set_aside={**before.set_aside, first: count})

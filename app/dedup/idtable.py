"""A queue of ids, oldest first, that is also a hash table; it grows one bucket at a time, without a pause to rehash.

Linear hashing as in app/features/keytable.py. An id is 32 bytes for its entry and 8 for two buckets. An entry whose
time has run out is forgotten at once, and its memory freed a little later: no row frees more than two, so that none
pauses when the stream's time jumps.
"""

from typing import Any, NamedTuple

import numpy as np

from app.features.compiled import Array, kernel, part
from app.features.prefetch import prefetch

NONE = -1
FREED_A_ROW = 2
BUCKETS_AHEAD, ENTRIES_AHEAD = 16, 8
"""Rows between asking for memory and using it."""

BUCKETS_AN_ID = 2
ENTRY = np.dtype([("low", "u8"), ("next", "i4"), ("newer", "i4"), ("high", "u8"), ("clock_ms", "i8")])
"""What passing by an entry takes comes first: it lies in one cache line."""
TABLE = np.dtype([(name, "i8") for name in ("ids", "buckets", "mask", "unused", "oldest", "newest", "limit_ms")])


class Memory(NamedTuple):
    """The arrays as kernels take them. Ids whose `clock_ms` lies before the table's `limit_ms` are forgotten."""

    table: Array
    entries: Array
    buckets: Array


@part
def bucket_of(table: Any, low: np.uint64) -> int:
    bucket = np.int64(low) & table.mask
    return bucket if bucket < table.buckets else bucket & (table.mask >> 1)  # type: ignore[no-any-return]


@part
def split_bucket(memory: Memory) -> None:
    """Adds a bucket and moves into it what now belongs there from the one bucket that held it."""
    table, entries, buckets = memory.table[0], memory.entries, memory.buckets
    new = table.buckets
    if new > table.mask:
        table.mask = 2 * table.mask + 1
    old = new & (table.mask >> 1)
    table.buckets += 1
    slot = buckets[old]
    buckets[old] = buckets[new] = NONE
    while slot != NONE:
        following = entries[slot].next
        bucket = bucket_of(table, entries[slot].low)
        entries[slot].next = buckets[bucket]
        buckets[bucket] = slot
        slot = following


@part
def is_known(memory: Memory, high: np.uint64, low: np.uint64) -> bool:
    table, entries = memory.table[0], memory.entries
    slot = memory.buckets[bucket_of(table, low)]
    while slot != NONE:
        entry = entries[slot]
        if entry.low == low and entry.high == high and entry.clock_ms >= table.limit_ms:
            return True
        slot = entry.next
    return False


@part
def remember(memory: Memory, high: np.uint64, low: np.uint64, clock_ms: int) -> None:
    table, entries, buckets = memory.table[0], memory.entries, memory.buckets
    slot = table.unused
    entry = entries[slot]
    table.unused = entry.next
    entry.high, entry.low, entry.clock_ms, entry.newer = high, low, clock_ms, NONE
    if table.newest == NONE:
        table.oldest = slot
    else:
        entries[table.newest].newer = slot
    table.newest = slot
    bucket = bucket_of(table, low)
    entry.next = buckets[bucket]
    buckets[bucket] = slot
    table.ids += 1
    while table.buckets < BUCKETS_AN_ID * table.ids:
        split_bucket(memory)


@part
def free_oldest(memory: Memory) -> None:
    table, entries, buckets = memory.table[0], memory.entries, memory.buckets
    slot = table.oldest
    entry = entries[slot]
    bucket = bucket_of(table, entry.low)
    if buckets[bucket] == slot:
        buckets[bucket] = entry.next
    else:
        before = buckets[bucket]
        while entries[before].next != slot:
            before = entries[before].next
        entries[before].next = entry.next
    table.oldest = entry.newer
    if table.oldest == NONE:
        table.newest = NONE
    entry.next = table.unused
    table.unused = slot
    table.ids -= 1


@part
def look_ahead(memory: Memory, codes: Array, row: int) -> None:
    """Prefetches buckets of rows to come, and first entries of nearer buckets; the same for what is to be freed.

    A freed slot is the next one used, so that slots are mostly in order of age.
    """
    table, entries, buckets = memory.table[0], memory.entries, memory.buckets
    if row + BUCKETS_AHEAD < len(codes):
        prefetch(buckets, bucket_of(table, codes[row + BUCKETS_AHEAD, 1]))
    if row + ENTRIES_AHEAD < len(codes):
        prefetch(entries, max(0, buckets[bucket_of(table, codes[row + ENTRIES_AHEAD, 1])]))
    if table.oldest != NONE and table.oldest + BUCKETS_AHEAD < len(entries):
        prefetch(buckets, bucket_of(table, entries[table.oldest + BUCKETS_AHEAD].low))
        prefetch(entries, max(0, buckets[bucket_of(table, entries[table.oldest + ENTRIES_AHEAD].low)]))


@kernel
def mark_duplicates(
    memory: Memory, codes: Array, clock_ms: Array, late: Array, horizon_ms: int, duplicate: Array, begin: int
) -> int:
    """Fills `duplicate` from row `begin`, and remembers the ids of rows that are neither duplicates nor late.

    Returns the number of rows done: fewer than all if the memory has to grow first.
    """
    table = memory.table[0]
    for row in range(begin, len(codes)):
        look_ahead(memory, codes, row)
        table.limit_ms = clock_ms[row] - horizon_ms
        for _ in range(FREED_A_ROW):
            if table.oldest != NONE and memory.entries[table.oldest].clock_ms < table.limit_ms:
                free_oldest(memory)
        duplicate[row] = is_known(memory, codes[row, 0], codes[row, 1])
        if not (duplicate[row] or late[row]):
            if table.unused == NONE:
                return row
            remember(memory, codes[row, 0], codes[row, 1], clock_ms[row])
    return len(codes)


@kernel
def copy_out(memory: Memory, codes: Array, clocks_ms: Array) -> int:
    """Fills `codes` and `clocks_ms` with the ids that are not forgotten, oldest first; returns how many there are."""
    entries, limit_ms = memory.entries, memory.table[0].limit_ms
    count, slot = 0, memory.table[0].oldest
    while slot != NONE:
        entry = entries[slot]
        if entry.clock_ms >= limit_ms:
            codes[count, 0], codes[count, 1], clocks_ms[count] = entry.high, entry.low, entry.clock_ms
            count += 1
        slot = entry.newer
    return count

"""The kernels: rows go in, in log order, and each row's features come out; no Python per event, no GIL."""

from typing import Any

import numpy as np

from app.features.blocks import allocate, class_of, release
from app.features.compiled import Array, kernel, part
from app.features.entries import (
    FIRST_CAPACITY,
    copy_row,
    count_distinct,
    evict,
    find_copy,
    first_after,
    insert,
    is_forgotten,
    link,
    place_of,
)
from app.features.keytable import remove_key
from app.features.memory import NONE, Memory, Plan
from app.features.prefetch import prefetch
from app.features.sums import (
    DEVIATION,
    GROUP_BITS,
    LEVELS,
    PRESENT,
    Statistics,
    collapse,
    deviation,
    empty,
    live,
    load,
    node_of,
    reset_life,
    roll_up,
    store,
    summarise,
)

KEYS_AHEAD, ENTRIES_AHEAD = 16, 4
"""Rows between asking for memory and using it: a row takes 200 ns, memory up to 200 ns for each of two steps."""

PREFETCHED_LINES = 40
"""Of 64 bytes: a larger ring belongs to a busy key, of which the caches hold the more."""

COUNT, TOTAL, MEAN, STD, MINIMUM, MAXIMUM, LATEST, TIME_SINCE_LAST, DISTINCT = range(9)
"""What an output is: the first column of `Plan.outputs`."""


@part
def move_ring(memory: Memory, key: Any, capacity: int) -> bool:
    """Gives the key a ring of `capacity` entries; False, and nothing changed, if there is no block for it."""
    arena = memory.arena
    base = allocate(arena, memory.free, class_of(capacity))
    if base == NONE:
        return False
    for entry in range(key.head, key.tail):
        copy_row(arena, place_of(key, entry), arena, base + (entry & (capacity - 1)))
    if key.capacity:
        release(arena, memory.free, key.base, class_of(key.capacity))
    key.base, key.capacity = base, capacity
    roll_up(memory.values, memory.nodes, key, key.head)
    return True


@part
def find_windows(arena: Array, plan: Plan, key: Any, entry: int) -> None:
    """Each window's first entry at `entry`."""
    time = arena[place_of(key, entry), 0]
    stop = entry
    for window in range(len(plan.windows)):
        stop = first_after(arena, key, time - plan.windows[window], key.head, stop)
        plan.firsts[window] = stop


@part
def sum_windows(memory: Memory, plan: Plan, key: Any, entry: int) -> None:
    """Each summed field's statistics over each window at `entry`; a longer one goes on from a shorter one."""
    for field in range(len(plan.reach)):
        statistics = empty()
        stop = entry + 1
        for window in range(plan.reach[field]):
            span = (plan.firsts[window], stop, LEVELS)
            statistics = summarise(memory.values, memory.nodes, key, field, span, statistics)
            store(plan.sums, field, window, statistics)
            stop = plan.firsts[window]


@part
def answer(kind: int, statistics: Statistics, squares: float) -> float:
    present = statistics.present
    if kind == TOTAL:
        return collapse(statistics.high, statistics.low)
    if present == 0.0 or (kind == STD and present == 1.0):
        return np.nan
    if kind == MEAN:
        return collapse(statistics.high, statistics.low) / present
    if kind == STD:
        return np.sqrt(squares / (present - 1.0))  # type: ignore[no-any-return]
    return statistics.least if kind == MINIMUM else statistics.greatest


@part
def previous_of(memory: Memory, plan: Plan, key: Any, entry: int, kind: int, column: int, window: int) -> float:
    time = memory.arena[place_of(key, entry), 0]
    if entry == key.head:
        return np.nan
    before = place_of(key, entry - 1)
    if window != NONE and memory.arena[before, 0] <= time - plan.windows[window]:
        return np.nan
    if kind == LATEST:
        return memory.values[before, column]  # type: ignore[no-any-return]
    return (time - memory.arena[before, 0]) / 1000.0  # type: ignore[no-any-return]


@part
def write_features(memory: Memory, plan: Plan, slot: int, entry: int, out: Array) -> None:
    key = memory.keys[slot]
    for output in range(len(plan.outputs)):
        kind, column, window = plan.outputs[output, 0], plan.outputs[output, 1], plan.outputs[output, 2]
        if kind in (LATEST, TIME_SINCE_LAST):
            out[output] = previous_of(memory, plan, key, entry, kind, column, window)
        elif kind == COUNT:
            out[output] = memory.lives[slot, 0, PRESENT] if window == NONE else entry + 1 - plan.firsts[window]
        elif kind == DISTINCT:
            bound = memory.arena[place_of(key, entry), 0] - plan.windows[window]
            out[output] = count_distinct(memory.arena, key, plan.firsts[window], entry + 1, column, bound)
        elif window == NONE:
            life = load(memory.lives, slot, column)
            out[output] = answer(kind, life, memory.lives[slot, column, DEVIATION])
        else:
            statistics, squares = load(plan.sums, column - 1, window), 0.0
            if kind == STD:
                span = (plan.firsts[window], entry + 1, LEVELS)
                squares = deviation(memory.values, memory.nodes, key, column - 1, span, statistics)
            out[output] = answer(kind, statistics, squares)


@part
def apply_row(memory: Memory, plan: Plan, slot: int, rows: Array, row: int, watermark: int) -> int:
    """Adds the row to its key; returns the entry's number; NONE if the arena has to grow first."""
    key = memory.keys[slot]
    if is_forgotten(memory.arena, plan, key, watermark):
        key.head, key.tail = 0, 0
        reset_life(memory.lives, slot)
    evict(memory.arena, plan, key, watermark)
    full = key.tail - key.head == key.capacity
    if full and not move_ring(memory, key, max(FIRST_CAPACITY, 2 * key.capacity)):
        return NONE
    entry = insert(memory.arena, key, rows, row)
    for index in range(len(plan.distinct)):
        link(memory.arena, key, entry, plan.distinct[index], plan.distinct_windows[index])
    roll_up(memory.values, memory.nodes, key, entry)
    if memory.lives.shape[1]:
        memory.lives[slot, 0, PRESENT] += 1.0
        for field in range(1, memory.lives.shape[1]):
            live(memory.lives, slot, field, memory.values[place_of(key, entry), field])
    return entry


@part
def look_ahead(memory: Memory, slots: Array, row: int) -> None:
    """Prefetches the keys of rows to come, and the entries and nodes of nearer ones: the whole of a small ring."""
    if row + KEYS_AHEAD < len(slots):
        prefetch(memory.keys, slots[row + KEYS_AHEAD])
    if row + ENTRIES_AHEAD >= len(slots):
        return
    key = memory.keys[slots[row + ENTRIES_AHEAD]]
    rows_of_line = max(1, 64 // (8 * memory.arena.shape[1]))
    for entry in range(max(key.head, key.tail - PREFETCHED_LINES * rows_of_line), key.tail + 1, rows_of_line):
        prefetch(memory.arena, place_of(key, entry))
    for entry in range(max(key.head, key.tail - PREFETCHED_LINES * rows_of_line), key.tail, 1 << GROUP_BITS):
        prefetch(memory.nodes, node_of(key, entry, 1))


@kernel
def update(
    memory: Memory, plan: Plan, slots: Array, rows: Array, again: Array, watermarks: Array, out: Array, begin: int
) -> int:
    """Applies rows in order from `begin` and fills `out` (rows, outputs). Returns the number of rows done."""
    for row in range(begin, len(slots)):
        look_ahead(memory, slots, row)
        entry = find_copy(memory.arena, plan, memory.keys[slots[row]], rows, row) if again[row] else NONE
        if entry == NONE:
            entry = apply_row(memory, plan, slots[row], rows, row, watermarks[row])
        if entry == NONE:
            return row
        find_windows(memory.arena, plan, memory.keys[slots[row]], entry)
        sum_windows(memory, plan, memory.keys[slots[row]], entry)
        write_features(memory, plan, slots[row], entry, out[row])
    return len(slots)


@kernel
def sweep(memory: Memory, plan: Plan, watermark: int, limit: int) -> int:
    """Looks at the next `limit` slots: frees forgotten keys, old entries and rings far too large."""
    table = memory.table[0]
    forgotten = 0
    for _ in range(min(limit, len(memory.keys))):
        table.cursor = table.cursor + 1 if table.cursor + 1 < len(memory.keys) else 0
        key = memory.keys[table.cursor]
        if key.name == NONE or not key.capacity:
            continue
        if is_forgotten(memory.arena, plan, key, watermark):
            remove_key(memory, table.cursor)
            forgotten += 1
            continue
        evict(memory.arena, plan, key, watermark)
        if key.capacity > FIRST_CAPACITY and (key.tail - key.head) * 8 <= key.capacity:
            move_ring(memory, key, max(FIRST_CAPACITY, key.capacity // 4))
    return forgotten


@kernel
def pack(memory: Memory, slots: Array, names: Array, name_starts: Array, entries: Array, starts: Array) -> None:
    """Copies the keys' names and entries, one key after the other."""
    for row in range(len(slots)):
        key = memory.keys[slots[row]]
        place = key.name * memory.arena.shape[1] * 8
        for offset in range(key.name_bytes):
            names[name_starts[row] + offset] = memory.names[place + offset]
        for offset in range(key.tail - key.head):
            copy_row(memory.arena, place_of(key, key.head + offset), entries, starts[row] + offset)


@kernel
def unpack(memory: Memory, slots: Array, heads: Array, entries: Array, starts: Array, begin: int) -> int:
    """Gives keys without entries theirs back. Returns the number of keys done."""
    for row in range(begin, len(slots)):
        key = memory.keys[slots[row]]
        count = starts[row + 1] - starts[row]
        if count and not move_ring(memory, key, max(FIRST_CAPACITY, 1 << class_of(count))):
            return row
        key.head, key.tail = heads[row], heads[row] + count
        for offset in range(count):
            copy_row(entries, starts[row] + offset, memory.arena, place_of(key, key.head + offset))
        roll_up(memory.values, memory.nodes, key, key.head)
    return len(slots)

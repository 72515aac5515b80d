"""A key's entries: a ring in order of event time, and of arrival where times are equal."""

from typing import Any

from app.features.compiled import Array, part
from app.features.memory import FOREVER, NONE, Plan

FIRST_CAPACITY = 4


@part
def copy_row(source: Array, row: int, target: Array, place: int) -> None:
    for word in range(source.shape[1]):
        target[place, word] = source[row, word]


@part
def place_of(key: Any, entry: int) -> int:
    return key.base + (entry & (key.capacity - 1))  # type: ignore[no-any-return]


@part
def insert(arena: Array, key: Any, rows: Array, row: int) -> int:
    """Puts the row behind all entries not later than it; returns its number. Moves each later entry once."""
    entry = key.tail
    while entry > key.head and arena[place_of(key, entry - 1), 0] > rows[row, 0]:
        copy_row(arena, place_of(key, entry - 1), arena, place_of(key, entry))
        entry -= 1
    copy_row(rows, row, arena, place_of(key, entry))
    key.tail += 1
    return entry  # type: ignore[no-any-return]


@part
def first_after(arena: Array, key: Any, bound: int, first: int, stop: int) -> int:
    """The first entry in [first, stop) later than `bound`, or stop."""
    while first < stop:
        half = (stop - first) >> 1
        is_before = arena[place_of(key, first + half), 0] <= bound
        stop = stop if is_before else first + half
        first = first + half + 1 if is_before else first
    return first


@part
def find_copy(arena: Array, plan: Plan, key: Any, rows: Array, row: int) -> int:
    """The last entry that says what the row says, or NONE."""
    entry = first_after(arena, key, rows[row, 0], key.head, key.tail) - 1
    while entry >= key.head and arena[place_of(key, entry), 0] == rows[row, 0]:
        if is_copy(arena, plan, place_of(key, entry), rows, row):
            return entry
        entry -= 1
    return NONE


@part
def is_copy(arena: Array, plan: Plan, place: int, rows: Array, row: int) -> bool:
    numbers = plan.distinct[0] if len(plan.distinct) else rows.shape[1]
    for word in range(1, numbers):
        if arena[place, word] != rows[row, word]:
            return False
    for index in range(len(plan.distinct)):  # the word behind a value says when it came before
        if arena[place, plan.distinct[index]] != rows[row, plan.distinct[index]]:
            return False
    return True


@part
def evict(arena: Array, plan: Plan, key: Any, watermark: int) -> None:
    """Lets entries go that no event at or after the watermark sees, new or again; the newest stays, for the ttl."""
    while key.tail - key.head > 1 and arena[place_of(key, key.head), 0] <= watermark - plan.horizon_ms:
        if plan.needs_previous and arena[place_of(key, key.head + 1), 0] >= watermark:
            return
        key.head += 1


@part
def is_forgotten(arena: Array, plan: Plan, key: Any, watermark: int) -> bool:
    """Whether the key's newest event is its ttl or more behind the watermark."""
    if key.tail == key.head:
        return False
    return watermark >= arena[place_of(key, key.tail - 1), 0] + plan.ttl_ms  # type: ignore[no-any-return]


# Distinct values: each entry knows when its key had its value before, so that an entry is its value's first in a
# window exactly if that time lies outside. One pass over the window, about a nanosecond an entry.


@part
def link(arena: Array, key: Any, entry: int, column: int, window: int) -> None:
    own = place_of(key, entry)
    if arena[own, column + 1] == FOREVER:
        return
    time, value = arena[own, 0], arena[own, column]
    arena[own, column + 1] = -FOREVER
    for before in range(entry - 1, key.head - 1, -1):
        other = place_of(key, before)
        if arena[other, 0] <= time - window:
            break
        if arena[other, column] == value and arena[other, column + 1] != FOREVER:
            arena[own, column + 1] = arena[other, 0]
            break
    for after in range(entry + 1, key.tail):
        other = place_of(key, after)
        if arena[other, column] == value and arena[other, column + 1] != FOREVER:
            arena[other, column + 1] = time
            break


@part
def count_distinct(arena: Array, key: Any, first: int, stop: int, column: int, bound: int) -> float:
    found = 0
    for entry in range(first, stop):
        found += arena[place_of(key, entry), column + 1] <= bound
    return float(found)

"""Keys: from a name's bytes to a slot, by a hash table that grows one bucket at a time, without a pause to rehash.

Litwin, "Linear hashing: a new tool for file and table addressing", 1980. Names are compared byte by byte: no two
keys ever share a state.
"""

from typing import Any

import numpy as np

from app.features.blocks import allocate, class_of, release
from app.features.compiled import Array, kernel, part
from app.features.memory import NONE, Memory
from app.features.prefetch import prefetch
from app.features.sums import reset_life

BUCKETS_AHEAD, KEYS_AHEAD, NAMES_AHEAD = 24, 16, 8
"""Rows between asking for memory and using it: a row takes 50 ns, memory up to 200 ns for each of three steps."""

MIX = np.uint64(0xC6A4A7935BD1E995)
SHIFT = np.uint64(47)


@part
def load_word(data: Array, start: int, count: int) -> int:
    word = np.uint64(0)
    for place in range(count):
        word |= np.uint64(data[start + place]) << np.uint64(8 * place)
    return word  # type: ignore[return-value]


@part
def hash_bytes(data: Array, start: int, stop: int) -> int:
    """MurmurHash64A (Austin Appleby, public domain), seed 0: the same in every process."""
    code = np.uint64(stop - start) * MIX
    while stop - start >= 8:
        word = load_word(data, start, 8) * MIX
        word ^= word >> SHIFT
        code = (code ^ (word * MIX)) * MIX
        start += 8
    if start < stop:
        code = (code ^ load_word(data, start, stop - start)) * MIX
    code ^= code >> SHIFT
    code *= MIX
    return np.int64(code ^ (code >> SHIFT))  # type: ignore[return-value]


@kernel
def hash_strings(data: Array, starts: Array, codes: Array) -> None:
    """64-bit hashes of the strings `data[starts[i]:starts[i + 1]]`, UTF-8."""
    for row in range(len(codes)):
        codes[row] = hash_bytes(data, starts[row], starts[row + 1])


@part
def bucket_of(table: Any, code: int) -> int:
    bucket = code & table.mask
    return bucket if bucket < table.buckets else bucket & (table.mask >> 1)  # type: ignore[no-any-return]


@part
def is_named(memory: Memory, key: Any, data: Array, start: int, stop: int) -> bool:
    if key.name_bytes != stop - start:
        return False
    place = key.name * memory.arena.shape[1] * 8
    difference = 0
    for offset in range(stop - start):
        difference |= memory.names[place + offset] ^ data[start + offset]
    return difference == 0


@part
def split_bucket(memory: Memory) -> None:
    """Adds a bucket and moves into it what now belongs there from the one bucket that held it."""
    table = memory.table[0]
    new = table.buckets
    if new > table.mask:
        table.mask = 2 * table.mask + 1
    old = new & (table.mask >> 1)
    table.buckets += 1
    slot = memory.buckets[old]
    memory.buckets[old] = NONE
    memory.buckets[new] = NONE
    while slot != NONE:
        key = memory.keys[slot]
        following = key.next
        bucket = bucket_of(table, key.code)
        key.next = memory.buckets[bucket]
        memory.buckets[bucket] = slot
        slot = following


@part
def add_key(memory: Memory, code: int, data: Array, start: int, stop: int) -> int:
    """The new key's slot; NONE, and nothing changed, if slots or rows are used up."""
    table = memory.table[0]
    slot = table.unused
    if slot == NONE:
        return NONE
    width = memory.arena.shape[1] * 8
    name = allocate(memory.arena, memory.free, class_of((stop - start + width - 1) // width))
    if name == NONE:
        return NONE
    for offset in range(stop - start):
        memory.names[name * width + offset] = data[start + offset]
    key = memory.keys[slot]
    table.unused = key.next
    key.code, key.name, key.name_bytes = code, name, stop - start
    key.base, key.capacity, key.head, key.tail = NONE, 0, 0, 0
    bucket = bucket_of(table, code)
    key.next = memory.buckets[bucket]
    memory.buckets[bucket] = slot
    reset_life(memory.lives, slot)
    table.keys += 1
    if table.keys > table.buckets and table.buckets < len(memory.buckets):
        split_bucket(memory)
    return slot  # type: ignore[no-any-return]


@part
def look_ahead(memory: Memory, codes: Array, row: int) -> None:
    """Prefetches buckets of rows to come, first keys of nearer buckets, and names of nearer keys still."""
    table = memory.table[0]
    if row + BUCKETS_AHEAD < len(codes):
        prefetch(memory.buckets, bucket_of(table, codes[row + BUCKETS_AHEAD]))
    if row + KEYS_AHEAD < len(codes):
        prefetch(memory.keys, max(0, memory.buckets[bucket_of(table, codes[row + KEYS_AHEAD])]))
    if row + NAMES_AHEAD < len(codes):
        slot = memory.buckets[bucket_of(table, codes[row + NAMES_AHEAD])]
        prefetch(memory.arena, max(0, memory.keys[slot].name if slot != NONE else 0))


@part
def find_slot(memory: Memory, code: int, data: Array, start: int, stop: int) -> int:
    slot = memory.buckets[bucket_of(memory.table[0], code)]
    while slot != NONE:
        key = memory.keys[slot]
        if key.code == code and is_named(memory, key, data, start, stop):
            break
        slot = key.next
    return slot  # type: ignore[no-any-return]


@kernel
def find_slots(memory: Memory, data: Array, starts: Array, codes: Array, slots: Array, begin: int) -> int:
    """Fills `slots` from row `begin` with each name's slot, adding unknown names; `codes` are the names' hashes.

    Returns the number of rows done: fewer than all if the memory has to grow first.
    """
    for row in range(begin, len(slots)):
        look_ahead(memory, codes, row)
        start, stop = starts[row], starts[row + 1]
        slot = find_slot(memory, codes[row], data, start, stop)
        if slot == NONE:
            slot = add_key(memory, codes[row], data, start, stop)
            if slot == NONE:
                return row
        slots[row] = slot
    return len(slots)


@part
def remove_key(memory: Memory, slot: int) -> None:
    table, key = memory.table[0], memory.keys[slot]
    bucket = bucket_of(table, key.code)
    if memory.buckets[bucket] == slot:
        memory.buckets[bucket] = key.next
    else:
        before = memory.buckets[bucket]
        while memory.keys[before].next != slot:
            before = memory.keys[before].next
        memory.keys[before].next = key.next
    width = memory.arena.shape[1] * 8
    release(memory.arena, memory.free, key.name, class_of((key.name_bytes + width - 1) // width))
    if key.capacity:
        release(memory.arena, memory.free, key.base, class_of(key.capacity))
    key.name, key.next, key.capacity = NONE, table.unused, 0
    table.unused = slot
    table.keys -= 1

"""Blocks of the arena: 2^n rows at a multiple of 2^n. A free block's first word is the next one of its class.

A larger block is split where none of the right class is free. Blocks are not merged again: in the steady state the
sizes that are freed are the sizes that are asked for.
"""

from app.features.compiled import Array, kernel, part
from app.features.memory import NONE

BLOCK_CLASSES = 40


@part
def release(arena: Array, free: Array, block: int, block_class: int) -> None:
    arena[block, 0] = free[block_class]
    free[block_class] = block


@part
def allocate(arena: Array, free: Array, block_class: int) -> int:
    """The first row of a block of 2^block_class rows, or NONE. Splits a larger block where need be."""
    found = block_class
    while found < BLOCK_CLASSES and free[found] == NONE:
        found += 1
    if found == BLOCK_CLASSES:
        return NONE
    block = free[found]
    free[found] = arena[block, 0]
    while found > block_class:
        found -= 1
        release(arena, free, block + (1 << found), found)
    return block  # type: ignore[no-any-return]


@part
def class_of(rows: int) -> int:
    block_class = 0
    while (1 << block_class) < rows:
        block_class += 1
    return block_class


@kernel
def add_rows(arena: Array, free: Array, start: int) -> None:
    """Makes the rows from `start` to the arena's end free, in blocks as large as their place allows."""
    while start < len(arena):
        block_class = 0
        while start & ((2 << block_class) - 1) == 0 and start + (2 << block_class) <= len(arena):
            block_class += 1
        release(arena, free, start, block_class)
        start += 1 << block_class

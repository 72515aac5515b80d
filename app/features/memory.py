"""The arrays that are a state, as the compiled code sees them.

Memory is one arena of rows of 64-bit words, given out in aligned blocks of 2^n rows. A key owns two blocks: its
name, and a ring of entries sorted by event time. An entry is one row: event time, field values, and per distinct
field a word for the value and the event time at which the key had that value before. Entries of a key are
numbered from 0 for as long as the key lives; entry s lies at `base + (s & (capacity - 1))`.
"""

from typing import NamedTuple

import numpy as np

from app.features.compiled import Array

NONE = -1
FOREVER = 1 << 62
"""More milliseconds than any stream lasts: the horizon of what has none."""

KEY = np.dtype([(name, "i8") for name in ("code", "next", "name", "name_bytes", "base", "capacity", "head", "tail")])
TABLE = np.dtype([(name, "i8") for name in ("keys", "buckets", "mask", "unused", "cursor")])


class Memory(NamedTuple):
    """The state, as arrays. `values` and `names` are the arena again, as float64 words and as bytes."""

    table: Array
    keys: Array
    buckets: Array
    arena: Array
    values: Array
    names: Array
    nodes: Array
    lives: Array
    free: Array


class Plan(NamedTuple):
    """What is computed. Entries have a time, then `len(reach)` summed fields, latest fields, distinct pairs.

    `outputs` is (n, 3): kind, column of the entry, window (NONE: the key's life). `windows` increases; `reach`
    says how many of them each summed field needs. `firsts` and `sums` are room to work in.
    """

    windows: Array
    reach: Array
    distinct: Array
    distinct_windows: Array
    outputs: Array
    firsts: Array
    sums: Array
    horizon_ms: int
    ttl_ms: int
    needs_previous: bool

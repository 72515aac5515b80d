"""The arrays that hold the keys' state, and how they grow."""

import numpy as np
import numpy.typing as npt

from app.features import blocks, kernels, keytable
from app.features.blocks import BLOCK_CLASSES
from app.features.memory import KEY, NONE, TABLE, Memory, Plan
from app.features.sums import STATISTICS, SUPERGROUP_BITS, SUPERGROUP_NODES

SUPERGROUP = 1 << SUPERGROUP_BITS
LEAST_GROWTH, MOST_GROWTH = 1 << 12, 1 << 20
"""Rows that an array grows by: an eighth of itself, between these, so that no growth takes long."""


class Store:
    """Memory for keys and their entries: freed blocks are used again, and what is too small grows in place.

    Growth is `ndarray.resize`, that is realloc: for large arrays Linux moves pages, not bytes (10 ms per 16 MB).
    """

    def __init__(self, width: int, summed: int, lives: int) -> None:
        self.table = np.zeros(1, TABLE)
        self.table["buckets"], self.table["unused"] = 1, NONE
        self.keys = np.empty(0, KEY)
        self.buckets = np.empty(0, np.int64)
        self.lives = np.empty((0, lives, STATISTICS))
        self.arena = np.empty((0, width), np.int64)
        self.nodes = np.empty((0, summed, STATISTICS))
        self.free = np.full(BLOCK_CLASSES, NONE)
        self.add_slots(LEAST_GROWTH)
        self.add_rows(LEAST_GROWTH)

    @property
    def key_count(self) -> int:
        return int(self.table["keys"][0])

    @property
    def nbytes(self) -> int:
        arrays = (self.keys, self.buckets, self.lives, self.arena, self.nodes)
        return sum(array.nbytes for array in arrays)

    @property
    def memory(self) -> Memory:
        """The arrays as kernels take them; valid until the store grows."""
        return Memory(
            self.table,
            self.keys,
            self.buckets,
            self.arena,
            self.arena.view(np.float64),
            self.arena.view(np.uint8).reshape(-1),
            self.nodes,
            self.lives,
            self.free,
        )

    def find_slots(self, names: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Each name's slot; names that are new become keys."""
        slots = np.empty(len(starts) - 1, np.int64)
        codes = np.empty(len(starts) - 1, np.int64)
        keytable.hash_strings(names, starts, codes)
        done = 0
        while (done := keytable.find_slots(self.memory, names, starts, codes, slots, done)) < len(slots):
            if self.table["unused"][0] == NONE:
                self.add_slots(1)
            else:
                self.add_rows(int(starts[done + 1] - starts[done]))
        return slots

    def apply(
        self,
        plan: Plan,
        slots: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        again: npt.NDArray[np.bool_],
        watermarks: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        """Adds rows (n, width) to the keys in `slots`, in order; returns their features (n, outputs). One that comes
        `again` is not added where it is there."""
        out = np.empty((len(slots), len(plan.outputs)))
        done = 0
        while (done := kernels.update(self.memory, plan, slots, rows, again, watermarks, out, done)) < len(slots):
            self.add_rows(2 * int(self.keys["capacity"][slots[done]]))
        return out

    def fill(
        self,
        names: npt.NDArray[np.uint8],
        name_starts: npt.NDArray[np.int64],
        heads: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        entries: npt.NDArray[np.int64],
        lives: npt.NDArray[np.float64],
    ) -> None:
        """Puts keys with their entries into an empty store; arrays as in `KeyedState.snapshot`."""
        slots = self.find_slots(names, name_starts)
        self.lives[slots] = lives
        done = 0
        while (done := kernels.unpack(self.memory, slots, heads, entries, starts, done)) < len(slots):
            self.add_rows(int(starts[done + 1] - starts[done]))

    def add_slots(self, at_least: int) -> None:
        old = len(self.keys)
        new = old + max(at_least, min(max(old // 8, LEAST_GROWTH), MOST_GROWTH))
        _grow(self.keys, new)
        _grow(self.buckets, new)
        _grow(self.lives, new)
        self.buckets[old:] = NONE
        self.keys["name"][old:] = NONE
        self.keys["next"][old:] = np.arange(old + 1, new + 1)
        self.keys["next"][new - 1] = self.table["unused"][0]
        self.table["unused"] = old

    def add_rows(self, at_least: int) -> None:
        """Makes room for a block of at least this many rows."""
        old = len(self.arena)
        block = max(SUPERGROUP, 1 << (at_least - 1).bit_length())
        aligned = -(-old // block) * block + block
        new = max(aligned, old + min(max(old // 8, LEAST_GROWTH), MOST_GROWTH))
        new = -(-new // SUPERGROUP) * SUPERGROUP
        _grow(self.arena, new)
        _grow(self.nodes, (new >> SUPERGROUP_BITS) * SUPERGROUP_NODES)
        blocks.add_rows(self.arena, self.free, old)


def _grow(array: npt.NDArray[np.generic], rows: int) -> None:
    array.resize((rows, *array.shape[1:]), refcheck=False)

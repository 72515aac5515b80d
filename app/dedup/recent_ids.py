"""The ids that one partition has seen inside a horizon of event time."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from app.dedup.idtable import BUCKETS_AN_ID, ENTRY, NONE, TABLE, Memory, copy_out, mark_duplicates
from app.dedup.murmur3 import hash_ids
from app.features.layout import utf8

LEAST_GROWTH, MOST_GROWTH = 1 << 12, 1 << 20
"""Entries that the memory grows by: an eighth of itself, between these, so that no growth takes long."""
LONG_AGO = np.iinfo(np.int64).min // 2


def id_bytes(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids as UTF-8, and where each begins and ends.

    Joined by a character that hardly any id has, they are cut apart again in 16 ns an id; measuring each takes 35.
    """
    joined = "\0".join(ids.tolist()).encode(errors="surrogatepass")
    data = np.frombuffer(bytearray(joined), np.uint8)  # writable, as utf8() has it: one type, one compilation of 0.6 s
    separators = np.flatnonzero(data == 0)
    if len(separators) == len(ids) - 1:
        return data, np.concatenate([[0], separators + 1]), np.concatenate([separators, [len(data)]])
    data, starts = utf8(ids.tolist())
    return data, starts[:-1], starts[1:]


class RecentIds:
    """Tells duplicates: a pure function of its events in log order, however they are cut into batches.

    An id is remembered from its first copy on until the stream's time, the highest event time so far, has moved on by
    more than `horizon_ms`. Copies prolong nothing: they are compared with the first.

    An id takes 40 bytes, and what the arrays grow ahead an eighth of that. Ids are told apart by 128-bit hashes: among
    a billion remembered ones a new event is taken for a copy of another with a probability of 3e-30. That holds for ids
    that nobody chooses in order to collide; the hash has no secret.
    """

    def __init__(self, horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self._table = np.zeros(1, TABLE)
        self._table["buckets"] = 1
        for end in ("unused", "oldest", "newest"):
            self._table[end] = NONE
        self._table["limit_ms"] = LONG_AGO
        self._entries = np.empty(0, ENTRY)
        self._buckets = np.empty(0, np.int32)
        self._grow(LEAST_GROWTH)

    @property
    def count(self) -> int:
        """Ids in memory, those included that are forgotten but not yet freed."""
        return int(self._table["ids"][0])

    @property
    def nbytes(self) -> int:
        return self._entries.nbytes + self._buckets.nbytes

    def mark(
        self, ids: npt.NDArray[Any], clock_ms: npt.NDArray[np.int64], late: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which of n events in log order are duplicates. The others are remembered, but those that are late.

        `clock_ms` (n,) is the stream's time at each event, that event included; it never falls.
        """
        codes = np.empty((len(ids), 2), np.uint64)
        hash_ids(*id_bytes(ids), codes)
        return self._mark(codes, clock_ms, late)

    def _mark(
        self, codes: npt.NDArray[np.uint64], clock_ms: npt.NDArray[np.int64], late: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        duplicate, done = np.empty(len(codes), np.bool_), 0
        rows = codes, clock_ms, late
        while (done := mark_duplicates(self._memory, *rows, self.horizon_ms, duplicate, done)) < len(codes):
            self._grow(min(max(len(self._entries) // 8, LEAST_GROWTH), MOST_GROWTH))
        return duplicate

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """All that is remembered, 24 bytes an id, as arrays of its own."""
        codes, clocks_ms = np.empty((self.count, 2), np.uint64), np.empty(self.count, np.int64)
        kept = copy_out(self._memory, codes, clocks_ms)
        return {"codes": codes[:kept], "clocks_ms": clocks_ms[:kept]}

    @classmethod
    def restore(cls, horizon_ms: int, snapshot: Mapping[str, npt.NDArray[Any]]) -> Self:
        """What the snapshot was taken of, under the same horizon."""
        ids = cls(horizon_ms)
        clocks_ms = np.array(snapshot["clocks_ms"])
        ids._mark(np.array(snapshot["codes"]), clocks_ms, np.zeros(len(clocks_ms), np.bool_))
        return ids

    @property
    def _memory(self) -> Memory:
        """Valid until the arrays grow."""
        return Memory(self._table, self._entries, self._buckets)

    def _grow(self, by: int) -> None:
        """By realloc: for large arrays Linux moves pages, not bytes."""
        old = len(self._entries)
        new = old + by
        self._entries.resize(new, refcheck=False)
        self._buckets.resize(BUCKETS_AN_ID * new, refcheck=False)
        self._buckets[BUCKETS_AN_ID * old :] = NONE
        self._entries["next"][old:] = np.arange(old + 1, new + 1)
        self._entries["next"][new - 1] = self._table["unused"][0]
        self._table["unused"] = old

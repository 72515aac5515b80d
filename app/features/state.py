"""Keyed state: the events that a task's keys still need, and the features made of them."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from app.errors import CheckpointError
from app.event import Columns
from app.features import kernels
from app.features.declaration import Features
from app.features.layout import Layout, key_bytes
from app.features.memory import FOREVER
from app.features.store import Store

SWEEP_SLOTS = 1_024
"""Slots that one `expire` looks at: about 0.1 ms, and a million in 15 s at 66 micro-batches a second."""

Snapshot = dict[str, npt.NDArray[Any]]


class KeyedState:
    """The state of one task, a pure function of its log's prefix and of the watermarks.

    Features come out the same to the last bit however the log is cut into batches, whenever `expire` is called
    and wherever the state was saved and restored. Not for use by two threads at once; kernels release the GIL.
    """

    def __init__(self, features: type[Features], allowed_lateness_ms: int) -> None:
        self.features = features
        self.allowed_lateness_ms = allowed_lateness_ms
        self._layout = Layout(features)
        self._store = Store(self._layout.width, len(self._layout.summed), self._layout.lives)

    @property
    def keys(self) -> int:
        """Keys in memory, those included that are forgotten but not yet swept out."""
        return self._store.key_count

    @property
    def state_bytes(self) -> int:
        """Bytes allocated, free blocks included."""
        return self._store.nbytes

    def update(
        self, columns: Columns, watermark_ms: npt.NDArray[np.int64], again: npt.NDArray[np.bool_] | None = None
    ) -> Columns:
        """Adds n events in log order and returns each one's features, float64 (n,) by column name.

        What comes `again` (n,), and is in the state, is not added another time: its features are those of now, as of
        the event that it repeats.

        `watermark_ms` (n,) is the watermark at each event, that event included; it never falls. Raises
        ValueError, before anything changes, for an event behind its watermark: the caller turns these away.
        """
        rows = self._layout.rows(columns)
        watermarks = np.maximum(watermark_ms, -FOREVER)
        late = np.flatnonzero(rows[:, 0] < watermarks)
        if len(late):
            raise ValueError(
                f"the event at row {late[0]} has time {rows[late[0], 0]}, behind its watermark "
                f"{watermarks[late[0]]}; send late events elsewhere"
            )
        slots = self._store.find_slots(*key_bytes(columns[self.features.by]))
        repeated = np.zeros(len(rows), np.bool_) if again is None else again
        out = self._store.apply(self._layout.plan, slots, rows, repeated, watermarks)
        return dict(zip(self.features.columns(), np.ascontiguousarray(out.T), strict=True))

    def expire(self, watermark_ms: int) -> int:
        """Frees memory of the next few thousand keys; returns how many were forgotten. Changes no result.

        Call it again and again, with a watermark that the next event will not be behind.
        """
        return int(kernels.sweep(self._store.memory, self._layout.plan, max(watermark_ms, -FOREVER), SWEEP_SLOTS))

    def snapshot(self) -> Snapshot:
        """The whole state as arrays of its own, which later updates leave alone."""
        keys, memory = self._store.keys, self._store.memory
        slots = np.flatnonzero(keys["name"] >= 0)
        name_starts, starts = (
            _starts(keys["name_bytes"][slots]),
            _starts((keys["tail"] - keys["head"])[slots]),
        )
        names = np.empty(name_starts[-1], np.uint8)
        entries = np.empty((starts[-1], self._layout.width), np.int64)
        kernels.pack(memory, slots, names, name_starts, entries, starts)
        return {
            "fingerprint": np.frombuffer(self.features.fingerprint().encode(), np.uint8),
            "allowed_lateness_ms": np.array([self.allowed_lateness_ms]),
            "names": names,
            "name_starts": name_starts,
            "heads": keys["head"][slots],
            "starts": starts,
            "entries": entries,
            "lives": self._store.lives[slots],
        }

    @classmethod
    def restore(cls, features: type[Features], allowed_lateness_ms: int, snapshot: Snapshot) -> Self:
        """The state that `snapshot` was taken of.

        Raises CheckpointError if it was taken under another declaration or lateness: what had to be
        remembered depends on both, so that the state has to be built again from the log.
        """
        fingerprint = snapshot["fingerprint"].tobytes().decode()
        lateness_ms = int(snapshot["allowed_lateness_ms"][0])
        if (fingerprint, lateness_ms) != (features.fingerprint(), allowed_lateness_ms):
            raise CheckpointError(
                f"the state is of features {fingerprint} with {lateness_ms} ms of lateness, but "
                f"{features.__name__} is {features.fingerprint()} with {allowed_lateness_ms} ms; "
                "replay the log without this checkpoint"
            )
        state = cls(features, allowed_lateness_ms)
        state._store.fill(**{name: np.array(snapshot[name]) for name in _STATE})
        return state


_STATE = ("names", "name_starts", "heads", "starts", "entries", "lives")


def _starts(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])

"""The breaker of a sink: while the sink is away, one partition asks after it for all the others."""

import math
import random
from collections.abc import Collection

from app.actions.backoff import backoff_ms
from app.breaker import BreakerState
from app.errors import HeadraceError


class Breaker:
    """Closed: each partition goes its own way. Open: none tries anything. Half-open: one tries, the probe.

    It opens when a sink is away as a whole, for a while that grows with each failure in a row; then the next
    partition in turn is the probe, and what becomes of it closes the breaker or opens it again. So a sink that is away
    sees one try after each wait, however many partitions have something for it. Pure: the time is an argument.
    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._due_ms: float | None = None
        self._last_probe = -1
        self.probe: int | None = None
        self.retries = 0
        self.error: HeadraceError | None = None

    @property
    def state(self) -> BreakerState:
        if self._due_ms is None:
            return "closed"
        return "open" if self.probe is None else "half-open"

    def open(self, error: HeadraceError, now_ms: float) -> None:
        self.retries += 1
        self.error = error
        self.probe = None
        self._due_ms = now_ms + backoff_ms(self.retries, self._jitter)

    def close(self) -> int:
        """Returns how often the sink was away since it was last there."""
        retries, self.retries = self.retries, 0
        self._due_ms = self.probe = self.error = None
        return retries

    def not_before_ms(self, partition: int, due_ms: float) -> float:
        """When a partition that is parked until `due_ms` may be resumed; infinite while another one is the probe."""
        if self._due_ms is None or partition == self.probe:
            return due_ms
        return max(due_ms, self._due_ms) if self.probe is None else math.inf

    def choose_probe(self, candidates: Collection[int]) -> int:
        """Half-opens. In turn, so that one whose log cannot be read, or whose action alone fails, holds up no other."""
        self.probe = min(candidates, key=lambda partition: (partition <= self._last_probe, partition))
        self._last_probe = self.probe
        return self.probe

    def give_up_probe(self) -> int | None:
        """Opens again without a verdict on the sink: another may be the probe at once. Returns which one was."""
        probe, self.probe = self.probe, None
        return probe

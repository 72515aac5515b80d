"""Simulated time: a clock that stands still until somebody moves it, and the timers that wait for it."""

import heapq
from collections.abc import Callable
from itertools import count

START_MS = 1_700_000_000_000


class Clock:
    """Nothing waits for real: time jumps to whatever is due next.

    What is due at the same moment runs in the order in which it was asked for.
    """

    def __init__(self, start_ms: float = START_MS) -> None:
        self.now_ms = start_ms
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def after(self, delay_ms: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now_ms + delay_ms, next(self._numbers), call))

    def run_next(self, until_ms: float) -> bool:
        """Runs the next timer, if one is due by `until_ms`; otherwise it is `until_ms` now."""
        if not self._timers or self._timers[0][0] > until_ms:
            self.now_ms = until_ms
            return False
        due_ms, _, call = heapq.heappop(self._timers)
        self.now_ms = max(self.now_ms, due_ms)
        call()
        return True

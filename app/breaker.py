"""Breaker: stops asking what fails again and again. Pure: the time is an argument.

M. Nygard, Release It!, 2nd ed. (2018), "Circuit Breaker": https://martinfowler.com/bliki/CircuitBreaker.html
"""

from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


@dataclass
class Breaker:
    """Closed, it admits every call. After `failures` calls that failed in a row it is open and admits none for
    `pause_ms`; then it is half-open and admits one, the probe: that one's end closes it or opens it again.

    A probe that never ends is counted out after another `pause_ms`. One thread uses it.
    """

    failures: int
    pause_ms: float
    _failed: int = 0
    _next_probe_ms: float | None = None
    _probing: bool = False

    @property
    def state(self) -> BreakerState:
        if self._next_probe_ms is None:
            return "closed"
        return "half-open" if self._probing else "open"

    def admit(self, now_ms: float) -> bool:
        """Whether to make a call now. Each call admitted ends with `succeed` or `fail`."""
        if self._next_probe_ms is None:
            return True
        if now_ms < self._next_probe_ms:
            return False
        self._probing = True
        self._next_probe_ms = now_ms + self.pause_ms
        return True

    def succeed(self) -> None:
        self._failed = 0
        self._next_probe_ms, self._probing = None, False

    def fail(self, now_ms: float) -> None:
        self._failed += 1
        if self._probing or self._failed >= self.failures:
            self._next_probe_ms, self._probing = now_ms + self.pause_ms, False

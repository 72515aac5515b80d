"""Pace: how long to wait between micro-batches.

On few cores the number of micro-batches a second is the cost, and every hop multiplies it: as fast as it can, a
pipeline saturates the machine and its tail explodes (measured at 1,000 events/s: p99 106 ms unpaced, 35 ms paced).
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

REMEMBERED = 15
"""Micro-batches, about a quarter of a second of them."""


@dataclass
class Pace:
    """Adapts the interval between `shortest_ms` and `longest_ms` to what a micro-batch costs and how long it takes.

    The interval is what keeps the worker's thread busy for at most `busy_share` of the time; it is not shorter than
    the time that a model call takes with the calls that may be in flight, so that batches do not queue. Medians are
    taken: one batch that was held up by 30 ms must not hold up those behind it.
    """

    shortest_ms: float
    longest_ms: float
    max_in_flight: int
    busy_share: float = 0.25
    _work_ms: deque[float] = field(default_factory=lambda: deque([0.0], REMEMBERED))
    _call_ms: deque[float] = field(default_factory=lambda: deque([0.0], REMEMBERED))

    def observe(self, *, work_ms: float, call_ms: float) -> None:
        """One micro-batch took `work_ms` of the worker's thread and `call_ms` from asking the model to its answer."""
        self._work_ms.append(work_ms)
        self._call_ms.append(call_ms)

    @property
    def interval_ms(self) -> float:
        wanted_ms = max(median(self._work_ms) / self.busy_share, median(self._call_ms) / self.max_in_flight)
        return min(max(wanted_ms, self.shortest_ms), self.longest_ms)

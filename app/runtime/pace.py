"""Pace: how long to wait between micro-batches.

On few cores the number of micro-batches a second is the cost, and every hop multiplies it: as fast as it can, a
pipeline saturates the machine and its tail explodes (measured at 1,000 events/s: p99 106 ms unpaced, 35 ms paced).
"""

from dataclasses import dataclass

SMOOTHING = 0.2


@dataclass
class Pace:
    """Adapts the interval between `shortest_ms` and `longest_ms` to what a micro-batch costs and how long it takes.

    The interval is what keeps the worker's thread busy for at most `busy_share` of the time; it is not shorter than
    the time that a model call takes with the calls that may be in flight, so that batches do not queue.
    """

    shortest_ms: float
    longest_ms: float
    max_in_flight: int
    busy_share: float = 0.2
    _work_ms: float = 0.0
    _call_ms: float = 0.0

    def observe(self, *, work_ms: float, call_ms: float) -> None:
        """One micro-batch took `work_ms` of the worker's thread and `call_ms` from asking the model to its answer."""
        self._work_ms += SMOOTHING * (work_ms - self._work_ms)
        self._call_ms += SMOOTHING * (call_ms - self._call_ms)

    @property
    def interval_ms(self) -> float:
        wanted_ms = max(self._work_ms / self.busy_share, self._call_ms / self.max_in_flight)
        return min(max(wanted_ms, self.shortest_ms), self.longest_ms)

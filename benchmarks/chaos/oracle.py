"""What must become of every record of the source, by brute force and from the source alone. Pure.

It shares nothing with the pipeline but the meaning: every payment is compared with every payment of its card before it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from benchmarks.chaos.pipeline import POISON_AMOUNT

DAY_MS = 86_400_000
WINDOWS_DAYS = (1, 7, 30)
LATENESS_MS = MAX_AHEAD_MS = 3_600_000
FIELDS: Mapping[str, Any] = {"id": str, "time": int, "card": str, "terminal": str, "amount": (int, float)}
FEATURES = tuple(f"{name}_{days}d" for name in ("payments", "mean_amount") for days in WINDOWS_DAYS)
HORIZON_MS = 3_600_000
"""Of event time: so long an id is remembered; a payment with it is a copy, which has no outcome."""
LONG_AGO = -(10**15)


class SourceRecord(Protocol):
    """A record as a plain consumer reads it; `timestamp` is when it was appended, ms."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Expected(NamedTuple):
    """What must become of one record. `features` has a value for each of FEATURES, None for what is no payment or
    comes too late; `poison` payments may end as dead letters; `dropped` ones need no outcome."""

    partition: int
    offset: int
    append_ms: int
    id: str | None = None
    features: tuple[float, ...] | None = None
    poison: bool = False
    dropped: bool = False


class Oracle:
    """Reads the source in the order of each partition."""

    def __init__(self) -> None:
        self._highest_ms: dict[int, int] = defaultdict(lambda: LONG_AGO)
        self._cards: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._ids: dict[tuple[int, str], int] = {}

    def expect(self, record: SourceRecord) -> Expected:
        """To be called once for each record."""
        place = (record.partition, record.offset, record.timestamp)
        payment = _payment(record)
        if payment is None:
            return Expected(*place)
        highest_ms = max(self._highest_ms[record.partition], payment["time"])
        self._highest_ms[record.partition] = highest_ms
        name, own = payment["id"], (record.partition, payment["id"])
        if highest_ms - self._ids.get(own, LONG_AGO) <= HORIZON_MS:
            return Expected(*place, name, dropped=True)
        if payment["time"] < highest_ms - LATENESS_MS:
            return Expected(*place)
        self._ids[own] = highest_ms
        features = self._features(payment["card"], payment["time"], float(payment["amount"]))
        return Expected(*place, name, features, poison=payment["amount"] == POISON_AMOUNT)

    def _features(self, card: str, time_ms: int, amount: float) -> tuple[float, ...]:
        history = self._cards[card]
        history.append((time_ms, amount))
        before = [(time_ms - each_ms, each) for each_ms, each in history if each_ms <= time_ms]
        inside = [[each for ago_ms, each in before if ago_ms < days * DAY_MS] for days in WINDOWS_DAYS]
        return (*(float(len(amounts)) for amounts in inside), *(math.fsum(each) / len(each) for each in inside))


def _payment(record: SourceRecord) -> dict[str, Any] | None:
    """The payment that a record is, None for one that is none."""
    try:
        payment = json.loads(record.value or b"")
        if not all(isinstance(payment[name], kind) for name, kind in FIELDS.items()):
            return None
    except (TypeError, ValueError, KeyError):
        return None
    if not math.isfinite(payment["amount"]) or record.key != payment["card"].encode():
        return None
    return payment if payment["time"] - record.timestamp <= MAX_AHEAD_MS else None

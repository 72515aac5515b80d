"""What real streams do to their records: say them twice, mix up their order, delay them, break them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from app.errors import ConfigError
from app.simulate.payments import DAY_MS, Day
from app.simulate.records import Fate, Record, encode_day

DISTURBANCE = 4  # the second number of the generator's seed, after those in payments.py
CENTURY_MS = 36_525 * DAY_MS
LATE_BY_MS = 49 * 3_600_000
"""Behind every other event of its day by more than a day: late for any allowed lateness of up to a day, once
its partition has seen one other record of the day."""


@dataclass(frozen=True)
class Disturbance:
    """Shares (0 to 1) of a day's payments that are sent twice, out of order, too late, or broken.

    Records out of order and second copies come up to `delay_ms` of event time after their place: as long as
    that is below the allowed lateness, none of them is late.
    """

    duplicates: float = 0.0
    disorder: float = 0.0
    late: float = 0.0
    broken: float = 0.0
    delay_ms: int = 600_000

    def __post_init__(self) -> None:
        for name in ("duplicates", "disorder", "late", "broken"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; write a share of the events between 0 and 1, like 0.05")
        if self.late + self.broken > 1:
            raise ConfigError(f"late {self.late} and broken {self.broken} are more than all events; lower one")


def disturb(day: Day, disturbance: Disturbance, seed: int) -> list[Record]:
    """The records of a day as they reach the topic, each with its fate; the same for the same arguments.

    A broken or a late record stands in the place of a fine one. Nothing moves into another day.
    """
    draw = np.random.default_rng([seed, DISTURBANCE, day.number])
    records = encode_day(day)
    rows = len(records)
    lot = draw.random(rows)
    broken = lot < disturbance.broken
    late = ~broken & (lot < disturbance.broken + disturbance.late)
    again = ~broken & ~late & (draw.random(rows) < disturbance.duplicates)
    delayed = draw.random(rows) < disturbance.disorder
    delay_ms = draw.uniform(1, disturbance.delay_ms, (2, rows)) / 2
    for row, fault in zip(np.flatnonzero(broken), draw.integers(0, len(FAULTS), rows), strict=False):
        records[row] = FAULTS[fault](records[row])
    for row in np.flatnonzero(late):
        records[row] = _arrive_late(records[row])
    records += [records[row]._replace(fate=Fate.DUPLICATE) for row in np.flatnonzero(again)]
    arrival_ms = day.columns["time"] + delay_ms[0] * delayed
    copy_arrival_ms = (arrival_ms + delay_ms[1])[again]
    order = np.argsort(np.concatenate([arrival_ms, copy_arrival_ms]), kind="stable")
    return [records[at] for at in order]


def _arrive_late(record: Record) -> Record:
    event = msgspec.json.decode(record.value)
    return _with(record, Fate.LATE, event | {"time": event["time"] - LATE_BY_MS})


def _truncate(record: Record) -> Record:
    return record._replace(value=record.value[: -len(record.value) // 3], fate=Fate.UNPARSABLE)


def _garble(record: Record) -> Record:
    return record._replace(value=b"\x00\xff" + record.value, fate=Fate.UNPARSABLE)


def _forget_field(record: Record) -> Record:
    event = msgspec.json.decode(record.value)
    del event["terminal"]
    return _with(record, Fate.MISSING_FIELD, event)


def _mistype_amount(record: Record) -> Record:
    event = msgspec.json.decode(record.value)
    return _with(record, Fate.WRONG_TYPE, event | {"amount": str(event["amount"])})


def _mistype_time(record: Record) -> Record:
    return _with(record, Fate.WRONG_TYPE, msgspec.json.decode(record.value) | {"time": None})


def _lose_amount(record: Record) -> Record:
    """`NaN`, as Python's json module writes it and JSON does not know it."""
    event = msgspec.json.decode(record.value) | {"amount": float("nan")}
    return record._replace(value=json.dumps(event).encode(), fate=Fate.NOT_A_NUMBER)


def _skip_a_century(record: Record) -> Record:
    event = msgspec.json.decode(record.value)
    return _with(record, Fate.FAR_FUTURE, event | {"time": event["time"] + CENTURY_MS})


def _mistake_key(record: Record) -> Record:
    return record._replace(key=record.key + b"0", fate=Fate.FOREIGN_KEY)


def _with(record: Record, fate: Fate, event: dict[str, Any]) -> Record:
    return record._replace(value=msgspec.json.encode(event), fate=fate)


FAULTS: tuple[Callable[[Record], Record], ...] = (
    _truncate,
    _garble,
    _forget_field,
    _mistype_amount,
    _mistype_time,
    _lose_amount,
    _skip_a_century,
    _mistake_key,
)

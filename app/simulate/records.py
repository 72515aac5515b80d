"""Records: what a producer sends to the source topic, and what is known of each."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import msgspec

from app.simulate.payments import Day

SIMULATED_ID = re.compile(rb'"id": ?"sim-(\d+)-')


class Fate(StrEnum):
    """What a pipeline that does its work makes of a record."""

    FINE = "fine"
    DUPLICATE = "duplicate"
    """The same key and value as a fine record before it."""
    LATE = "late"
    """An event of more than a day before those around it: older than any sensible allowed lateness."""
    UNPARSABLE = "unparsable"
    MISSING_FIELD = "missing field"
    WRONG_TYPE = "wrong type"
    NOT_A_NUMBER = "not a number"
    FAR_FUTURE = "far future"
    FOREIGN_KEY = "foreign key"

    @property
    def rejected(self) -> bool:
        """Whether the record is no event and belongs to the dead letters."""
        return self not in (Fate.FINE, Fate.DUPLICATE, Fate.LATE)


class Record(NamedTuple):
    key: bytes
    value: bytes
    fate: Fate = Fate.FINE


def encode_day(day: Day) -> list[Record]:
    """The day's payments as records keyed by card: `{"id", "time" (ms), "card", "terminal", "amount"}`."""
    encode = msgspec.json.Encoder().encode
    names = tuple(day.columns)
    rows = zip(*(day.columns[name].tolist() for name in names), strict=True)
    events = (dict(zip(names, row, strict=True)) for row in rows)
    return [Record(event["card"].encode(), encode(event)) for event in events]


def next_day(values: Iterable[bytes | None]) -> int:
    """The day at which a new run goes on so that ids stay unique and event time moves on: the first that none
    of `values` is of, 0 if no value is simulated.

    The last record of each partition is enough. Broken records count as far as their id can be read.
    """
    found = (SIMULATED_ID.search(value) for value in values if value)
    return max((int(each[1]) + 1 for each in found if each), default=0)

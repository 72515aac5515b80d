"""The feature functions: each declares one feature over the events of a key."""

from typing import NamedTuple, Self, overload

from app.errors import ConfigError, DeclarationError
from app.units import format_duration, parse_duration_ms

Last = str | list[str] | tuple[str, ...] | None


class Column(NamedTuple):
    """One output column; `window_ms` None is the key's life, or for `latest` and such any distance."""

    name: str
    kind: str
    field: str | None
    window_ms: int | None


class Feature:
    """A declared feature. On a Features class it is itself, on a row of features it is a float."""

    def __init__(self, kind: str, field: str | None, last: Last) -> None:
        self.kind = kind
        self.field = field
        self.last = last

    @overload
    def __get__(self, row: None, owner: type) -> Self: ...
    @overload
    def __get__(self, row: object, owner: type) -> float: ...
    def __get__(self, row: object | None, owner: type) -> Self | float:
        if row is None:
            return self
        raise AttributeError("this row has no value for the feature; give it one, or read a row of `Features.row`")

    def columns(self, name: str) -> list[Column]:
        """One column, called `name`, or for a list of windows one each, called `name_1d` and so on."""
        if not isinstance(self.last, list | tuple):
            return [Column(name, self.kind, self.field, _window_ms(name, self.last))]
        if not self.last:
            raise DeclarationError(f"{name} has last=[], which is no window; write one or more, like ['1d']")
        return [
            Column(f"{name}_{_suffix(name, each)}", self.kind, self.field, _window_ms(name, each)) for each in self.last
        ]


def _window_ms(name: str, last: object) -> int | None:
    if last is None:
        return None
    if not isinstance(last, str):
        raise DeclarationError(f"{name} has last={last!r}; write a duration as text, like last='7d'")
    try:
        return parse_duration_ms(last)
    except ConfigError as error:
        raise DeclarationError(f"{name}: {error}") from error


def _suffix(name: str, last: str) -> str:
    if not f"_{last}".isidentifier() and (window_ms := _window_ms(name, last)):
        raise DeclarationError(
            f"{name} has the window {last!r}, which cannot end a column's name; write {format_duration(window_ms)!r}"
        )
    return last


def count(*, last: Last = None) -> Feature:
    """How many events, this one included. Without `last`: since the key began, in log order."""
    return Feature("count", None, last)


def total(field: str, *, last: Last = None) -> Feature:
    """The sum of a field; missing values (NaN) count as nothing, so that the total of none is 0."""
    return Feature("total", field, last)


def mean(field: str, *, last: Last = None) -> Feature:
    """The arithmetic mean of a field's values; NaN where all are missing."""
    return Feature("mean", field, last)


def std(field: str, *, last: Last = None) -> Feature:
    """The sample standard deviation (n - 1, as in pandas) of a field's values; NaN for fewer than two."""
    return Feature("std", field, last)


def minimum(field: str, *, last: Last = None) -> Feature:
    """The least value of a field; NaN where all are missing."""
    return Feature("minimum", field, last)


def maximum(field: str, *, last: Last = None) -> Feature:
    """The greatest value of a field; NaN where all are missing."""
    return Feature("maximum", field, last)


def latest(field: str, *, last: Last = None) -> Feature:
    """The field's value in the key's event before this one by event time; NaN without one (within `last`)."""
    return Feature("latest", field, last)


def time_since_last(*, last: Last = None) -> Feature:
    """Seconds since the key's event before this one by event time; NaN without one (within `last`)."""
    return Feature("time_since_last", None, last)


def distinct(field: str, *, last: Last) -> Feature:
    """How many different values a field has, missing ones aside.

    Costs a pass over the window's events, about 1 ns each, for every event: mind keys with many thousands of them.
    Numbers are compared themselves, strings by a 64-bit hash: of n different strings two are taken for one with
    a probability of n²/2^65, 3e-8 for a million.
    """
    return Feature("distinct", field, last)

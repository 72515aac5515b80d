"""What the features of a log have to be, the slow way: exact fractions, and every event looked at anew."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from app.event import Columns
from app.features import Features
from app.features.feature import Column


class Answer(NamedTuple):
    """A value and how far off a computed one may be."""

    value: float
    tolerance: float = 0.0


def features_of(
    features: type[Features], columns: Columns, watermark_ms: np.ndarray, rows: Sequence[int] | None = None
) -> dict[str, dict[int, Answer]]:
    """Column name → row → answer, for all rows or for those asked for."""
    answers: dict[str, dict[int, Answer]] = {column.name: {} for column in features.declared}
    wanted = set(range(len(watermark_ms)) if rows is None else rows)
    lists = {name: column.tolist() for name, column in columns.items()}
    for row, past in _pasts(features, lists, watermark_ms):
        if row in wanted:
            for column in features.declared:
                answers[column.name][row] = _answer(column, past, lists)
    return answers


def features_again(
    features: type[Features], columns: Columns, watermark_ms: np.ndarray, row: int
) -> dict[str, dict[int, Answer]]:
    """What the features of `row`, the last of its time, are when all rows are there."""
    lists = {name: column.tolist() for name, column in columns.items()}
    keys = lists[features.by]
    pasts = {keys[each]: past for each, past in _pasts(features, lists, watermark_ms)}
    as_of_row = [*(each for each in pasts[keys[row]] if each != row), row]
    return {column.name: {0: _answer(column, as_of_row, lists)} for column in features.declared}


def _pasts(
    features: type[Features], lists: dict[str, list], watermark_ms: np.ndarray
) -> Iterator[tuple[int, list[int]]]:
    """Each row, and its key's rows up to it since the key was last forgotten."""
    pasts: dict[object, list[int]] = {}
    times = lists["time"]
    for row, key in enumerate(lists[features.by]):
        past = pasts.setdefault(key, [])
        if past and features.ttl_ms is not None:
            newest = max(times[each] for each in past)
            if watermark_ms[row] >= newest + features.ttl_ms:
                past = pasts[key] = []
        past.append(row)
        yield row, past


def _answer(column: Column, past: list[int], lists: dict[str, list]) -> Answer:
    times, values = lists["time"], lists[column.field or "time"]
    now = times[past[-1]]
    if column.kind in ("latest", "time_since_last"):
        return _previous(column, past, times, values)
    seen = past
    if column.window_ms is not None:
        seen = [row for row in past if now - column.window_ms < times[row] <= now]
    if column.kind == "count":
        return Answer(len(seen))
    present = [values[row] for row in seen if values[row] is not None and values[row] == values[row]]
    if column.kind == "distinct":
        return Answer(len(set(present)))
    return _statistic(column.kind, [float(value) for value in present])


def _previous(column: Column, past: list[int], times: list[int], values: list) -> Answer:
    now = times[past[-1]]
    before = [row for row in past[:-1] if times[row] <= now]
    if not before:
        return Answer(math.nan)
    previous = max(before, key=lambda row: (times[row], row))
    if column.window_ms is not None and times[previous] <= now - column.window_ms:
        return Answer(math.nan)
    return Answer(float(values[previous]) if column.kind == "latest" else (now - times[previous]) / 1000)


def _statistic(kind: str, values: list[float]) -> Answer:
    exact = [Fraction(value) for value in values]
    size = max((abs(value) for value in values), default=0.0)
    if kind == "total":
        return _about(float(sum(exact)), size * len(values))
    if not values or (kind == "std" and len(values) == 1):
        return Answer(math.nan)
    if kind in ("minimum", "maximum"):
        return Answer(min(values) if kind == "minimum" else max(values))
    mean = sum(exact) / len(exact)
    if kind == "mean":
        return _about(float(mean), size)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    if variance == 0:
        return Answer(0.0)
    return _about(math.sqrt(variance), size)


def _about(value: float, size: float) -> Answer:
    """Nine digits, though the sums be 10^19 times as small as what went into them."""
    return Answer(value, 1e-9 * abs(value) + 1e-28 * size)


def assert_answers(out: Columns, answers: dict[str, dict[int, Answer]]) -> None:
    assert list(out) == list(answers)
    for name, by_row in answers.items():
        assert out[name].dtype == np.float64
        for row, answer in by_row.items():
            value = float(out[name][row])
            both_missing = math.isnan(value) and math.isnan(answer.value)
            close = value == answer.value or abs(value - answer.value) <= answer.tolerance
            assert both_missing or close, f"{name}[{row}] is {value!r}, not {answer.value!r}"

"""From a declaration to what kernels understand: the words of an entry, and the outputs made of them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from app.event import Columns, field_types
from app.features import kernels, keytable
from app.features.declaration import Features
from app.features.memory import FOREVER, NONE, Plan
from app.features.sums import STATISTICS

KINDS = {
    "count": kernels.COUNT,
    "total": kernels.TOTAL,
    "mean": kernels.MEAN,
    "std": kernels.STD,
    "minimum": kernels.MINIMUM,
    "maximum": kernels.MAXIMUM,
    "latest": kernels.LATEST,
    "time_since_last": kernels.TIME_SINCE_LAST,
    "distinct": kernels.DISTINCT,
}
SUMMED = ("total", "mean", "std", "minimum", "maximum")


class Layout:
    """An entry's words: event time, summed fields, fields for `latest` alone, two words per distinct field.

    `width` is their number; `lives` is how many of the first also have statistics over the key's life.
    """

    def __init__(self, features: type[Features]) -> None:
        self.types = field_types(features.of)
        columns = features.declared
        self.summed = _unique(column.field for column in columns if column.kind in SUMMED)
        latest = _unique(column.field for column in columns if column.kind == "latest")
        self.numbers = _unique([*self.summed, *latest])
        self.distinct = _unique(column.field for column in columns if column.kind == "distinct")
        self.width = 1 + len(self.numbers) + 2 * len(self.distinct)
        has_life = any(column.window_ms is None and column.kind in ("count", *SUMMED) for column in columns)
        self.lives = 1 + len(self.summed) if has_life else 0
        self.plan = self._plan(features)

    def rows(self, columns: Columns) -> npt.NDArray[np.int64]:
        """A batch as entries (n, width); what a value replaced is found by the kernel."""
        times = columns["time"]
        rows = np.empty((len(times), self.width), np.int64)
        rows[:, 0] = times
        numbers = rows.view(np.float64)
        for place, name in enumerate(self.numbers, start=1):
            numbers[:, place] = columns[name]
        for place, name in zip(self._distinct_places(), self.distinct, strict=True):
            rows[:, place], rows[:, place + 1] = identities(columns[name])
        return rows

    def _distinct_places(self) -> range:
        return range(1 + len(self.numbers), self.width, 2)

    def _place(self, kind: str, field: str | None) -> int:
        if field is None:
            return 0
        if kind == "distinct":
            return self._distinct_places()[self.distinct.index(field)]
        return 1 + self.numbers.index(field)

    def _plan(self, features: type[Features]) -> Plan:
        declared = features.declared
        windows = sorted({column.window_ms for column in declared if column.window_ms is not None})
        outputs = [
            (
                KINDS[column.kind],
                self._place(column.kind, column.field),
                NONE if column.window_ms is None else windows.index(column.window_ms),
            )
            for column in declared
        ]

        def longest(field: str, kinds: Iterable[str]) -> int:
            over = [column.window_ms for column in declared if column.field == field and column.kind in kinds]
            return max((window for window in over if window is not None), default=0)

        needs_previous = any(
            column.window_ms is None and column.kind in ("latest", "time_since_last") for column in declared
        )
        return Plan(
            windows=np.array(windows, np.int64),
            reach=np.array(
                [1 + windows.index(ms) if (ms := longest(name, SUMMED)) else 0 for name in self.summed],
                np.int64,
            ),
            distinct=np.array(self._distinct_places(), np.int64),
            distinct_windows=np.array([longest(name, ["distinct"]) for name in self.distinct], np.int64),
            firsts=np.empty(len(windows), np.int64),
            sums=np.empty((len(self.summed), len(windows), STATISTICS)),
            outputs=np.array(outputs, np.int64),
            horizon_ms=windows[-1] if windows else (0 if needs_previous else -FOREVER),
            ttl_ms=FOREVER if features.ttl_ms is None else features.ttl_ms,
            needs_previous=needs_previous,
        )


def utf8(strings: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The strings' bytes, one behind the other, and where each begins, plus the end: (n + 1,)."""
    data = "".join(strings).encode(errors="surrogatepass")
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    if lengths.sum() != len(data):  # some character is longer than a byte
        lengths = np.array([len(each.encode(errors="surrogatepass")) for each in strings], np.int64)
    return np.frombuffer(bytearray(data), np.uint8), np.concatenate([[0], np.cumsum(lengths)])


def key_bytes(keys: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Keys as bytes, and where each begins, plus the end: text as UTF-8, an integer as its 8 bytes."""
    if keys.dtype == object:
        return utf8(keys.tolist())
    data = np.array(keys, np.int64).view(np.uint8)
    return data, np.arange(0, len(data) + 1, 8)


def identities(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A word for each value, equal for equal values; and FOREVER where the value is missing, else 0."""
    if values.dtype == object:
        texts = values.tolist()
        missing = np.fromiter((each is None for each in texts), np.bool_, len(texts))
        data, starts = utf8([each or "" for each in texts] if missing.any() else texts)
        words = np.empty(len(texts), np.int64)
        keytable.hash_strings(data, starts, words)
    elif values.dtype == np.float64:
        missing = np.isnan(values)
        words = (values + 0.0).view(np.int64)  # -0.0 is 0.0
    else:
        missing = np.zeros(len(values), np.bool_)
        words = values.astype(np.int64)
    return words, np.where(missing, FOREVER, 0)


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))

"""What the fraud network looks at. Numpy alone, so that a pipeline can name a model's inputs without loading torch."""

import numpy as np
import numpy.typing as npt

from app.event import Columns

WINDOWS = ("1d", "7d", "30d")
INPUTS = (
    "time",
    "amount",
    *(f"payments_{window}" for window in WINDOWS),
    *(f"mean_amount_{window}" for window in WINDOWS),
)
SIGNALS = 4 + 3 * len(WINDOWS) + 2

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
THURSDAY = 3  # 1970-01-01, counted from Monday
SMALLEST_AMOUNT = 0.01


def signals(columns: Columns) -> npt.NDArray[np.float32]:
    """The inputs as the network sees them, float32 of shape (rows, SIGNALS), not yet standardised.

    Amounts are compared as logarithms: a stolen card pays several times what it used to, whatever that was.
    What it used to pay leaves the payment itself out, or one large payment would hide itself in its own mean.
    """
    amount = columns["amount"]
    log_amount = np.log1p(amount)
    found = [amount / 100, log_amount, _weekend(columns["time"]), _night(columns["time"])]
    log_means = {}
    for window in WINDOWS:
        payments, mean = columns[f"payments_{window}"], columns[f"mean_amount_{window}"]
        log_means[window] = np.log1p(mean)
        found += [np.log1p(payments), log_means[window], log_amount - _log_usual(amount, payments, mean)]
    found += [log_means["1d"] - log_means["30d"], log_means["7d"] - log_means["30d"]]
    return np.stack([each.astype(np.float32) for each in found], axis=1)


def _weekend(time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    weekday: npt.NDArray[np.int64] = (time_ms // DAY_MS + THURSDAY) % 7
    return weekday >= 5


def _night(time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    hour: npt.NDArray[np.int64] = time_ms % DAY_MS // HOUR_MS
    return hour <= 6


def _log_usual(
    amount: npt.NDArray[np.float64], payments: npt.NDArray[np.float64], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    others = payments - 1
    usual = np.where(others > 0, (mean * payments - amount) / np.maximum(others, 1), amount)
    return np.log1p(np.maximum(usual, SMALLEST_AMOUNT))

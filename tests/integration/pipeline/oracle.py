"""What must become of every payment, worked out from the source topic alone, with json, pandas and the model."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models import fraud
from tests.support.topics import read_topic

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LATENESS_MS = HOUR_MS
MAX_AHEAD_MS = HOUR_MS
DEDUPLICATE_MS = HOUR_MS


class Oracle:
    """Reads each record once: what was asked before is continued."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap, self._topic = bootstrap, topic
        self._rows: list[dict[str, Any]] = []
        self._ends: dict[int, int] = defaultdict(int)
        self._highest_ms: dict[int, int] = defaultdict(int)
        self._seen_ms: dict[tuple[int, str], int] = {}

    def expect(self) -> pd.DataFrame:
        """One row per record: partition, offset, `fate` (fine, duplicate, late or broken), `fine`; for the fine ones
        the payment and its features."""
        for record in read_topic(self._bootstrap, self._topic, self._ends):
            payment = _payment(record)
            fate = "broken" if payment is None else self._judge(record.partition, payment)
            known = payment if payment is not None and fate == "fine" else {}
            self._rows.append({"partition": record.partition, "offset": record.offset, "fate": fate, **known})
            self._ends[record.partition] = record.offset + 1
        frame = pd.DataFrame(self._rows).sort_values(["partition", "offset"], ignore_index=True)
        frame["fine"] = frame["fate"] == "fine"
        fine = frame[frame["fine"]]
        return frame.join(pd.DataFrame(_features(fine), index=fine.index))

    def _judge(self, partition: int, payment: dict[str, Any]) -> str:
        now_ms = self._highest_ms[partition] = max(self._highest_ms[partition], payment["time"])
        name = (partition, payment["id"])
        if name in self._seen_ms and now_ms - self._seen_ms[name] <= DEDUPLICATE_MS:
            return "duplicate"
        if payment["time"] < now_ms - LATENESS_MS:
            return "late"
        self._seen_ms[name] = now_ms
        return "fine"


def risk(payments: pd.DataFrame, weights: Path) -> np.ndarray:
    """What a model with these weights says of payments with their features."""
    columns = {name: payments[name].to_numpy(np.float64) for name in fraud.INPUTS}
    columns["time"] = payments["time"].to_numpy(np.int64)
    return fraud.load(weights).predict(columns)["risk"]


def _payment(record: Any) -> dict[str, Any] | None:
    try:
        payment = json.loads(record.value)
        kinds = {"id": str, "time": int, "card": str, "terminal": str, "amount": (int, float)}
        if not all(isinstance(payment[name], kind) for name, kind in kinds.items()):
            return None
    except (TypeError, ValueError, KeyError):
        return None
    if not math.isfinite(payment["amount"]) or record.key != payment["card"].encode():
        return None
    if payment["time"] - record.timestamp > MAX_AHEAD_MS:
        return None
    return {name: payment[name] for name in kinds}


def _features(payments: pd.DataFrame) -> dict[str, np.ndarray]:
    """Count and mean of the card's payments over sliding windows, by comparing each with each."""
    found = {f"{name}_{days}d": np.empty(len(payments)) for name in ("payments", "mean_amount") for days in (1, 7, 30)}
    times, amounts = payments["time"].to_numpy(np.int64), payments["amount"].to_numpy(np.float64)
    for at in payments.groupby("card", sort=False).indices.values():
        ago_ms = times[at][:, None] - times[at][None, :]
        before = np.tri(len(at), dtype=bool) & (ago_ms >= 0)
        for days in (1, 7, 30):
            inside = before & (ago_ms < days * DAY_MS)
            counts = inside.sum(axis=1)
            found[f"payments_{days}d"][at] = counts
            found[f"mean_amount_{days}d"][at] = (inside * amounts[at]).sum(axis=1) / counts
    return found

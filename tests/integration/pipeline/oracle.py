"""What must become of every payment, worked out from the source topic alone, with json, pandas and the model."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from kafka import KafkaConsumer, TopicPartition

from models import fraud

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LATENESS_MS = HOUR_MS
MAX_AHEAD_MS = HOUR_MS
DEDUPLICATE_MS = HOUR_MS


def read_topic(bootstrap: str, topic: str) -> Iterator[Any]:
    """Every record of a topic, partition by partition."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    for number in sorted(consumer.partitions_for_topic(topic) or ()):
        partition = TopicPartition(topic, number)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        while consumer.position(partition) < end:
            for records in consumer.poll(1_000).values():
                yield from (record for record in records if record.offset < end)
    consumer.close()


def expect(bootstrap: str, topic: str) -> pd.DataFrame:
    """One row per record: partition, offset, `fate` (fine, duplicate, late or broken), `fine`; for the fine ones the
    payment and its features."""
    rows = []
    highest: dict[int, int] = {}
    seen: dict[tuple[int, str], int] = {}
    for record in read_topic(bootstrap, topic):
        payment, fate = _payment(record), "broken"
        if payment is not None:
            now_ms = max(highest.get(record.partition, 0), payment["time"])
            highest[record.partition] = now_ms
            name = (record.partition, payment["id"])
            if name in seen and now_ms - seen[name] <= DEDUPLICATE_MS:
                fate = "duplicate"
            elif payment["time"] < now_ms - LATENESS_MS:
                fate = "late"
            else:
                fate, seen[name] = "fine", now_ms
        known = payment if payment is not None and fate == "fine" else {}
        rows.append({"partition": record.partition, "offset": record.offset, "fate": fate, **known})
    frame = pd.DataFrame(rows)
    frame["fine"] = frame["fate"] == "fine"
    fine = frame[frame["fine"]]
    return frame.join(pd.DataFrame(_features(fine), index=fine.index))


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

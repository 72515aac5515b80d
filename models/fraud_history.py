"""Labelled payments with their features, computed by the code that computes them in the stream."""

from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from tqdm import tqdm

from app.event import Columns
from app.features import KeyedState
from app.pipelines.fraud import CardHistory
from app.simulate.payments import DAY_MS, days, draw_world
from models.handbook import History

LATENESS_MS = 3_600_000
BATCH_ROWS = 10_000


def simulate_history(seed: int, day_count: int) -> History:
    """The payments of the simulator's first `day_count` days."""
    drawn = list(islice(days(draw_world(seed)), day_count))
    columns = {name: np.concatenate([day.columns[name] for day in drawn]) for name in ("time", "card", "amount")}
    return _with_features(columns, np.concatenate([day.scenario > 0 for day in drawn]))


def read_history(path: Path) -> History:
    """Reads a CSV file, compressed or not, with the columns of the Fraud Detection Handbook, in the order of
    time: tx_datetime, customer_id, tx_amount, tx_fraud."""
    table = pyarrow.csv.read_csv(path)
    columns: Columns = {
        "time": pc.cast(table["tx_datetime"], pa.timestamp("ms")).to_numpy().astype(np.int64),
        "card": pc.cast(table["customer_id"], pa.string()).to_numpy(),
        "amount": pc.cast(table["tx_amount"], pa.float64()).to_numpy(),
    }
    return _with_features(columns, table["tx_fraud"].to_numpy() == 1)


def _with_features(columns: Columns, fraud: npt.NDArray[np.bool_]) -> History:
    state = KeyedState(CardHistory, LATENESS_MS)
    watermark_ms = np.maximum.accumulate(columns["time"]) - LATENESS_MS
    batches = []
    for start in tqdm(range(0, len(fraud), BATCH_ROWS), desc="features", unit="batch"):
        rows = slice(start, start + BATCH_ROWS)
        batch = {name: column[rows] for name, column in columns.items()}
        batches.append(state.update(batch, watermark_ms[rows]))
    features = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    day = columns["time"] // DAY_MS
    return History(columns | features, fraud, day - day[0])

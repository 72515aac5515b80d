"""Keyed features on one core: updates a second, the longest pause, and what a snapshot costs.

    python -m benchmarks.features [--json FILE]

An update is one payment through the class below: six features. Times are CPU seconds of the one thread that works,
page faults included; updates a second are those of the second half of each run.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from app.event import Columns, Event
from app.features import Features, KeyedState, count, mean

DAY_MS = 86_400_000
LATENESS_MS = 60_000
BATCH = 4_096
WINDOWS = ["1d", "7d", "30d"]


class Payment(Event):
    card: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last=WINDOWS)
    usual_amount = mean("amount", last=WINDOWS)


def payments(cards: int, events: int, each_day: float) -> Iterator[tuple[Columns, np.ndarray]]:
    """Batches of payments with their watermarks: every card `each_day` times a day, a twentieth up to 60 s late."""
    random = np.random.default_rng(1)
    now, watermark = 0.0, -LATENESS_MS
    for _ in range(events // BATCH):
        times = now + np.cumsum(random.exponential(DAY_MS / (cards * each_day), BATCH))
        now = times[-1]
        times = times.astype(np.int64) - (random.random(BATCH) < 0.05) * random.integers(0, LATENESS_MS, BATCH)
        watermarks = np.maximum.accumulate(np.maximum(times - LATENESS_MS, watermark))
        watermark = int(watermarks[-1])
        names = [f"card-{card:08d}" for card in random.integers(0, cards, BATCH)]
        amounts = random.gamma(2.0, 20.0, BATCH)
        yield {"time": times, "card": np.array(names, object), "amount": amounts}, watermarks


def measure(cards: int, events: int, each_day: float) -> dict[str, float]:
    state = KeyedState(CardHistory, LATENESS_MS)
    seconds = []
    for columns, watermarks in payments(cards, events, each_day):
        started = time.thread_time()
        state.update(columns, watermarks)
        state.expire(int(watermarks[-1]))
        seconds.append(time.thread_time() - started)
    steady = seconds[len(seconds) // 2 :]
    updates = len(steady) * BATCH / sum(steady)
    return {
        "keys": state.keys,
        "updates_per_s": round(updates),
        "features_per_s": round(updates * len(CardHistory.columns())),
        "longest_batch_ms": round(1e3 * max(seconds), 1),
        "state_mb": round(state.state_bytes / 1e6, 1),
        **measure_snapshot(state),
    }


def measure_snapshot(state: KeyedState) -> dict[str, float]:
    started = time.thread_time()
    snapshot = state.snapshot()
    taken = time.thread_time()
    KeyedState.restore(CardHistory, LATENESS_MS, snapshot)
    return {
        "snapshot_s": round(taken - started, 2),
        "restore_s": round(time.thread_time() - taken, 2),
        "snapshot_mb": round(sum(array.nbytes for array in snapshot.values()) / 1e6, 1),
    }


def warm_up() -> float:
    """Compiles the kernels, or loads them; returns the seconds that took."""
    started = time.perf_counter()
    measure(10, 2 * BATCH, 3.0)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--events", type=int, default=2_000_000, help="for 5,000 keys; thrice that for 1,000,000")
    options = parser.parse_args()
    print(f"kernels ready in {warm_up():.1f} s")
    results = [measure(5_000, options.events, 3.0), measure(1_000_000, 3 * options.events, 3.0)]
    for name in results[0]:
        print(f"{name:>18}", *(f"{result[name]:>14,}" for result in results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

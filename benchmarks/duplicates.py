"""Telling duplicates on one core: what an event costs, what an id takes, and what a whole task loses by it.

    python -m benchmarks.duplicates [--json FILE]

Every event is new, has a UUID and comes a millisecond after the one before it. Times are CPU seconds of the one thread
that works; `dict` is the same by a Python dict and a deque.
"""

import argparse
import json
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.dedup import RecentIds
from app.pipelines.fraud import fraud
from app.runtime.task import Task, TaskSettings, warm_up
from app.sources import Records

BATCH = 4_096
START_MS = 1_700_000_000_000
TASK_EVENTS = 1_000_000
NONE_LATE = np.zeros(BATCH, np.bool_)

Mark = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


class PlainIds:
    """The same with what Python has."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._seen: set[str] = set()
        self._queue: deque[tuple[int, str]] = deque()

    def mark(self, ids: np.ndarray, clock_ms: np.ndarray, late: np.ndarray) -> list[bool]:
        seen, queue, duplicate = self._seen, self._queue, []
        for event_id, now_ms, is_late in zip(ids.tolist(), clock_ms.tolist(), late.tolist(), strict=True):
            while queue and queue[0][0] < now_ms - self._horizon_ms:
                seen.remove(queue.popleft()[1])
            duplicate.append(event_id in seen)
            if not (duplicate[-1] or is_late):
                seen.add(event_id)
                queue.append((now_ms, event_id))
        return duplicate


def new_events(batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids, and the stream's time at each."""
    random = np.random.default_rng(1)
    for number in range(batches):
        ids = [str(uuid.UUID(bytes=random.bytes(16))) for _ in range(BATCH)]
        yield np.array(ids, object), np.arange(number * BATCH, (number + 1) * BATCH)


def seconds_a_batch(mark: Mark, remembered: int) -> list[float]:
    """Of the batches that come when as many ids are remembered as there will be."""
    filling = -(-remembered // BATCH)
    seconds = []
    for ids, clock_ms in new_events(filling + max(100, filling // 4)):
        started = time.thread_time()
        mark(ids, clock_ms, NONE_LATE)
        seconds.append(time.thread_time() - started)
    return seconds[filling:]


def ns_an_event(seconds: list[float]) -> float:
    """In the median batch: what else runs on the machine makes some of them slow."""
    return round(1e9 * statistics.median(seconds) / BATCH, 1)


def measure_ids(remembered: int) -> dict[str, float]:
    recent = RecentIds(remembered)
    seconds = seconds_a_batch(recent.mark, remembered)
    plain = seconds_a_batch(PlainIds(remembered).mark, remembered)
    started = time.thread_time()
    snapshot = recent.snapshot()
    taken = time.thread_time()
    RecentIds.restore(remembered, snapshot)
    restored = time.thread_time()
    return {
        "ids": recent.count,
        "ns_an_event": ns_an_event(seconds),
        "ns_an_event_dict": ns_an_event(plain),
        "longest_batch_ms": round(1e3 * max(seconds), 2),
        "bytes_an_id": round(recent.nbytes / recent.count, 1),
        "snapshot_s": round(taken - started, 3),
        "restore_s": round(restored - taken, 3),
    }


def payments() -> Iterator[Records]:
    """Payments of 5,000 cards."""
    random = np.random.default_rng(2)
    for number, (ids, clock_ms) in enumerate(new_events(TASK_EVENTS // BATCH)):
        cards = [f"card-{card}" for card in random.integers(0, 5_000, BATCH).tolist()]
        times_ms = (START_MS + clock_ms).tolist()
        events = zip(ids.tolist(), times_ms, cards, strict=True)
        values = [
            f'{{"id":"{each}","time":{time_ms},"card":"{card}","terminal":"terminal-1","amount":12.5}}'.encode()
            for each, time_ms, card in events
        ]
        offsets = np.arange(number * BATCH, (number + 1) * BATCH)
        keys = [card.encode() for card in cards]
        yield Records("payments", 0, offsets, START_MS + clock_ms, keys, values, list)


def measure_task() -> dict[str, float]:
    """ns an event, with a horizon of 100,000 ids and without; batch by batch in turns, as other work disturbs both, and
    each as often as the other the first to touch a batch."""
    horizons_ms = {"with": 100_000, "without": None}
    settings = {name: TaskSettings("fraud", "payments", 60_000, 60_000, each) for name, each in horizons_ms.items()}
    tasks = {name: Task(fraud, each, 0, next_offset=0, decided_through=-1) for name, each in settings.items()}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number, records in enumerate(payments()):
        for name, task in list(tasks.items())[:: 1 if number % 2 else -1]:
            started = time.thread_time()
            task.admit(records)
            seconds[name].append(time.thread_time() - started)
    return {name: ns_an_event(each[len(each) // 2 :]) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--ids", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="remembered at once")
    options = parser.parse_args()
    warm_up(fraud)
    results = [measure_ids(each) for each in options.ids]
    for name in results[0]:
        print(f"{name:>18}", *(f"{result[name]:>14,}" for result in results))
    task = measure_task()
    print(*(f"a task {name} it: {each:,} ns an event" for name, each in task.items()), sep=", ")
    if options.json:
        options.json.write_text(json.dumps({"ids": results, "task_ns": task}, indent=2) + "\n")


if __name__ == "__main__":
    main()

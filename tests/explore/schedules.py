"""Schedules: events as they come in life and worse, with faults among them; a function of a seed."""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from app.config import WorkerTuning
from app.testing.clock import START_MS
from app.testing.faults import (
    ACTION_CRASH,
    COORDINATOR_SILENT,
    CRASH,
    DUPLICATE,
    MODEL_AWAY,
    TORN,
    Away,
    Crash,
    Fault,
    Pause,
    Record,
    Slow,
    Wait,
)
from tests.explore.pipelines import UNLUCKY, Payment

LATENESS_MS = 60_000
MAX_AHEAD_MS = 3_600_000
HORIZON_MS = 3_600_000
"""Longer than any schedule: an id that was seen is never forgotten."""
CARDS = "abcd"
AMOUNTS = (0.5, 1.0, 2.5, 4.0, UNLUCKY)
TIMES_MS = (0, 0, 0, 0, -1_000, -59_000, -61_000, -200_000)
"""Against the order of arrival: on time, out of order, and too late."""
PAUSES_MS = (500, 4_500, 6_000)
"""Too short for the coordinator to notice, and long enough for another worker to take over."""
AWAY_MS = (300, 1_500, 3_500)
SLOW_MS = (30, 200, 2_000)
SINKS = ("holds", "held", "cases")
RECOVERY_MS = 8_000
"""After which a worker that died is replaced, and has got partitions back."""
OPERATIONS = (0, 0, 1, 2, 3, 5, 8, 13, 21, 34)

Item = Payment | Record | Fault


@dataclass(frozen=True)
class Schedule:
    """A simulation's whole input. Each step is an item and the time that passes after it."""

    seed: int
    steps: tuple[tuple[Item, float], ...]
    tuning: WorkerTuning
    hasty: bool
    deduplicate: bool
    ready_first: bool


def draw_schedule(seed: int) -> Schedule:
    random = Random(seed)
    items: list[Item] = [draw_event(random, number) for number in range(random.randint(3, 14))]
    for at in range(len(items) - 1):
        if random.random() < 0.1:
            items[at], items[at + 1] = items[at + 1], items[at]
    for _ in range(random.choice([0, 1, 1, 2, 2, 3, 4, 5])):
        at = random.randint(1, len(items))
        items[at:at] = draw_faults(random)
    if random.random() < 0.2:
        items.insert(random.randint(1, len(items)), Wait(RECOVERY_MS))
    tempo = random.choice([1, 1, 5, 25])
    return Schedule(
        seed=seed,
        steps=tuple((item, tempo * random.choice([0, 0, 1, 3, 10, 10, 30, 100])) for item in items),
        tuning=draw_tuning(random),
        hasty=random.random() < 0.4,
        deduplicate=random.random() < 0.5,
        ready_first=random.random() < 0.8,
    )


def draw_event(random: Random, number: int) -> Payment | Record:
    time_ms = START_MS + number * random.choice([0, 500, 3_000]) + random.choice(TIMES_MS)
    event = Payment(id=f"p{number}", time=time_ms, card=random.choice(CARDS), amount=random.choice(AMOUNTS))
    return break_event(random, event) if random.random() < 0.12 else event


def break_event(random: Random, event: Payment) -> Record:
    fields: dict[str, Any] = {"id": event.id, "time": event.time, "card": event.card, "amount": event.amount}
    whole, key = json.dumps(fields).encode(), event.card.encode()
    return random.choice(
        [
            Record(whole[:-4], key),
            Record(None, key),
            Record(whole, b"z"),
            Record(json.dumps({**fields, "amount": "much"}).encode(), key),
            Record(json.dumps({**fields, "time": START_MS + 10 * MAX_AHEAD_MS}).encode(), key),
        ]
    )


def draw_faults(random: Random) -> list[Fault]:
    """One, or some that are worse together."""
    operations, pause_ms, away_ms = random.choice(OPERATIONS), random.choice(PAUSES_MS), random.choice(AWAY_MS)
    kinds: list[list[Fault]] = [
        [Crash("stream", operations)],
        [Crash("stream", operations)],
        [Crash("action", operations)],
        [Crash("action", random.randint(0, 60))],
        [Crash("action", random.randint(0, 60))],
        [ACTION_CRASH],
        [Pause("action", pause_ms)],
        [Pause("stream", pause_ms)],
        [Pause("stream", pause_ms)],
        [Pause("action", pause_ms)],
        [Slow("model", random.choice(SLOW_MS), away_ms)],
        [Slow("broker", random.choice(SLOW_MS), away_ms)],
        [MODEL_AWAY],
        [Away("broker", away_ms)],
        [COORDINATOR_SILENT],
        [Away(random.choice(SINKS), away_ms)],
        [DUPLICATE],
        [CRASH, DUPLICATE],
        [TORN, CRASH],
        [Slow("broker", 200, 1_000), Crash("stream", operations)],
    ]
    return random.choice(kinds)


def draw_tuning(random: Random) -> WorkerTuning:
    return WorkerTuning.load(
        {
            "pace": {"shortest": "5ms", "longest": "20ms"},
            "max_in_flight": random.choice([1, 2, 3]),
            "max_batch": random.choice([1, 2, 3, 8]),
            "checkpoint_interval": random.choice(["5ms", "50ms", "500ms", "1h"]),
        }
    )

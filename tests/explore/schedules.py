"""Schedules: events as they come in life and worse, with faults among them; a function of a seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from app.config import WorkerTuning
from app.testing.clock import START_MS
from app.testing.faults import (
    ACTION_CRASH,
    COORDINATOR_SILENT,
    DUPLICATE,
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
CARDS = "abcd"
AMOUNTS = (0.5, 1.0, 2.5, 4.0, UNLUCKY)
LONGEST_PAUSE_MS = 6_000


@dataclass(frozen=True)
class Schedule:
    """A simulation's whole input. Each step is an item and the time that passes after it."""

    seed: int
    steps: tuple[tuple[Payment | Record | Fault, float], ...]
    tuning: WorkerTuning
    hasty: bool
    ready_first: bool


def draw_schedule(seed: int) -> Schedule:
    random = Random(seed)
    events = random.randint(3, 14)
    items: list[Payment | Record | Fault] = [draw_event(random, number) for number in range(events)]
    for _ in range(random.choice([0, 1, 1, 2, 2, 3, 4])):
        items.insert(random.randint(1, len(items)), draw_fault(random))
    return Schedule(
        seed=seed,
        steps=tuple((item, draw_pause_ms(random)) for item in items),
        tuning=draw_tuning(random),
        hasty=random.random() < 0.4,
        ready_first=random.random() < 0.8,
    )


def draw_event(random: Random, number: int) -> Payment | Record:
    time_ms = START_MS + number * random.choice([0, 500, 3_000])
    time_ms -= random.choice([0, 0, 0, 0, 1_000, 59_000, 61_000, 200_000])
    event = Payment(id=f"p{number}", time=time_ms, card=random.choice(CARDS), amount=random.choice(AMOUNTS))
    return break_event(random, event) if random.random() < 0.12 else event


def break_event(random: Random, event: Payment) -> Record:
    fields = {"id": event.id, "time": event.time, "card": event.card, "amount": event.amount}
    whole, key = json.dumps(fields).encode(), event.card.encode()
    broken: list[Callable[[], Record]] = [
        lambda: Record(whole[:-4], key),
        lambda: Record(None, key),
        lambda: Record(whole, b"z"),
        lambda: Record(json.dumps({**fields, "amount": "much"}).encode(), key),
        lambda: Record(json.dumps({**fields, "time": START_MS + 10 * MAX_AHEAD_MS}).encode(), key),
    ]
    return random.choice(broken)()


def draw_fault(random: Random) -> Fault:
    sink = random.choice(["holds", "cases", "held"])
    ms = random.choice([300, 1_500, 3_500])
    faults: list[Any] = [
        lambda: Crash("stream", random.choice([0, 0, 1, 2, 3, 5, 8, 13])),
        lambda: Crash("stream", random.choice([0, 0, 1, 2, 3, 5, 8, 13])),
        lambda: Crash("action", random.choice([0, *range(40)])),
        lambda: Crash("action", random.choice([0, *range(40)])),
        lambda: ACTION_CRASH,
        lambda: Pause("stream", random.choice([500, 3_500, LONGEST_PAUSE_MS])),
        lambda: Pause("stream", random.choice([500, 3_500, LONGEST_PAUSE_MS])),
        lambda: Pause("action", random.choice([500, 3_500, LONGEST_PAUSE_MS])),
        lambda: Slow("model", random.choice([30, 200, 2_000]), ms),
        lambda: Slow("broker", random.choice([30, 200, 2_000]), ms),
        lambda: Away("model", ms),
        lambda: Away("broker", ms),
        lambda: COORDINATOR_SILENT,
        lambda: Away(sink, ms),
        lambda: DUPLICATE,
        lambda: TORN,
    ]
    return random.choice(faults)()  # type: ignore[no-any-return]


def draw_pause_ms(random: Random) -> float:
    return random.choice([0, 0, 1, 3, 10, 10, 30, 100]) * random.uniform(0.5, 1.5)


def draw_tuning(random: Random) -> WorkerTuning:
    return WorkerTuning.load(
        {
            "pace": {"shortest": "1ms", "longest": "10ms"},
            "max_in_flight": random.choice([1, 2, 3]),
            "max_batch": random.choice([1, 2, 3, 8]),
            "checkpoint_interval": random.choice(["5ms", "50ms", "500ms", "1h"]),
        }
    )


def disorder(random: Random, items: list[Any]) -> None:
    """Lets some neighbours change places."""
    for at in range(len(items) - 1):
        if random.random() < 0.1:
            items[at], items[at + 1] = items[at + 1], items[at]


__all__ = ["Schedule", "Wait", "disorder", "draw_schedule"]

"""Simulated card payments: customers, terminals and three kinds of fraud.

The simulation follows the public Fraud Detection Handbook (Le Borgne et al., "Reproducible machine learning
for credit card fraud detection", chapter 3): customers pay near their home, at their own pace and with
amounts of their own; fraud is a high amount, a compromised terminal, or a compromised card. Every day is a
pure function of the seed and the day's number, so that a stream can begin at any day without drawing those
before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

import numpy as np
import numpy.typing as npt

from app.event import Columns

EPOCH_MS = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000

HIGH_AMOUNT = 220.0
TERMINALS_COMPROMISED_DAILY, TERMINAL_COMPROMISED_DAYS = 2, 28
CARDS_COMPROMISED_DAILY, CARD_COMPROMISED_DAYS = 3, 14
STOLEN_SHARE, STOLEN_FACTOR = 1 / 3, 5.0

# What a random generator draws, the second number of its seed: so no two of them share a stream of numbers.
WORLD, PAYMENTS, TERMINALS, CARDS = range(4)


@dataclass(frozen=True)
class World:
    """Who pays, and where. Customer c reaches the terminals `reachable[first[c]:first[c + 1]]`."""

    seed: int
    cards: npt.NDArray[np.object_]
    terminals: npt.NDArray[np.object_]
    mean_amount: npt.NDArray[np.float64]
    payments_per_day: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    reachable: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Day:
    """The payments of one simulated day in the order of their time.

    `columns` are the events: id, card, terminal (str), time (int64 ms), amount (float64). `scenario` (int8
    per row) is the label, which no event shows: 0 genuine, 1 high amount, 2 compromised terminal, 3
    compromised card.
    """

    number: int
    columns: Columns
    scenario: npt.NDArray[np.int8]


def draw_world(seed: int, customers: int = 5_000, terminals: int = 10_000, radius: float = 5.0) -> World:
    """Draws customers and terminals on a square of 100 by 100; a customer uses the terminals within `radius`."""
    draw = np.random.default_rng([seed, WORLD])
    home_x, home_y = draw.uniform(0, 100, (2, customers))
    place_x, place_y = draw.uniform(0, 100, (2, terminals))
    near = [
        np.flatnonzero((place_x - x) ** 2 + (place_y - y) ** 2 < radius**2) for x, y in zip(home_x, home_y, strict=True)
    ]
    return World(
        seed=seed,
        cards=_names("card", customers),
        terminals=_names("terminal", terminals),
        mean_amount=draw.uniform(5, 100, customers),
        payments_per_day=draw.uniform(0, 4, customers),
        first=np.concatenate([[0], np.cumsum([len(each) for each in near])]),
        reachable=np.concatenate(near),
    )


def days(world: World, start_day: int = 0) -> Iterator[Day]:
    """Yields day after day, without end, from `start_day` on (0 is 2000-01-01)."""
    return (draw_day(world, number) for number in count(start_day))


def draw_day(world: World, number: int) -> Day:
    """Draws the payments of day `number`, the same for the same world and number."""
    draw = np.random.default_rng([world.seed, PAYMENTS, number])
    card = np.repeat(np.arange(len(world.cards)), draw.poisson(world.payments_per_day))
    time_ms = (draw.normal(43_200, 20_000, len(card)) * 1000).astype(np.int64)
    choices = np.diff(world.first)[card]
    real = (time_ms > 0) & (time_ms < DAY_MS) & (choices > 0)
    order = np.flatnonzero(real)[np.argsort(time_ms[real], kind="stable")]
    card, time_ms, choices = card[order], time_ms[order], choices[order]
    terminal = world.reachable[world.first[card] + (draw.random(len(card)) * choices).astype(np.int64)]
    amount, scenario = _commit_fraud(world, number, draw, card, terminal, _amounts(draw, world.mean_amount[card]))
    columns: Columns = {
        "id": np.array([f"sim-{number}-{row}" for row in range(len(card))], dtype=object),
        "time": EPOCH_MS + number * DAY_MS + time_ms,
        "card": world.cards[card],
        "terminal": world.terminals[terminal],
        "amount": np.maximum(amount.round(2), 0.01),
    }
    return Day(number, columns, scenario)


def _names(kind: str, how_many: int) -> npt.NDArray[np.object_]:
    return np.array([f"{kind}-{number}" for number in range(how_many)], dtype=object)


def _amounts(draw: np.random.Generator, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    amount = draw.normal(mean, mean / 2)
    return np.where(amount < 0, draw.uniform(0, 2 * mean), amount)


def _commit_fraud(
    world: World,
    number: int,
    draw: np.random.Generator,
    card: npt.NDArray[np.int64],
    terminal: npt.NDArray[np.int64],
    amount: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]:
    """Returns the amounts after fraud and each payment's scenario; where several apply, the highest counts."""
    scenario = (amount > HIGH_AMOUNT).astype(np.int8)
    scenario[np.isin(terminal, compromised_terminals(world, number))] = 2
    stolen = np.isin(card, compromised_cards(world, number)) & (draw.random(len(card)) < STOLEN_SHARE)
    scenario[stolen] = 3
    return np.where(stolen, amount * STOLEN_FACTOR, amount), scenario


def compromised_terminals(world: World, number: int) -> npt.NDArray[np.int64]:
    """The terminals at which every payment of day `number` is fraud."""
    started = range(max(0, number - TERMINAL_COMPROMISED_DAYS + 1), number + 1)
    return _drawn_daily(world.seed, TERMINALS, started, len(world.terminals), TERMINALS_COMPROMISED_DAILY)


def compromised_cards(world: World, number: int) -> npt.NDArray[np.int64]:
    """The cards of which a third of the payments of day `number` are fraud."""
    started = range(max(0, number - CARD_COMPROMISED_DAYS + 1), number + 1)
    return _drawn_daily(world.seed, CARDS, started, len(world.cards), CARDS_COMPROMISED_DAILY)


def _drawn_daily(seed: int, kind: int, on_days: range, population: int, daily: int) -> npt.NDArray[np.int64]:
    draws = (np.random.default_rng([seed, kind, day]) for day in on_days)
    return np.concatenate([draw.choice(population, daily, replace=False) for draw in draws])

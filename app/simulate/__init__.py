"""Simulated traffic: the same records for the same seed, with a known fate for each. Pure: no clock, no broker."""

from collections.abc import Iterator

from app.errors import ConfigError
from app.simulate.disturb import Disturbance, disturb
from app.simulate.payments import World, days, draw_world
from app.simulate.records import Fate, Record, next_day

PIPELINES = ("fraud",)
UNDISTURBED = Disturbance()


def simulate(
    pipeline: str = "fraud",
    *,
    seed: int = 0,
    start_day: int = 0,
    disturbance: Disturbance = UNDISTURBED,
    world: World | None = None,
) -> Iterator[list[Record]]:
    """Yields the records of one simulated day after another, without end: about 9,600 a day, in sending
    order.

    Event time begins at 2000-01-01 plus `start_day` days. A run that is to go on after another on the same
    topic passes `start_day=next_day(last values of its partitions)`: ids stay unique and event time moves on.
    A day depends on seed, day and disturbance alone. `world` is who pays, by default `draw_world(seed)`:
    5,000 cards.

    Raises ConfigError for a pipeline without a simulator.
    """
    if pipeline not in PIPELINES:
        raise ConfigError(f"{pipeline!r} has no simulator; there is one for {', '.join(PIPELINES)}")
    drawn = world or draw_world(seed)
    return (disturb(day, disturbance, seed) for day in days(drawn, start_day))


__all__ = ["Disturbance", "Fate", "Record", "World", "draw_world", "next_day", "simulate"]

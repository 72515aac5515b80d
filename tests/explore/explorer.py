"""The explorer: runs schedules and checks what they come to."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from app.config import WorkerTuning
from app.testing.simulation import Simulation, StuckError
from tests.explore.oracle import ViolationError, check
from tests.explore.pipelines import MoodyModel, hasty, patient
from tests.explore.schedules import HORIZON_MS, LATENESS_MS, MAX_AHEAD_MS, Schedule, draw_schedule

IDLE_MS = 500.0
PATIENCE_MS = 40_000.0
"""The slowest recovery, a crash while a sink is away, takes a third of this."""
AFTERMATH_MS = 500.0
MEMORY = Path("/dev/shm")
"""Checkpoints are written ten times as fast here as to a disk."""


class Found(NamedTuple):
    """A schedule that breaks a promise, and which."""

    seed: int
    violation: str


def open_simulation(seed: int, tuning: WorkerTuning, *, with_fallback: bool, deduplicate: bool) -> Simulation:
    return Simulation(
        hasty if with_fallback else patient,
        {"risk": MoodyModel()},
        seed=seed,
        tuning=tuning,
        allowed_lateness_ms=LATENESS_MS,
        max_ahead_ms=MAX_AHEAD_MS,
        deduplicate_ms=HORIZON_MS if deduplicate else None,
        idle_ms=IDLE_MS,
        folder=MEMORY if os.access(MEMORY, os.W_OK) else None,
    )


def open_schedule(schedule: Schedule) -> Simulation:
    return open_simulation(
        schedule.seed, schedule.tuning, with_fallback=schedule.hasty, deduplicate=schedule.deduplicate
    )


def play(simulation: Simulation, schedule: Schedule) -> None:
    """Raises ViolationError when something that is promised does not hold at the end."""
    if schedule.ready_first:
        simulation.wait_until_ready()
    for item, pause_ms in schedule.steps:
        simulation.take(item)
        simulation.run_for(pause_ms)
    finish(simulation)


def finish(simulation: Simulation) -> None:
    """Waits for the end of what has begun. Raises ViolationError when it is another than is promised."""
    try:
        simulation.drain(PATIENCE_MS)
    except StuckError as error:
        raise ViolationError(str(error)) from error
    simulation.run_for(AFTERMATH_MS)
    check(simulation)


def explore(seeds: Iterable[int]) -> Found | None:
    """The first of the schedules that breaks a promise, if one does."""
    for seed in seeds:
        schedule = draw_schedule(seed)
        with open_schedule(schedule) as simulation:
            try:
                play(simulation, schedule)
            except ViolationError as violation:
                return Found(seed, str(violation))
    return None

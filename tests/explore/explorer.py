"""The explorer: runs schedules and checks what they come to."""

import os
from pathlib import Path
from typing import NamedTuple

from app.testing.faults import Pause
from app.testing.simulation import Simulation, StuckError
from tests.explore.oracle import Violation, check
from tests.explore.pipelines import MoodyModel, hasty, patient
from tests.explore.schedules import LATENESS_MS, LONGEST_PAUSE_MS, MAX_AHEAD_MS, Schedule, draw_schedule

IDLE_MS = 100.0
MEMORY = Path("/dev/shm")
"""Checkpoints are written ten times as fast here as to a disk."""


class Found(NamedTuple):
    """A schedule that breaks a promise, and which."""

    seed: int
    violation: str


def run_schedule(schedule: Schedule) -> None:
    """Raises Violation when something that is promised does not hold at the end."""
    simulation = Simulation(
        hasty if schedule.hasty else patient,
        {"risk": MoodyModel()},
        seed=schedule.seed,
        tuning=schedule.tuning,
        allowed_lateness_ms=LATENESS_MS,
        max_ahead_ms=MAX_AHEAD_MS,
        idle_ms=IDLE_MS,
        folder=MEMORY if os.access(MEMORY, os.W_OK) else None,
    )
    with simulation:
        if schedule.ready_first:
            simulation.wait_until_ready()
        for item, pause_ms in schedule.steps:
            simulation.take(item)
            simulation.run_for(pause_ms)
        try:
            simulation.drain()
        except StuckError as error:
            raise Violation(str(error)) from error
        simulation.run_for(LONGEST_PAUSE_MS / 10)
        paused = any(isinstance(item, Pause) and item.worker == "action" for item, _ in schedule.steps)
        check(simulation, twice_published=paused)


def explore(first_seed: int, schedules: int) -> Found | None:
    """The first of so many schedules that breaks a promise, if one does."""
    for seed in range(first_seed, first_seed + schedules):
        try:
            run_schedule(draw_schedule(seed))
        except Violation as violation:
            return Found(seed, str(violation))
    return None

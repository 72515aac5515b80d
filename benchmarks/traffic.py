"""Simulated payments: drawn before anything is measured, sent as fast as can be or at a fixed rate, open loop.

A twentieth comes out of order; none is sent twice or broken, so that each id stands for one record.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.site import Site, start

SENDER = "traffic"
SEED = 7
DRAW_TIMEOUT_S = 300
PAYMENTS_PER_DAY = 9_000
"""A little fewer than a simulated day has."""


class Payments:
    """Files of payments, each of later days than the one before, so that ids stay unique and event time goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next_day = 0

    def draw(self, events: int) -> Path:
        file = self._folder / f"payments-from-day-{self._next_day}.jsonl"
        command = ["simulate", "--pipeline", "fraud", "--events", str(events), "--seed", str(SEED)]
        command += ["--start-day", str(self._next_day), "--disorder", "0.05", "--to-file", str(file)]
        subprocess.run([sys.executable, "-m", "app", *command], check=True, timeout=DRAW_TIMEOUT_S, capture_output=True)
        self._next_day += events // PAYMENTS_PER_DAY + 1
        return file


def send(site: Site, file: Path, topic: str, rate: float | None) -> None:
    """Sends a file, in a process of its own, and returns when the broker has it all."""
    command = [sys.executable, "-m", "app", "replay", "--file", str(file), "--topic", topic, "--json"]
    command += ["--bootstrap", site.bootstrap, "--rate", "max" if rate is None else f"{rate:g}"]
    site.apart[start(site.processes, SENDER, command)] = SENDER
    while (status := site.processes.exit_status(SENDER)) is None:
        if site.stopping.wait(0.1):
            raise KeyboardInterrupt
    if status:
        site.processes.check(SENDER)

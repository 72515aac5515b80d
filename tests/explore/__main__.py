"""`python -m tests.explore`: thousands of random fault schedules, each checked against the oracle."""

import argparse
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

from tests.explore.explorer import Found, explore, open_schedule, play
from tests.explore.oracle import ViolationError
from tests.explore.schedules import draw_schedule
from tests.explore.story import describe_schedule, tell

PORTION = 50
"""Schedules that a process is given at once: about two seconds of work."""


class Tally(NamedTuple):
    done: int
    found: list[Found]
    took_s: float

    def __str__(self) -> str:
        rate = self.done / self.took_s * 60
        return f"{self.done:,} schedules in {self.took_s:,.0f} s, {rate:,.0f} a minute, {len(self.found)} violations"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one; the others follow (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one and tell its whole story")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # what is logged of a simulated crash is no news
    if options.replay is not None:
        return replay(options.replay)
    tally = run(options.seed, options.schedules, options.jobs)
    if sys.stdout.isatty():
        print()
    for found in sorted(tally.found):
        print(f"seed {found.seed}: {found.violation}\n  python -m tests.explore --replay {found.seed}")
    return 1 if tally.found else 0


def run(first_seed: int, schedules: int, jobs: int) -> Tally:
    """Goes through all of them; of a portion in which one fails, the rest is left out."""
    started_s = time.monotonic()
    end = first_seed + schedules
    tally = Tally(0, [], 0.0)
    with ProcessPoolExecutor(jobs) as processes:
        portions = [range(start, min(start + PORTION, end)) for start in range(first_seed, end, PORTION)]
        running = {processes.submit(explore, portion): portion for portion in portions}
        for future in as_completed(running):
            found = future.result()
            violations = [*tally.found, found] if found else tally.found
            tally = Tally(tally.done + len(running[future]), violations, time.monotonic() - started_s)
            print(f"\r{tally}", end="" if sys.stdout.isatty() else "\n", flush=True)
    return tally


def replay(seed: int) -> int:
    schedule = draw_schedule(seed)
    print(*describe_schedule(schedule), sep="\n")
    with open_schedule(schedule) as simulation:
        try:
            play(simulation, schedule)
        except ViolationError as found:
            violation = str(found)
        else:
            violation = ""
        print(*tell(simulation), sep="\n")
    print(violation or "every promise holds")
    return 1 if violation else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

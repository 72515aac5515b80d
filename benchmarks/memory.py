"""Memory over time: `python -m benchmarks.memory [--minutes 10] [--rate 5000]`.

Runs the whole pipeline under a steady load and samples what each process alone holds (USS); says how much that grew a
minute over the second half of the run, when windows and buffers are full.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.meter import Memory, Meter, Sample
from benchmarks.site import Site, open_site
from benchmarks.systems import Headrace
from benchmarks.traffic import Payments, send

SOURCE, TARGET = "payments-memory", "memory"
FLAT_MIB_PER_MINUTE = 1.0
LINGER_MS = 1

Seen = tuple[float, dict[str, Memory]]


def measure_memory(site: Site, payments: Payments, rate: int, minutes: float) -> dict[str, Any]:
    file = payments.draw(round(rate * minutes * 60))
    system = Headrace(1, scores_all=False)
    site.make_topics(SOURCE, TARGET)
    system.start(site, SOURCE, TARGET, LINGER_MS)
    try:
        site.console.renew(f"{system.name}: {rate:,} events/s for {minutes:g} minutes …")
        with Meter(site.apart) as meter:
            send(site, file, SOURCE, rate)
            system.wait_until_done(site, SOURCE, TARGET)
    finally:
        system.stop(site)
    result = {"system": system.name, "rate": rate, "minutes": minutes, **growth(meter.samples)}
    site.console.say(
        f"{result['mib_begin']:.0f} MiB half-way, {result['mib_end']:.0f} MiB at the end: "
        f"{result['mib_per_minute']:+.2f} MiB a minute, {'flat' if result['flat'] else 'not flat'}"
    )
    return result


def growth(samples: list[Sample]) -> dict[str, Any]:
    """The slope over the second half, of all processes together and of each kind of process. MiB."""
    seen = [(each.time_s, each.memory) for each in samples if each.memory]
    late = [(time_s, memory) for time_s, memory in seen if time_s >= (seen[0][0] + seen[-1][0]) / 2]
    minutes = [(time_s - late[0][0]) / 60 for time_s, _ in late]
    total = [sum(each.uss for each in memory.values()) for _, memory in late]
    series: dict[str, list[float]] = defaultdict(list)
    for name in late[-1][1]:
        series[name] = [memory[name].uss for _, memory in late if name in memory]
    slopes = {name: round(slope(minutes, values), 3) for name, values in series.items() if len(values) == len(minutes)}
    most = max(slopes, key=lambda name: slopes[name])
    fitted = np.polyval(np.polyfit(minutes, total, 1), [minutes[0], minutes[-1]])
    per_minute = slope(minutes, total)
    return {
        "mib_begin": round(float(fitted[0]), 1),
        "mib_end": round(float(fitted[1]), 1),
        "mib_per_minute": round(per_minute, 3),
        "mib_per_minute_by_process": {
            name: value for name, value in sorted(slopes.items(), key=lambda item: -item[1]) if value
        },
        "flat": abs(per_minute) <= FLAT_MIB_PER_MINUTE,
        "mib_every_half_minute": {
            "all": every_half_minute(seen, lambda memory: sum(each.uss for each in memory.values())),
            most: every_half_minute(seen, lambda memory: memory[most].uss if most in memory else 0.0),
        },
    }


def every_half_minute(seen: list[Seen], mib_of: Callable[[dict[str, Memory]], float]) -> list[int]:
    """So that a staircase and a slope can be told apart."""
    begin_s = seen[0][0]
    return list({int((time_s - begin_s) // 30): round(mib_of(memory)) for time_s, memory in seen}.values())


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    with open_site("confluent-kafka") as site:
        result = measure_memory(site, Payments(site.data), options.rate, options.minutes)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Measures the whole fraud pipeline beside a hand-written loop that does the same job without Headrace.

Writes benchmarks/results/pipeline.json and the table in the README. Takes about half an hour, and wants a machine
that has nothing else to do.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

from app.errors import HeadraceError
from app.sources import ClientName
from benchmarks import report, results
from benchmarks.latency import Load, measure_latency
from benchmarks.memory import measure_memory
from benchmarks.site import Site, open_site
from benchmarks.systems import systems
from benchmarks.throughput import measure_throughput
from benchmarks.traffic import Payments


class Sizes(NamedTuple):
    """How much is measured. The lower rate takes longer: one payment in 250 is held, and a p99 of few means little."""

    quick: bool = False
    events: int = 4_000_000
    loads: tuple[Load, ...] = (Load(1_000, 20, 70), Load(5_000, 20, 40))
    memory_minutes: float = 10
    features_events: int = 2_000_000


QUICK = Sizes(True, 100_000, (Load(1_000, 5, 10),), memory_minutes=0.5, features_events=200_000)
Section = dict[str, Any]


def throughput(site: Site, sizes: Sizes) -> Section:
    folder = Payments(site.data)
    rows = measure_throughput(site, systems(sizes.quick), folder, sizes.events)
    return {"kafka": site.broker, "client": site.client, "events": sizes.events, "rows": rows}


def latency(site: Site, sizes: Sizes) -> Section:
    rows = measure_latency(site, systems(sizes.quick), Payments(site.data), list(sizes.loads))
    return {"kafka": site.broker, "client": site.client, "rows": rows}


def memory(site: Site, sizes: Sizes) -> Section:
    measured = measure_memory(site, Payments(site.data), 5_000, sizes.memory_minutes)
    return {"kafka": site.broker, "client": site.client, **measured}


def features(sizes: Sizes) -> Section:
    return {"rows": run_module("benchmarks.features", "--events", str(sizes.features_events))}


def broker(sizes: Sizes) -> Section:
    return dict(run_module("benchmarks.broker"))


def broker_steady(sizes: Sizes) -> Section:
    return dict(run_module("benchmarks.broker", "--minutes", f"{sizes.memory_minutes:g}"))


def run_module(module: str, *options: str) -> Any:
    """What a benchmark of a part alone writes with --json."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        subprocess.run([sys.executable, "-m", module, *options, "--json", str(file)], check=True, stdout=sys.stderr)
        return json.loads(file.read_text())


ON_A_SITE: Mapping[str, Callable[[Site, Sizes], Section]] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
}
ALONE: Mapping[str, Callable[[Sizes], Section]] = {
    "features": features,
    "broker": broker,
    "broker-steady": broker_steady,
}
WITHOUT_ONLY = ("throughput", "latency", "features", "broker")


def main() -> int:
    options = parse()
    sizes = QUICK if options.quick else Sizes()
    found = {} if options.quick else results.read()
    try:
        for name in options.only or WITHOUT_ONLY:
            circumstances = results.circumstances()
            section = measure(name, sizes, options.client)
            found[name] = {"circumstances": circumstances, **section}
            if not options.quick:
                results.write(found)
                report.replace_table(found)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(report.render(found))
    return 0


def measure(name: str, sizes: Sizes, client: ClientName) -> Section:
    if name in ALONE:
        return ALONE[name](sizes)
    with open_site(client) as site:
        return ON_A_SITE[name](site, sizes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, for trying: writes no file")
    parser.add_argument(
        "--only", action="append", choices=[*ON_A_SITE, *ALONE], help="this part; can be given several times"
    )
    parser.add_argument("--client", choices=get_args(ClientName), default="confluent-kafka", help="Headrace's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

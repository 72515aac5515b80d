"""Breaks the running fraud pipeline in every way that is known to happen, and counts what that did.

The whole application runs on real processes, under a steady load with duplicates, disorder, broken and poison
records. A row for each fault; the counts have to be 0. Writes benchmarks/results/chaos.json and prints the table; ends
with status 1 unless every row is sound. All faults once take about 25 minutes.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from app.errors import HeadraceError
from benchmarks import report, results
from benchmarks.chaos.faults import FAULTS, SETTINGS, Setting
from benchmarks.chaos.matrix import Load, open_matrix
from benchmarks.chaos.verdict import Row
from benchmarks.site import broker_name, kafka_command, open_site

FILE = results.FILE.with_name("chaos.json")


def main() -> int:
    options = parse()
    try:
        rows = run(options)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if all(row.sound for row in rows) else 1


def run(options: argparse.Namespace) -> list[Row]:
    """Writes and prints the rows that there are, also when it is interrupted."""
    rows: dict[str, Row] = {}
    at = results.circumstances()
    try:
        for setting in SETTINGS:
            faults = [name for name in setting.faults if name in (options.fault or FAULTS)]
            if faults and not options.fault and setting.brokers > 1 and not kafka_command():
                print(f"{', '.join(faults)}: left out; a cluster needs Apache Kafka: set KAFKA_CMD", file=sys.stderr)
            elif faults:
                run_in(setting, faults, options, rows)
    finally:
        write(options.json, rows.values())
        print(render(rows.values()))
        print(f"{at['machine']}; {options.rate:g} payments/s on {broker_name()}, {at['date']}, commit {at['commit']}")
    return list(rows.values())


def run_in(setting: Setting, faults: Sequence[str], options: argparse.Namespace, rows: dict[str, Row]) -> None:
    """Adds the rows of one setting's faults."""
    load = Load(rate=options.rate)
    with (
        open_site("confluent-kafka", setting.brokers) as site,
        open_matrix(site, setting.nodes, load, options.seed) as matrix,
    ):
        for fault in schedule(faults, options.minutes if setting is SETTINGS[0] else 0, options.seed):
            row = matrix.run(fault)
            rows[fault] = rows[fault].merge(row) if fault in rows else row


def schedule(faults: Sequence[str], minutes: float, seed: int) -> Iterator[str]:
    """Each fault once, in order; then, until the minutes are over, all of them again and again in a random order."""
    end_s = time.monotonic() + minutes * 60
    draw = random.Random(seed)
    yield from faults
    while time.monotonic() < end_s:
        for fault in draw.sample(faults, len(faults)):
            if time.monotonic() < end_s:
                yield fault


def write(file: Path, rows: Iterable[Row]) -> None:
    """Puts the rows in the place of earlier ones of the same faults; the others stay."""
    found = json.loads(file.read_text()) if file.exists() else []
    by_fault = {row["fault"]: row for row in [*found, *map(asdict, rows)]}
    ordered = [by_fault[fault] for fault in FAULTS if fault in by_fault]
    file.write_text(json.dumps(ordered, indent=2) + "\n")


def render(rows: Iterable[Row]) -> str:
    head, *heads = [field.name for field in fields(Row)]
    cells = [["–" if value is None else str(value) for value in asdict(row).values()] for row in rows]
    return report.table(head, heads, cells)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    these = f"this one; can be given several times: {', '.join(FAULTS)}"
    parser.add_argument("--fault", action="append", choices=list(FAULTS), metavar="NAME", help=these)
    parser.add_argument("--minutes", type=float, default=0, help="go on with all of them for so long (default: once)")
    parser.add_argument("--rate", type=float, default=Load().rate, help="payments a second (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the payments and of the order (default: 1)")
    parser.add_argument("--json", type=Path, default=FILE, help="write the rows here (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

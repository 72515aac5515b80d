"""The README's tables, made of the results."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
PLACE = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)
Results = Mapping[str, Any]


def replace_table(results: Results, file: Path = README) -> None:
    """Writes the tables between the two marks. Raises ValueError when the marks are not there."""
    text, found = PLACE.subn(lambda marks: f"{marks[1]}{render(results)}{marks[2]}", file.read_text())
    if found != 1:
        raise ValueError(f"{file} has the marks <!-- bench --> and <!-- /bench --> {found} times; it needs them once")
    file.write_text(text)


def render(results: Results) -> str:
    """Markdown: a table per section that there are results of, and below it where these were taken."""
    sections = [SECTIONS[name](results[name]) + "\n" + footnote(results[name]) for name in SECTIONS if name in results]
    return "\n".join(sections)


def throughput(section: Results) -> str:
    rows = section["rows"]
    reference = rows[0]["events_per_s"]
    return table(
        f"{section['events']:,} payments on a topic",
        ["events/s", "of the loop's", "CPU s per million", "of the broker", "peak memory"],
        (
            [
                row["system"],
                f"{row['events_per_s']:,}",
                f"{row['events_per_s'] / reference:.2f}",
                f"{row['cpu_s_per_million']:.1f}",
                f"{row['broker_cpu_s_per_million']:.1f}",
                f"{row['peak_mib']:,} MiB",
            ]
            for row in rows
        ),
    )


def latency(section: Results) -> str:
    rates = sorted({row["rate"] for row in section["rows"]})
    systems = dict.fromkeys(row["system"] for row in section["rows"])
    by_place = {(row["system"], row["rate"]): row for row in section["rows"]}
    heads = [head for rate in rates for head in (f"{rate:,}/s: p50 / p95 / p99 ms", "CPU s per million")]
    return table(
        "From append to action",
        [*heads, "peak memory"],
        (
            [
                system,
                *(cell for rate in rates for cell in latency_cells(by_place[system, rate])),
                f"{max(by_place[system, rate]['peak_mib'] for rate in rates):,} MiB",
            ]
            for system in systems
        ),
    )


def latency_cells(row: Results) -> tuple[str, str]:
    return f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f} / {row['p99_ms']:.0f}", f"{row['cpu_s_per_million']:.0f}"


def memory(section: Results) -> str:
    return table(
        f"{section['minutes']:g} minutes at {section['rate']:,} events/s",
        ["half-way", "at the end", "growth a minute"],
        [
            [
                section["system"],
                f"{section['mib_begin']:,.0f} MiB",
                f"{section['mib_end']:,.0f} MiB",
                f"{section['mib_per_minute']:+.2f} MiB",
            ]
        ],
    )


def features(section: Results) -> str:
    return table(
        "Keyed features, one core",
        ["updates/s", "features/s", "longest batch", "state"],
        (
            [
                f"{row['keys']:,} keys",
                f"{row['updates_per_s']:,}",
                f"{row['features_per_s']:,}",
                f"{row['longest_batch_ms']:.0f} ms",
                f"{row['state_mb']:,.0f} MB",
            ]
            for row in section["rows"]
        ),
    )


def broker(section: Results) -> str:
    rates, wake_up = section["throughput"], section["wake_up"]
    return table(
        "The development broker, 200-byte records",
        ["produced/s", "consumed/s", "a waiting fetch wakes, p50 / p99"],
        [
            [
                "confluent-kafka",
                f"{rates['produced_per_s']:,}",
                f"{rates['consumed_per_s']:,}",
                f"{wake_up['p50_ms']:.1f} / {wake_up['p99_ms']:.1f} ms",
            ]
        ],
    )


def broker_steady(section: Results) -> str:
    samples = section["steady"]
    first, last = samples[1], samples[-1]  # retention removes its first segment after half a minute
    cores = (last["cpu_s"] - first["cpu_s"]) / (last["at_s"] - first["at_s"])
    return table(
        f"The development broker at 5,000 records/s with retention on, {cores:.2f} cores",
        ["send to consume, p50 / p99", "memory"],
        (
            [
                f"half a minute up to {each['at_s'] / 60:.1f} min",
                f"{each['p50_ms']:.1f} / {each['p99_ms']:.1f} ms",
                f"{each['rss_mib']:.0f} MiB",
            ]
            for each in (first, samples[len(samples) // 2], last)
        ),
    )


SECTIONS = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "features": features,
    "broker": broker,
    "broker-steady": broker_steady,
}


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [[title, *heads], ["---", *["--:"] * len(heads)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def footnote(section: Results) -> str:
    at = section["circumstances"]
    kafka = f" on {section['kafka']}, Headrace with {section['client']}," if "kafka" in section else ""
    return f"\n<sub>{at['machine']};{kafka} {at['date']}, commit {at['commit']}</sub>\n"

"""Latency at fixed rates, open loop: from the broker's append of a payment to its append of what came of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import HeadraceError
from benchmarks.meter import Meter
from benchmarks.outputs import PERCENTILES, appended, latencies, percentiles
from benchmarks.site import Site
from benchmarks.systems import Loop, System
from benchmarks.throughput import disturbance, usage
from benchmarks.traffic import Payments, send

LINGER_MS = 1
MEMORY_INTERVAL_S = 30.0
"""A look at 25 processes' memory takes a core for a quarter of a second: every 5 s that alone was the p99."""


WARM_UP_RATE, WARM_UP_S = 20_000, 40


class Load(NamedTuple):
    """`rate` payments a second for warm_up_s + measured_s seconds."""

    rate: int
    warm_up_s: float
    measured_s: float

    @property
    def events(self) -> int:
        return round(self.rate * (self.warm_up_s + self.measured_s))


def measure_latency(site: Site, systems: list[System], payments: Payments, loads: list[Load]) -> list[dict[str, Any]]:
    warm_up_broker(site, payments)
    files = {load: payments.draw(load.events) for load in loads}
    rows: list[dict[str, Any]] = []
    for number, system in enumerate(systems):
        source, target = f"payments-live-{number}", f"latency-{number}"
        site.make_topics(source, target)
        system.start(site, source, target, LINGER_MS)
        try:
            for load, file in files.items():
                rows.append(measure_load(site, system, load, file, source, target))
        finally:
            system.stop(site)
    return rows


def warm_up_broker(site: Site, payments: Payments) -> None:
    """A Kafka that was just started compiles itself, for which it took a fifth of a core over the first minutes."""
    source, target, loop = "warm-up", "warm-up-scores", Loop()
    file = payments.draw(WARM_UP_RATE * WARM_UP_S)
    site.make_topics(source, target)
    site.console.renew("warming up the broker …")
    loop.start(site, source, target, LINGER_MS)
    try:
        send(site, file, source, WARM_UP_RATE)
    finally:
        loop.stop(site)


def measure_load(site: Site, system: System, load: Load, file: Path, source: str, target: str) -> dict[str, Any]:
    begin, target_begin = site.end_offsets(source), site.end_offsets(target)
    site.console.renew(f"{system.name}: {load.rate:,} events/s for {load.warm_up_s + load.measured_s:.0f} s …")
    with Meter(site.apart, MEMORY_INTERVAL_S) as meter:
        send(site, file, source, load.rate)
        stages = system.status().get("stages", {})
        system.wait_until_done(site, source, target)
    sources, targets = appended(site.kafka, source, begin), appended(site.kafka, target, target_begin)
    if system.scores_all and len(targets) != len(sources):
        raise HeadraceError(f"{system.name} left {len(targets)} scores of {len(sources)} payments")
    latencies_ms = latencies(sources, targets, load.warm_up_s)
    end_s = max(time_ms for _, time_ms in sources) / 1000
    row = {
        "system": system.name,
        "rate": load.rate,
        **percentiles(latencies_ms),
        "samples": len(latencies_ms),
        **usage(meter, end_s - load.measured_s, end_s, load.rate * load.measured_s),
        "stages": {name: summarize(stage) for name, stage in stages.items()},
    }
    p50, p95, p99 = (row[f"p{each}_ms"] for each in PERCENTILES)
    site.console.say(
        f"{system.name} at {load.rate:,}/s: p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms{disturbance(row)}"
    )
    return row


def summarize(stage: Mapping[str, Any]) -> dict[str, float]:
    """The last minute of one of Headrace's own stages."""
    spread = stage["last_minute"]
    return {name: round(spread[name], 1) for name in ("p50_ms", "p95_ms", "p99_ms") if spread[name] is not None}

"""Throughput: a system drains a topic that was filled before it started."""

from typing import Any

from app.errors import HeadraceError
from benchmarks.meter import Meter
from benchmarks.outputs import append_times, middle
from benchmarks.site import Site
from benchmarks.systems import System
from benchmarks.traffic import Payments, send

SOURCE = "payments-preloaded"
TRIM = 0.2
"""The share at the beginning and the end of a drain that does not count: starts, ends, partitions out of step."""
LINGER_MS = 5


def measure_throughput(site: Site, systems: list[System], payments: Payments, events: int) -> list[dict[str, Any]]:
    site.console.say(f"Throughput: {events:,} payments on a topic.")
    site.make_topics(SOURCE)
    send(site, payments.draw(events), SOURCE, rate=None)
    return [measure_drain(site, number, system, events) for number, system in enumerate(systems)]


def measure_drain(site: Site, number: int, system: System, events: int) -> dict[str, Any]:
    target = f"throughput-{number}"
    site.make_topics(target)
    with Meter(site.apart) as meter, Meter(root=site.broker_pid) as broker:
        system.start(site, SOURCE, target, LINGER_MS)
        try:
            system.wait_until_done(site, SOURCE, target)
        finally:
            system.stop(site)
    times_ms = append_times(site.kafka, target)
    if system.scores_all and len(times_ms) != events:
        raise HeadraceError(f"{system.name} left {len(times_ms)} scores of {events} payments")
    begin_s, end_s = middle(times_ms, TRIM)
    measured = (1 - 2 * TRIM) * events
    cpu_s, broker_s = meter.cpu_s(begin_s, end_s), broker.cpu_s(begin_s, end_s)
    row = {
        "system": system.name,
        "events_per_s": round(measured / (end_s - begin_s)),
        "seconds": round(end_s - begin_s, 2),
        "peak_mib": round(meter.peak_mib()),
        **per_million(cpu_s, broker_s, measured),
    }
    site.console.say(f"{system.name}: {row['events_per_s']:,} events/s")
    return row


def per_million(cpu_s: dict[str, float], broker_s: dict[str, float], events: float) -> dict[str, Any]:
    """CPU seconds for a million events, the broker's beside, and which processes they went to."""
    shares = {name: round(seconds * 1e6 / events, 2) for name, seconds in cpu_s.items()}
    return {
        "cpu_s_per_million": round(sum(shares.values()), 2),
        "broker_cpu_s_per_million": round(sum(broker_s.values()) * 1e6 / events, 2),
        "cpu_s_per_million_by_process": {name: share for name, share in shares.items() if share >= 0.05},
    }

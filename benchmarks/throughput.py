"""Throughput: a system drains a topic that was filled before it started."""

from collections.abc import Mapping
from typing import Any

from app.errors import HeadraceError
from app.operate.stack import BROKER
from benchmarks.meter import Meter
from benchmarks.outputs import append_times, between
from benchmarks.site import Site
from benchmarks.systems import System
from benchmarks.traffic import Payments, send

SOURCE = "payments-preloaded"
COUNTED = (0.4, 0.9)
"""What part of a drain counts. At its beginning the other replicas are still starting, on the same cores: 12 s with two
workers, in which they get through 700,000 payments; at its end the partitions are out of step."""
LINGER_MS = 5
DISTURBED_CORES = 0.15


def measure_throughput(site: Site, systems: list[System], payments: Payments, events: int) -> list[dict[str, Any]]:
    site.console.say(f"Throughput: {events:,} payments on a topic.")
    site.make_topics(SOURCE)
    send(site, payments.draw(events), SOURCE, rate=None)
    return [measure_drain(site, number, system, events) for number, system in enumerate(systems)]


def measure_drain(site: Site, number: int, system: System, events: int) -> dict[str, Any]:
    target = f"throughput-{number}"
    site.make_topics(target)
    with Meter(site.apart) as meter:
        system.start(site, SOURCE, target, LINGER_MS)
        try:
            system.wait_until_done(site, SOURCE, target)
        finally:
            system.stop(site)
    times_ms = append_times(site.kafka, target)
    if system.scores_all and len(times_ms) != events:
        raise HeadraceError(f"{system.name} left {len(times_ms)} scores of {events} payments")
    begin_s, end_s = between(times_ms, *COUNTED)
    measured = (COUNTED[1] - COUNTED[0]) * events
    row = {
        "system": system.name,
        "events_per_s": round(measured / (end_s - begin_s)),
        "seconds": round(end_s - begin_s, 2),
        **usage(meter, begin_s, end_s, measured),
    }
    site.console.say(f"{system.name}: {row['events_per_s']:,} events/s{disturbance(row)}")
    return row


def usage(meter: Meter, begin_s: float, end_s: float, events: float) -> dict[str, Any]:
    """What it took to bring the events through between two times: CPU seconds for a million of them, the broker's
    beside; the most memory at any time; and whether somebody else was using the machine."""
    shares = {name: round(cpu_s * 1e6 / events, 2) for name, cpu_s in meter.cpu_s(begin_s, end_s).items()}
    broker_s = sum(meter.cpu_s(begin_s, end_s, BROKER).values())
    return {
        "cpu_s_per_million": round(sum(shares.values()), 2),
        "broker_cpu_s_per_million": round(broker_s * 1e6 / events, 2),
        "cpu_s_per_million_by_process": {name: share for name, share in shares.items() if share >= 0.05},
        "peak_mib": round(meter.peak_mib()),
        "foreign_cores": round(meter.foreign_cores(begin_s, end_s), 2),
    }


def disturbance(row: Mapping[str, Any]) -> str:
    """A warning, when other processes took part of the machine."""
    foreign = row["foreign_cores"]
    return f" (but others kept {foreign:.1f} cores busy: measure again)" if foreign > DISTURBED_CORES else ""

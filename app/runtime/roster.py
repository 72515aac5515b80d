"""The roster: who is there, who has what, and how far they are. Pure: the time is an argument.

It keeps no truth: everything in it comes from heartbeats, and after a restart it is known again in a second. Two
workers on one partition are wasteful, not wrong: the decision log decides.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from app.breaker import BreakerState
from app.latency import AlertChange, Budgets, LatencyBoard, StageCounts
from app.log.frame import FALLBACKS
from app.runtime.assignment import assign

SILENCE_MS = 3_000
"""A worker unheard of for so long loses its partitions; its replacement by Serve takes 5.7 s (kill -9, measured)."""
SETTLE_MS = 1_500
"""After its start a roster listens for so long before it gives out what nobody has: others may still have it. Longer
than a worker is silent whose heartbeat got no answer: 1 s until it gives that one up, and 250 ms until the next."""
RATE_WINDOW_MS = 5_000
REMEMBERED = 1_000
"""Workers whose totals are remembered after they fell silent: one that was only frozen must not count twice."""
Kind = Literal["stream", "action"]
COUNTS: tuple[str, ...] = (
    "events",
    "decisions",
    "dead_letters",
    "actions",
    "duplicates",
    "late",
    "overdue",
    "fallbacks",
    *(f"fallback_{cause}" for cause in FALLBACKS),
)


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker says of itself a few times a second.

    `units` are all there are to share out among the workers of its kind: partitions, or "sink/partition" pairs;
    `held` are those that it has its hands on. `standing` has one entry per unit held and ready; `totals` count over the
    worker's life, `latency` since its last heartbeat that was heard. `breakers` has the state of each model's; `error`
    says why the worker does not hold what it was given.
    """

    worker: str
    kind: Kind
    units: list[str]
    held: list[str]
    standing: list[dict[str, Any]]
    totals: dict[str, int]
    latency: StageCounts
    busy: float
    breakers: dict[str, BreakerState] = {}
    leaving: bool = False
    error: str | None = None


@dataclass
class Member:
    """A worker as last heard of. It `owns` what it was given and may have taken up since, until it has let go of it;
    what it only holds, it may hold from before it fell silent."""

    heartbeat: Heartbeat
    heard_ms: int
    owns: list[str] = field(default_factory=list)


@dataclass
class Rate:
    """How fast a count grows, over the last 5 s; 0 when nothing was observed in them."""

    _seen: deque[tuple[int, int]] = field(default_factory=deque)

    def observe(self, now_ms: int, count: int) -> None:
        self._seen.append((now_ms, count))
        while len(self._seen) > 2 and self._seen[0][0] < now_ms - RATE_WINDOW_MS:
            self._seen.popleft()

    def per_s(self, now_ms: int) -> float:
        (start_ms, low), (end_ms, high) = self._seen[0], self._seen[-1]
        if end_ms < now_ms - RATE_WINDOW_MS:
            return 0.0
        return max(0.0, round((high - low) * 1000 / (end_ms - start_ms), 1)) if end_ms > start_ms else 0.0


class Roster:
    """Hears heartbeats and answers each with what that worker is to work on."""

    def __init__(self, pipeline: str, budgets: Budgets) -> None:
        self._pipeline = pipeline
        self._board = LatencyBoard(budgets)
        self._members: dict[str, Member] = {}
        self._plan: dict[Kind, dict[str, str]] = {"stream": {}, "action": {}}
        self._units: dict[Kind, list[str]] = {"stream": [], "action": []}
        self._totals = dict.fromkeys(COUNTS, 0)
        self._counted: dict[str, Mapping[str, int]] = {}
        self._grown = dict.fromkeys(COUNTS, 0)
        self._rates: dict[str, Rate] = {}
        self._started_ms: int | None = None

    def hear(self, heartbeat: Heartbeat, now_ms: int) -> list[str]:
        """Takes note and returns the worker's units: its share, less what another living worker still holds."""
        if self._started_ms is None:
            self._started_ms = now_ms
        self._count(heartbeat, now_ms)
        self._forget_silent(now_ms)
        before = self._members.pop(heartbeat.worker, None)
        if not heartbeat.leaving:
            owns = [unit for unit in before.owns if unit in heartbeat.held] if before else []
            self._members[heartbeat.worker] = Member(heartbeat, now_ms, owns)
        kind = heartbeat.kind
        self._note_units(kind)
        settled = now_ms - self._started_ms >= SETTLE_MS
        holders = self._holders(kind)
        units = self._units[kind] if settled else [unit for unit in self._units[kind] if unit in holders]
        self._plan[kind] = assign(units, self._workers(kind), holders | self._plan[kind])
        mine = [unit for unit, worker in self._plan[kind].items() if worker == heartbeat.worker]
        given = [unit for unit in mine if holders.get(unit, heartbeat.worker) == heartbeat.worker]
        if not heartbeat.leaving:
            owns = self._members[heartbeat.worker].owns
            owns += [unit for unit in given if unit not in owns]
        return given

    def check_budgets(self, now_ms: int) -> list[AlertChange]:
        """The alerts that began or ended since the last check; call it once a second."""
        return self._board.check(now_ms)

    def status(self, now_ms: int) -> dict[str, Any]:
        """One document for the page, the command line and the metrics."""
        self._forget_silent(now_ms)
        partitions = self._rows("stream", now_ms)
        unowned = set(map(int, self._units["stream"])) - {row["partition"] for row in partitions}
        sinks = self._rows("action", now_ms)
        carried = {f"{row['sink']}/{row['partition']}" for row in sinks}
        return {
            "pipeline": self._pipeline,
            "time_ms": now_ms,
            "ready": bool(self._units["stream"])
            and not unowned
            and bool(self._workers("action"))
            and carried == set(self._units["action"]),
            "partitions": sorted([*partitions, *map(_unowned, unowned)], key=lambda row: row["partition"]),
            "workers": [_worker(member, now_ms) for _, member in sorted(self._members.items())],
            "throughput": {
                "events_per_s": self._rate("events", now_ms),
                "decisions_per_s": self._rate("decisions", now_ms),
            },
            "totals": dict(self._totals),
            "stages": self._board.summary(now_ms),
            "breakers": [
                {"model": model, "worker": name, "state": state}
                for name, member in sorted(self._members.items())
                for model, state in member.heartbeat.breakers.items()
            ],
            "sinks": sinks,
            "alerts": self._board.alerts(),
            "histograms": self._board.histograms(),
        }

    def _workers(self, kind: Kind) -> list[str]:
        return [name for name, member in self._members.items() if member.heartbeat.kind == kind]

    def _note_units(self, kind: Kind) -> None:
        """Partitions are added and never taken away, and one worker sees it before the other: the most are all."""
        seen = (member.heartbeat.units for member in self._members.values() if member.heartbeat.kind == kind)
        self._units[kind] = max(seen, key=len, default=self._units[kind])

    def _holders(self, kind: Kind) -> dict[str, str]:
        """Who has each unit: of several the one that owns it."""
        members = [(name, member) for name, member in self._members.items() if member.heartbeat.kind == kind]
        held = {unit: name for name, member in members for unit in member.heartbeat.held}
        return held | {unit: name for name, member in members for unit in member.owns}

    def _forget_silent(self, now_ms: int) -> None:
        for name, member in list(self._members.items()):
            if now_ms - member.heard_ms > SILENCE_MS:
                del self._members[name]

    def _count(self, heartbeat: Heartbeat, now_ms: int) -> None:
        self._board.add(now_ms, heartbeat.latency)
        before = self._counted.pop(heartbeat.worker, None)
        for name, count in heartbeat.totals.items():
            self._totals[name] += count - (before or {}).get(name, 0)
            # What a worker did before it was heard for the first time is no growth: this roster may be the new one.
            self._grown[name] += count - (before or heartbeat.totals).get(name, 0)
        self._counted[heartbeat.worker] = heartbeat.totals
        if len(self._counted) > REMEMBERED:
            del self._counted[next(iter(self._counted))]
        if heartbeat.kind == "stream":
            for name in ("events", "decisions"):
                self._rates.setdefault(name, Rate()).observe(now_ms, self._grown[name])
            for row in heartbeat.standing:
                self._rates.setdefault(f"partition/{row['partition']}", Rate()).observe(now_ms, row["offset"])

    def _rate(self, name: str, now_ms: int) -> float:
        return self._rates[name].per_s(now_ms) if name in self._rates else 0.0

    def _rows(self, kind: Kind, now_ms: int) -> list[dict[str, Any]]:
        rows = [
            {**row, "worker": name}
            for name, member in self._members.items()
            if member.heartbeat.kind == kind
            for row in member.heartbeat.standing
        ]
        if kind == "stream":
            rows = [{**row, "events_per_s": self._rate(f"partition/{row['partition']}", now_ms)} for row in rows]
        return sorted(rows, key=lambda row: (row.get("sink", ""), row["partition"]))


def _unowned(partition: int) -> dict[str, Any]:
    numbers = ("offset", "end_offset", "lag", "watermark_ms", "keys", "state_bytes", "events_per_s")
    checkpoint = ("checkpoint_age_ms", "checkpoint_bytes", "checkpoint_error")
    return {"partition": partition, "worker": None, **dict.fromkeys(numbers + checkpoint)}


def _worker(member: Member, now_ms: int) -> dict[str, Any]:
    heartbeat = member.heartbeat
    return {
        "id": heartbeat.worker,
        "kind": heartbeat.kind,
        "heartbeat_age_ms": now_ms - member.heard_ms,
        "busy": round(heartbeat.busy, 3),
        "partitions": heartbeat.held,
        "error": heartbeat.error,
    }

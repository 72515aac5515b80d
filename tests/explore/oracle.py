"""What a simulation has to come to, told from its source topic alone, without any of the product's own bookkeeping."""

import json
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from app.features import Features
from app.log.frame import REASONS, decode_frame, decode_header
from app.sources import TopicPartition
from app.testing.kafka import Stored
from app.testing.simulation import SOURCE, Simulation
from tests.explore.pipelines import UNLUCKY, History
from tests.explore.schedules import LATENESS_MS, MAX_AHEAD_MS
from tests.unit.features.oracle import features_of

COPIES = ("dead-letters", "late")
WEBHOOK = "cases"
"""It is called at least once, and keeps deliveries apart by their key."""
FIELDS = {"id": str, "time": int, "card": str, "amount": (int, float)}


class ViolationError(AssertionError):
    """Something that is promised does not hold."""


class Verdict(NamedTuple):
    """What the decision log says first of an offset: `actions` and `features` of a decision, or None."""

    reason: str
    row: dict[str, Any] | None


def check(simulation: Simulation) -> None:
    """Raises ViolationError."""
    expected: dict[str, dict[int, list[tuple[str, dict[str, Any]]]]] = defaultdict(lambda: defaultdict(list))
    for partition in range(simulation.partitions):
        source = simulation.kafka.logs[TopicPartition(SOURCE, partition)]
        events, duplicates = _valid_events(source, simulation.shared.settings.deduplicate_ms is not None)
        verdicts = _first_copies(simulation, partition)
        wanted = [offset for offset in range(len(source)) if offset not in duplicates]
        require(sorted(verdicts) == wanted, f"{partition}: decided are {sorted(verdicts)}, not {wanted}")
        features = _features(events)
        for offset, verdict in sorted(verdicts.items()):
            where = f"{partition}/{offset}"
            _check_verdict(where, events.get(offset), verdict, features.get(offset))
            _expect(expected, partition, offset, verdict)
    _check_effects(simulation, expected)
    for process in simulation.deaths:
        require(process.error is None, f"{process.name} died of {process.error!r}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ViolationError(otherwise)


def _valid_events(source: list[Stored], deduplicate: bool) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """The records that are events, and neither late nor duplicates, by offset; and the offsets of the duplicates."""
    found: dict[int, dict[str, Any]] = {}
    duplicates: set[int] = set()
    ids: set[str] = set()
    highest_ms = 0
    for offset, stored in enumerate(source):
        event = _parse(stored)
        if event is None:
            continue
        highest_ms = max(highest_ms, event["time"])
        if deduplicate and event["id"] in ids:
            duplicates.add(offset)
        elif event["time"] >= highest_ms - LATENESS_MS:
            ids.add(event["id"])
            found[offset] = {**event, "watermark_ms": highest_ms - LATENESS_MS}
    return found, duplicates


def _parse(stored: Stored) -> dict[str, Any] | None:
    try:
        event = json.loads(stored.value or b"")
    except ValueError:
        return None
    if not isinstance(event, dict) or not all(isinstance(event.get(name), kind) for name, kind in FIELDS.items()):
        return None
    if event["card"].encode() != stored.key or event["time"] > stored.append_ms + MAX_AHEAD_MS:
        return None
    return event  # type: ignore[no-any-return]


def _first_copies(simulation: Simulation, partition: int) -> dict[int, Verdict]:
    verdicts: dict[int, Verdict] = {}
    covered = -1
    for stored in simulation.kafka.logs[TopicPartition(simulation.decisions, partition)]:
        header = decode_header(list(stored.headers))
        require(header.first <= covered + 1, f"{partition}: a gap in the log before {header.first}")
        covered = max(covered, header.last)
        frame = decode_frame(header, stored.value or b"")
        decided = frame.decided
        for row, offset in enumerate(decided.offsets.tolist()):
            columns = decided.event | decided.features | decided.scores
            values = {name: column[row] for name, column in columns.items()}
            actions = json.loads(decided.actions[row] or b"[]")
            verdicts.setdefault(offset, Verdict(REASONS[decided.reasons[row]], {**values, "actions": actions}))
        for letter in frame.rejected:
            verdicts.setdefault(letter.offset, Verdict(letter.reason, None))
    return verdicts


def _features(events: dict[int, dict[str, Any]], declared: type[Features] = History) -> dict[int, dict[str, float]]:
    rows = list(events.values())
    columns = {
        name: np.array([row[name] for row in rows], object if kind is str else None) for name, kind in FIELDS.items()
    }
    watermarks = np.array([row["watermark_ms"] for row in rows])
    answers = features_of(declared, columns, watermarks)
    return {offset: {name: by[at].value for name, by in answers.items()} for at, offset in enumerate(events)}


def _check_verdict(
    where: str, event: dict[str, Any] | None, verdict: Verdict, features: dict[str, float] | None
) -> None:
    if event is None or features is None:
        require(verdict.row is None, f"{where} is no event, but was decided")
        return
    if verdict.row is None:
        unlucky = event["amount"] == UNLUCKY and "unlucky" in verdict.reason
        require(unlucky, f"{where} was rejected: {verdict.reason}")
        return
    row = verdict.row
    for name, value in features.items():
        require(abs(row[name] - value) < 1e-9, f"{where}: {name} is {row[name]}, not {value}")
    fallback = verdict.reason.startswith("fallback-")
    require(verdict.reason == "model" or fallback, f"{where} was decided by {verdict.reason}")
    actions = _actions(event, row) if verdict.reason == "model" else [_hold(event, -1.0)]
    require(row["actions"] == actions, f"{where}: actions are {row['actions']}, not {actions}")


def _actions(event: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    actions = [_hold(event, float(row["risk"]))] if row["risk"] > 2 else []
    if event["amount"] > 3:
        actions.append({"type": "Alert", "card": event["card"], "spent": row["spent"]})
    return actions


def _hold(event: dict[str, Any], risk: float) -> dict[str, Any]:
    return {"type": "Hold", "payment": event["id"], "risk": risk}


def _expect(expected: Any, partition: int, offset: int, verdict: Verdict) -> None:
    """What each sink has to have carried out because of this verdict."""
    if verdict.row is None:
        sink = "late" if verdict.reason.startswith("late") else "dead-letters"
        expected[sink][partition].append((f"test/{partition}/{offset}/rejected", {}))
        return
    for index, action in enumerate(verdict.row["actions"]):
        delivery = (f"test/{partition}/{offset}/{index}", action)
        for sink in ("holds", "held") if action["type"] == "Hold" else ("cases",):
            expected[sink][partition].append(delivery)


def _check_effects(simulation: Simulation, expected: Any) -> None:
    for sink in simulation.shared.sinks.names:
        carried_out: dict[int, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for effect in simulation.receivers.effects[sink]:
            fields = {} if sink in COPIES else {"type": "Hold", **effect.fields}
            carried_out[effect.partition].append((effect.key, fields))
        for partition in range(simulation.partitions):
            wanted, found = expected[sink][partition], carried_out[partition]
            require(found == wanted, f"{sink}, {partition}: carried out were {found}, not {wanted}")
        repeats = simulation.receivers.repeats[sink]
        require(sink == WEBHOOK or not repeats, f"{sink}: {repeats} effects were repeated")

"""What a fault did: what was found, compared with what had to be there. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.chaos.oracle import Expected

TOLERANCE = 1e-9
SHOWN = 5
COUNTS = ("lost", "decided_twice", "effects_lost", "effects_twice", "features_wrong")
Place = tuple[int, int]
"""A partition of the source, and an offset."""


class Outcome(NamedTuple):
    """What the decision log says of one source record, as each of its readers sees it: `decided`, or a dead letter."""

    partition: int
    offset: int
    logged_ms: int
    decided: bool
    id: str | None = None
    features: tuple[float, ...] = ()
    holds: int = 0


class Effects(NamedTuple):
    """What a sink holds, by idempotency key: how many effects, and which the sink gave to the dead letters instead.

    `of_rejects`: the sink is the one for rejected records, not one for holds.
    """

    done: Mapping[str, int]
    refused: frozenset[str] = frozenset()
    of_rejects: bool = False


@dataclass(frozen=True)
class Row:
    """One fault. The five counts have to be 0.

    `lost`: records without a decision or a dead letter, payments in the dead letters that are none of poison.
    `decided_twice`: records with more than one outcome. `effects_lost`, `effects_twice`: over all sinks.
    `features_wrong`: decisions whose features are others than the oracle's, or that decide what is no payment.
    `first_decision_s`: from the fault until every partition had decided a record that was appended after it; None
    where one never did. `max_latency_ms`: the longest way of a record from its append to its decision's.
    """

    fault: str
    lost: int
    decided_twice: int
    effects_lost: int
    effects_twice: int
    features_wrong: int
    first_decision_s: float | None
    max_latency_ms: int

    @property
    def sound(self) -> bool:
        return not any(getattr(self, name) for name in COUNTS) and self.first_decision_s is not None

    def merge(self, other: "Row") -> "Row":
        """The same fault, seen again: the counts of both together, the worse time."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        firsts = (self.first_decision_s, other.first_decision_s)
        first = None if None in firsts else max(filter(None, firsts), default=0.0)
        latency = max(self.max_latency_ms, other.max_latency_ms)
        return Row(self.fault, **counts, first_decision_s=first, max_latency_ms=latency)


class Verdict(NamedTuple):
    """The row, and for whoever looks for the cause: a line for each thing that is wrong, with the first places."""

    row: Row
    notes: list[str]


def judge(
    fault: str,
    struck_ms: float,
    expected: Sequence[Expected],
    outcomes: Iterable[Outcome],
    sinks: Mapping[str, Effects],
) -> Verdict:
    """Judges the records that the source got around one fault; outcomes and effects of other records are not looked
    at."""
    asked = {(each.partition, each.offset): each for each in expected}
    found: dict[Place, list[Outcome]] = {place: [] for place in asked}
    for outcome in outcomes:
        if (place := (outcome.partition, outcome.offset)) in found:
            found[place].append(outcome)
    effects = {name: find_wrong_effects(found, each) for name, each in sinks.items()}
    lost = [_key(place) for place, each in asked.items() if is_lost(each, found[place])]
    repeated = [_key(place) for place, each in asked.items() if is_repeated(each, found[place])]
    wrong = [_key(place) for place, all_ in found.items() for each in all_ if is_wrong(asked[place], each)]
    latencies_ms = [each.logged_ms - asked[at].append_ms for at, all_ in found.items() for each in all_]
    row = Row(
        fault=fault,
        lost=len(lost),
        decided_twice=len(repeated),
        effects_lost=sum(len(each.lost) for each in effects.values()),
        effects_twice=sum(each.too_many.total() for each in effects.values()),
        features_wrong=len(wrong),
        first_decision_s=first_decision_s(struck_ms, expected, found),
        max_latency_ms=max(latencies_ms, default=0),
    )
    details = {"lost": lost, "decided twice": repeated, "with wrong features": wrong}
    for name, each in effects.items():
        details |= {f"lost by {name}": each.lost, f"too many in {name}": sorted(each.too_many)}
    return Verdict(row, [f"{what}: {_sample(places)}" for what, places in details.items() if places])


def _key(place: Place) -> str:
    return f"fraud/{place[0]}/{place[1]}"


def _sample(places: Sequence[str]) -> str:
    more = f", and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(places[:SHOWN]) + more


def is_lost(expected: Expected, outcomes: Sequence[Outcome]) -> bool:
    if not outcomes:
        return not expected.dropped
    fine = expected.features is not None and not expected.poison
    return fine and not any(each.decided for each in outcomes)


def is_repeated(expected: Expected, outcomes: Sequence[Outcome]) -> bool:
    return len(outcomes) > (0 if expected.dropped else 1)


def is_wrong(expected: Expected, outcome: Outcome) -> bool:
    if not outcome.decided:
        return False
    if expected.features is None or outcome.id != expected.id:
        return True
    return not all(
        math.isclose(found, right, rel_tol=TOLERANCE)
        for found, right in zip(outcome.features, expected.features, strict=True)
    )


class WrongEffects(NamedTuple):
    """Idempotency keys; `too_many` says of each how many there are beyond what was asked for."""

    lost: list[str]
    too_many: Counter[str]


def find_wrong_effects(found: Mapping[Place, Sequence[Outcome]], sink: Effects) -> WrongEffects:
    asked = Counter(key for outcomes in found.values() for each in outcomes for key in keys(each, sink.of_rejects))
    done = Counter({key: times for key, times in sink.done.items() if place_of(key) in found})
    lost = sorted(key for key in asked if key not in done and key not in sink.refused)
    return WrongEffects(lost, done - Counter(dict.fromkeys(asked, 1)))


def keys(outcome: Outcome, of_rejects: bool) -> list[str]:
    """The idempotency keys that the outcome asks a sink for."""
    place = _key((outcome.partition, outcome.offset))
    if of_rejects:
        return [] if outcome.decided else [f"{place}/rejected"]
    return [f"{place}/{index}" for index in range(outcome.holds)]


def place_of(key: str) -> Place:
    _, partition, offset, _ = key.split("/")
    return int(partition), int(offset)


def first_decision_s(
    struck_ms: float, expected: Sequence[Expected], found: Mapping[Place, Sequence[Outcome]]
) -> float | None:
    first_ms: dict[int, float] = {}
    for each in expected:
        if each.append_ms >= struck_ms:
            logged_ms = [outcome.logged_ms for outcome in found[each.partition, each.offset]]
            first_ms[each.partition] = min([first_ms.get(each.partition, math.inf), *logged_ms])
    latest_ms = max(first_ms.values(), default=math.inf)
    return None if latest_ms == math.inf else round((latest_ms - struck_ms) / 1000, 2)

"""Assignment: which worker has which partition. Complete, disjoint, balanced, and as sticky as these allow."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

Unit = TypeVar("Unit", bound=int | str)


def assign(units: Sequence[Unit], workers: Sequence[str], current: Mapping[Unit, str]) -> dict[Unit, str]:
    """Gives every unit to one worker, so that their numbers differ by one at most.

    A unit stays where it is (`current`) unless its worker is gone or has more than its share. The same arguments give
    the same answer, in whatever order workers are listed. Without workers nothing is assigned.
    """
    if not workers:
        return {}
    held: dict[str, list[Unit]] = {worker: [] for worker in sorted(workers)}
    for unit in units:
        if current.get(unit) in held:
            held[current[unit]].append(unit)
    small, larger = divmod(len(units), len(held))
    fullest_first = sorted(held, key=lambda worker: -len(held[worker]))
    quota = {worker: small + (rank < larger) for rank, worker in enumerate(fullest_first)}
    kept = {worker: held[worker][: quota[worker]] for worker in held}
    placed = {unit for mine in kept.values() for unit in mine}
    free = iter([unit for unit in units if unit not in placed])
    for worker, mine in kept.items():
        mine += itertools.islice(free, quota[worker] - len(mine))
    return {unit: worker for worker, mine in kept.items() for unit in mine}

"""Sums over windows that neither drift nor cancel: two doubles each, in groups, and nothing is ever subtracted.

Sums are carried in two doubles (Knuth's TwoSum; Dekker, "A floating-point technique for extending the available
precision", 1971): 1e16 + 1 - 1e16 is 1. Long windows are made of groups: every 16, 256 and 4,096 entries, aligned on
entry numbers, have a node with their statistics, each computed from its parts in order of number. Numbers survive
eviction and restoring, so that a sum is added up in the same order, to the last bit, however the log was cut.
"""

from typing import Any, NamedTuple

import numpy as np

from app.features.compiled import Array, part
from app.features.entries import place_of

GROUP_BITS, LEVELS = 4, 3
SUPERGROUP_BITS, SUPERGROUP_NODES = 8, 18
"""Nodes lie at a fixed place for each 256 rows of the arena: 16 of level 1, one of level 2, one of level 3."""

SPLITTER = 2.0**27 + 1.0

PRESENT, HIGH, LOW, LEAST, GREATEST, DEVIATION, STATISTICS = range(7)
"""A stored field's statistics: how many values are not NaN, their sum in two doubles, …, squared deviation."""


class Statistics(NamedTuple):
    """Of some entries' values: how many are not NaN, their sum in two doubles, the least, the greatest."""

    present: float
    high: float
    low: float
    least: float
    greatest: float


@part
def empty() -> Statistics:
    return Statistics(0.0, 0.0, 0.0, np.inf, -np.inf)


@part
def add(high: float, low: float, value: float) -> tuple[float, float]:
    total = high + value
    part_of_value = total - high
    return total, low + ((high - (total - part_of_value)) + (value - part_of_value))


@part
def divide(high: float, low: float, count: float) -> tuple[float, float]:
    """(high + low) / count in two doubles; count < 2^26, so that both halves' products are exact (Dekker)."""
    quotient = high / count
    scaled = quotient * SPLITTER
    upper = scaled - (scaled - quotient)
    rest = ((high - upper * count) - (quotient - upper) * count) + low
    return quotient, rest / count


@part
def collapse(high: float, low: float) -> float:
    """The sum as one double; where it overflowed, the correction is NaN and the sum infinite."""
    return high if np.isnan(low) else high + low


@part
def include(so_far: Statistics, value: float) -> Statistics:
    if np.isnan(value):
        return so_far
    high, low = add(so_far.high, so_far.low, value)
    return Statistics(
        so_far.present + 1.0,
        high,
        low,
        value if value < so_far.least else so_far.least,
        value if value > so_far.greatest else so_far.greatest,
    )


@part
def include_node(so_far: Statistics, nodes: Array, node: int, field: int) -> Statistics:
    high, low = add(so_far.high, so_far.low + nodes[node, field, LOW], nodes[node, field, HIGH])
    return Statistics(
        so_far.present + nodes[node, field, PRESENT],
        high,
        low,
        min(so_far.least, nodes[node, field, LEAST]),
        max(so_far.greatest, nodes[node, field, GREATEST]),
    )


@part
def store(array: Array, row: int, field: int, statistics: Statistics) -> None:
    array[row, field, PRESENT] = statistics.present
    array[row, field, HIGH] = statistics.high
    array[row, field, LOW] = statistics.low
    array[row, field, LEAST] = statistics.least
    array[row, field, GREATEST] = statistics.greatest


@part
def load(array: Array, row: int, field: int) -> Statistics:
    return Statistics(
        array[row, field, PRESENT],
        array[row, field, HIGH],
        array[row, field, LOW],
        array[row, field, LEAST],
        array[row, field, GREATEST],
    )


@part
def node_of(key: Any, entry: int, level: int) -> int:
    """The node of the group that ends with `entry`."""
    place = place_of(key, entry)
    nodes = (place >> SUPERGROUP_BITS) * SUPERGROUP_NODES
    if level == 1:
        return nodes + ((place >> GROUP_BITS) & 15)
    return nodes + 14 + level


@part
def level_at(stop: int, first: int, top: int) -> int:
    """The level, up to `top`, of the largest group that ends at `stop` and lies in [first, stop); 0: none."""
    level = 0
    span = 1 << GROUP_BITS
    while level < top and stop & (span - 1) == 0 and stop - span >= first:
        level += 1
        span <<= GROUP_BITS
    return level


@part
def summarise(
    values: Array, nodes: Array, key: Any, field: int, span: tuple[int, int, int], so_far: Statistics
) -> Statistics:
    """Adds the entries of `span`, (first, stop, top), from the last one back, in groups up to level `top`."""
    first, stop, top = span
    while stop > first:
        level = level_at(stop, first, top)
        if level:
            so_far = include_node(so_far, nodes, node_of(key, stop - 1, level), field)
            stop -= 1 << (GROUP_BITS * level)
        else:
            edge = max(first, (stop - 1) & -(1 << GROUP_BITS))
            while stop > edge:
                stop -= 1
                so_far = include(so_far, values[place_of(key, stop), 1 + field])
    return so_far


@part
def deviation(
    values: Array, nodes: Array, key: Any, field: int, span: tuple[int, int, int], about: Statistics
) -> float:
    """Sum of (value - mean)² over a span as in `summarise`, `about` being the statistics of just its entries.

    A group adds its own and that of its mean (Chan, Golub and LeVeque, 1979): all terms are positive.
    Of equal values it is 0, not nearly 0: their sum and mean in two doubles are exact.
    """
    first, stop, top = span
    mean, mean_low = divide(about.high, about.low, about.present)
    total = 0.0
    while stop > first:
        level = level_at(stop, first, top)
        if level:
            node = node_of(key, stop - 1, level)
            present = nodes[node, field, PRESENT]
            if present > 0.0:
                centre, centre_low = divide(nodes[node, field, HIGH], nodes[node, field, LOW], present)
                distance = (centre - mean) + (centre_low - mean_low)
                total += nodes[node, field, DEVIATION] + present * distance * distance
        else:
            value = values[place_of(key, stop - 1), 1 + field]
            if not np.isnan(value):
                distance = (value - mean) - mean_low
                total += distance * distance
        stop -= 1 << (GROUP_BITS * level)
    return total


@part
def roll_up(values: Array, nodes: Array, key: Any, changed: int) -> None:
    """Computes the nodes of all groups that are complete and hold an entry at or behind `changed`."""
    for level in range(1, LEVELS + 1):
        bits = GROUP_BITS * level
        if 1 << bits > key.capacity:
            return
        for group in range(max(changed >> bits, (key.head + (1 << bits) - 1) >> bits), key.tail >> bits):
            span = (group << bits, (group + 1) << bits, level - 1)
            node = node_of(key, span[1] - 1, level)
            for field in range(nodes.shape[1]):
                statistics = summarise(values, nodes, key, field, span, empty())
                store(nodes, node, field, statistics)
                nodes[node, field, DEVIATION] = deviation(values, nodes, key, field, span, statistics)


@part
def reset_life(lives: Array, slot: int) -> None:
    for field in range(lives.shape[1]):
        store(lives, slot, field, empty())
        lives[slot, field, DEVIATION] = 0.0


@part
def live(lives: Array, slot: int, field: int, value: float) -> None:
    """Adds a value to running statistics (Welford, 1962)."""
    if np.isnan(value):
        return
    before = load(lives, slot, field)
    if before.present > 0.0:
        mean, mean_low = divide(before.high, before.low, before.present)
        distance = (value - mean) - mean_low
        lives[slot, field, DEVIATION] += distance * distance * (before.present / (before.present + 1.0))
    store(lives, slot, field, include(before, value))

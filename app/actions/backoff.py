"""Backoff: how long to wait before trying a sink again."""

import random

FIRST_MS = 100
LONGEST_MS = 30_000
DOUBLINGS = 9
"""100 ms doubled nine times is beyond the longest; more would only make large numbers."""


def backoff_ms(retries: int, jitter: random.Random) -> float:
    """The wait before retry number `retries` (from 1): doubled each time, up to 30 s, less up to half of it at random,
    so that workers which failed together do not come back together."""
    longest = min(LONGEST_MS, FIRST_MS << min(retries - 1, DOUBLINGS))
    return longest * jitter.uniform(0.5, 1.0)

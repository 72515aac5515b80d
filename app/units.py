"""Quantities as people write them."""

import re
from fractions import Fraction

from app.errors import ConfigError

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration_ms(text: str) -> int:
    """Returns milliseconds: `parse_duration_ms("1.5h") == 5_400_000`.

    Raises ConfigError when the text is not a positive number and a unit, or is finer than a millisecond.
    """
    found = DURATION.fullmatch(text)
    if not found:
        raise ConfigError(f"{text!r} is not a duration; write a number and a unit of ms, s, m, h, d, like '10m'")
    duration_ms = Fraction(found[1]) * UNIT_MS[found[2]]
    if duration_ms.denominator != 1 or duration_ms == 0:
        raise ConfigError(f"{text!r} is not a whole, positive number of milliseconds; write one, like '10ms'")
    return int(duration_ms)


def format_duration(duration_ms: int) -> str:
    """In the largest unit that is whole; `parse_duration_ms` reads it back: `format_duration(5_400_000) == "90m"`."""
    for unit in ("d", "h", "m", "s"):
        if duration_ms and duration_ms % UNIT_MS[unit] == 0:
            return f"{duration_ms // UNIT_MS[unit]}{unit}"
    return f"{duration_ms}ms"

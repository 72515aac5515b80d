"""Durations as people write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError
from app.units import format_duration, parse_duration_ms

SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


@given(st.integers(1, 10**15))
def test_a_formatted_duration_reads_back_as_itself(duration_ms: int) -> None:
    assert parse_duration_ms(format_duration(duration_ms)) == duration_ms


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(list(SECONDS)))
def test_a_duration_is_exactly_its_decimal_number_of_units(whole: int, thousandths: int, unit: str) -> None:
    text = f"{whole}.{thousandths:03d}"
    exact_ms = Decimal(text) * SECONDS[unit] * 1000
    if exact_ms == int(exact_ms) and exact_ms > 0:
        assert parse_duration_ms(text + unit) == int(exact_ms)
    else:
        with pytest.raises(ConfigError, match="whole, positive number of milliseconds"):
            parse_duration_ms(text + unit)


@pytest.mark.parametrize(
    ("duration_ms", "text"), [(1, "1ms"), (1_500, "1500ms"), (60_000, "1m"), (5_400_000, "90m"), (86_400_000, "1d")]
)
def test_a_duration_is_written_in_the_largest_whole_unit(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text


@pytest.mark.parametrize(
    "text", ["10min", "10", "ms", "", "-1s", "+1s", "1 s", " 1s", "1s\n", "1e3s", ".5s", "1.s", "1m30s"]
)
def test_what_is_no_duration_is_refused_with_the_value_and_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_duration_ms(text)
    assert str(refusal.value) == (
        f"{text!r} is not a duration; write a number and a unit of ms, s, m, h, d, like '10m'"
    )


@pytest.mark.parametrize("text", ["0ms", "0.0d", "0.5ms", "0.0001s"])
def test_nothing_and_what_is_finer_than_a_millisecond_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is not a whole, positive number of milliseconds; write one"):
        parse_duration_ms(text)

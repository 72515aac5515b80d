from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.event import Columns
from models.fraud_signals import INPUTS, SIGNALS, signals


def payments(rows: int) -> Columns:
    draw = np.random.default_rng(rows)
    columns: Columns = {name: draw.uniform(1, 50, rows) for name in INPUTS}
    return columns | {"time": draw.integers(0, 2_000_000_000_000, rows)}


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)))
def test_weekend_and_night_are_those_of_the_calendar_in_utc(moment: datetime) -> None:
    time_ms = (moment - datetime(1970, 1, 1)) // timedelta(milliseconds=1)
    found = signals(payments(1) | {"time": np.array([time_ms])})[0]
    assert found[2] == (moment.replace(tzinfo=UTC).weekday() >= 5)
    assert found[3] == (moment.hour <= 6)


def test_there_is_one_row_of_signals_for_each_payment() -> None:
    assert signals(payments(5)).shape == (5, SIGNALS)
    assert signals(payments(0)).shape == (0, SIGNALS)
    assert signals(payments(5)).dtype == np.float32


def test_a_payment_is_compared_with_the_others_of_its_card_and_not_with_itself() -> None:
    columns = payments(2)
    columns |= {"amount": np.array([50.0, 10.0]), "payments_30d": np.array([5.0, 5.0])}
    columns |= {"mean_amount_30d": np.array([(4 * 10 + 50) / 5, 10.0])}
    unlike, alike = signals(columns)[:, -3]
    assert unlike == np.float32(np.log1p(50) - np.log1p(10))
    assert alike == 0


def test_the_first_payment_of_a_card_is_like_itself() -> None:
    first = {f"payments_{window}": np.array([1.0]) for window in ("1d", "7d", "30d")}
    amounts = {f"mean_amount_{window}": np.array([80.0]) for window in ("1d", "7d", "30d")}
    found = signals(payments(1) | first | amounts | {"amount": np.array([80.0])})[0]
    np.testing.assert_array_equal(found[[6, 9, 12, 13, 14]], 0)

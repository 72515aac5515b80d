import math
import subprocess
import sys

import numpy as np
import pytest

from app.errors import DeclarationError
from app.event import Event
from app.features import Features, count, distinct, latest, mean, minimum, std, time_since_last, total
from tests.unit.features.streams import Payment


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last=["1d", "7d"])
    usual_amount = mean("amount", last="30d")
    idle = time_since_last()


def test_columns_stand_in_order_and_end_in_their_windows() -> None:
    assert CardHistory.columns() == ("payments_1d", "payments_7d", "usual_amount", "idle")


def test_a_row_has_plain_floats() -> None:
    columns = {name: np.array([place, place + 0.5]) for place, name in enumerate(CardHistory.columns())}
    row = CardHistory.row(columns, 1)
    assert (row.payments_1d, row.payments_7d, row.usual_amount, row.idle) == (0.5, 1.5, 2.5, 3.5)
    assert type(row.payments_1d) is float
    assert repr(row) == "CardHistory(payments_1d=0.5, payments_7d=1.5, usual_amount=2.5, idle=3.5)"


def test_a_row_can_be_made_by_hand_and_refuses_unknown_names() -> None:
    assert CardHistory(payments_1d=51).payments_1d == 51
    with pytest.raises(TypeError, match="CardHistory has no payment_1d; it has payments_1d, payments_7d"):
        CardHistory(payment_1d=51)
    with pytest.raises(AttributeError, match="no value"):
        _ = CardHistory(payments_1d=51).idle


def test_a_key_is_kept_for_the_longest_window_or_the_ttl_or_for_ever() -> None:
    windowed = type(Features)("W", (Features,), {"a": count(last=["1d", "7d"])}, of=Payment, by="card")
    told = type(Features)("T", (Features,), {"a": count()}, of=Payment, by="card", ttl="90d")
    assert (windowed.ttl_ms, told.ttl_ms, CardHistory.ttl_ms) == (7 * 86_400_000, 90 * 86_400_000, None)


def test_a_subclass_adds_to_the_features_it_inherits() -> None:
    class More(CardHistory, of=Payment, by="card"):
        spent_1d = total("amount", last="1d")

    assert More.columns() == (*CardHistory.columns(), "spent_1d")


class Odd(Event):
    where: float
    user: str | None = None
    keys: str = ""


OF_PAYMENT = {"of": Payment, "by": "card"}


@pytest.mark.parametrize(
    ("options", "body", "message"),
    [
        ({}, {"a": count()}, r"lacks of= or by=; write class Wrong\(Features, of=…, by=…\)"),
        ({"of": Payment, "by": "terminal"}, {"a": count()}, "'terminal', which Payment has not; it has id, time"),
        ({"of": Payment, "by": "amount"}, {"a": count()}, "Payment.amount, which is not always a str or"),
        ({"of": Odd, "by": "user"}, {"a": count()}, "Odd.user, which is not always a str or an int"),
        (OF_PAYMENT, {}, "declares no feature; add one"),
        (OF_PAYMENT, {"a": total("amuont")}, "'amuont', which Payment has not; it has id, time, card"),
        (OF_PAYMENT, {"a": mean("merchant")}, "the mean of Payment.merchant, which is a str"),
        (OF_PAYMENT, {"a": latest("voucher")}, "the latest of Payment.voucher, which is a str"),
        (OF_PAYMENT, {"a": distinct("merchant", last=None)}, "every value for ever; give it last="),
        (OF_PAYMENT, {"a": count(last="7 days")}, "a: '7 days' is not a duration; write a number and a unit"),
        (OF_PAYMENT, {"a": count(last=7)}, "a has last=7; write a duration as text"),
        (OF_PAYMENT, {"a": count(last=[])}, "last=\\[\\], which is no window"),
        (OF_PAYMENT, {"a": count(last=["1.5h"])}, "'1.5h', which cannot end a column's name; write '90m'"),
        (OF_PAYMENT, {"a": count(last=["1d", "1d"])}, "two features of Wrong make a column 'a_1d'"),
        (OF_PAYMENT, {"a": count(last=["1d"]), "a_1d": count()}, "make a column 'a_1d'; rename one"),
        (OF_PAYMENT, {"amount": minimum("amount")}, "named like a field of Payment; rename the feature"),
        (OF_PAYMENT, {"row": count()}, "Wrong.row hides what every Features class has; rename it"),
        ({**OF_PAYMENT, "ttl": "soon"}, {"a": count()}, "ttl='soon': 'soon' is not a duration"),
        ({**OF_PAYMENT, "ttl": "1d"}, {"a": count(last="7d")}, "ttl='1d', shorter than its longest window"),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_a_remedy(options: dict, body: dict, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        type(Features)("Wrong", (Features,), body, **options)


def test_a_name_declared_twice_is_refused() -> None:
    with pytest.raises(DeclarationError, match="'orders' is declared twice"):

        class Twice(Features, of=Payment, by="card"):
            orders = count(last="1d")
            orders = count(last="7d")  # noqa: PIE794


def fingerprint(body: dict, **options: object) -> str:
    return type(Features)("Any", (Features,), body, **{**OF_PAYMENT, **options}).fingerprint()


def test_a_fingerprint_names_the_declaration_and_not_the_class() -> None:
    same = fingerprint({"a": std("amount", last="1d")})
    assert same == fingerprint({"a": std("amount", last="24h")})
    others = [
        fingerprint({"b": std("amount", last="1d")}),
        fingerprint({"a": std("amount", last="2d")}),
        fingerprint({"a": std("tip", last="1d")}),
        fingerprint({"a": std("items", last="1d")}),
        fingerprint({"a": mean("amount", last="1d")}),
        fingerprint({"a": std("amount", last="1d")}, by="account"),
        fingerprint({"a": std("amount", last="1d")}, ttl="2d"),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "from tests.unit.features import test_declaration as t; print(t.CardHistory.fingerprint(), end='')"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == CardHistory.fingerprint()


def test_sample_deviation_is_that_of_pandas() -> None:
    import pandas as pd

    from app.features import KeyedState

    class Spread(Features, of=Payment, by="card"):
        spread = std("amount")

    amounts = [1.0, 4.0, 2.5]
    columns = {"time": np.arange(3), "card": np.array(["a"] * 3, object), "amount": np.array(amounts)}
    out = KeyedState(Spread, 0).update(columns, np.arange(3))["spread"]
    assert math.isnan(out[0])
    assert out[1:].tolist() == pytest.approx([pd.Series(amounts[:2]).std(), pd.Series(amounts).std()])

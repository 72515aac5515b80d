"""Decoding a poll: good records become columns, broken ones dead letters, and the cut into polls changes nothing."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import DeclarationError
from app.event import Decoded, Event, EventDecoder, Timestamp, field_types

APPEND_MS = 1_700_000_000_000
AHEAD_MS = 60_000


class Payment(Event, frozen=True):
    card: str
    amount: float
    items: int = 1
    online: bool = False
    note: str | None = None
    tip: float | None = None
    points: int | None = None


GOOD = {"id": "p1", "time": APPEND_MS, "card": "c1", "amount": 2.5}


def decode(*values: Any, keys: list[bytes | None] | None = None, by: str | None = None) -> Decoded[Payment]:
    """Bytes and None are taken as they are, anything else as JSON."""
    raw = [each if each is None or isinstance(each, bytes) else json.dumps(each).encode() for each in values]
    appended = np.full(len(raw), APPEND_MS, dtype=np.int64)
    return EventDecoder(Payment, by=by, max_ahead_ms=AHEAD_MS).decode(raw, keys or [None] * len(raw), appended)


def reason(value: Any, **options: Any) -> str:
    """Why this record is rejected, while its neighbours are not."""
    if "keys" in options:
        options["keys"] = [b"c1", *options["keys"], b"c1"]
    decoded = decode(GOOD, value, GOOD, **options)
    assert decoded.rows.tolist() == [0, 2]
    [(row, why, _)] = decoded.rejected
    assert row == 1
    return why


def altered(**fields: Any) -> dict[str, Any]:
    return GOOD | fields


def raw(**fields: str) -> bytes:
    """The good record with further fields as raw JSON text, later ones over earlier ones of the same name."""
    more = "".join(f', "{name}": {text}' for name, text in fields.items())
    return (json.dumps(GOOD)[:-1] + more + "}").encode()


def test_a_poll_becomes_columns_of_the_declared_types() -> None:
    decoded = decode(GOOD, altered(items=3, online=True, note="x", tip=0.5, points=7))
    assert {name: column.dtype for name, column in decoded.columns.items()} == {
        "id": object,
        "time": np.int64,
        "card": object,
        "amount": np.float64,
        "items": np.int64,
        "online": np.bool_,
        "note": object,
        "tip": np.float64,
        "points": np.float64,
    }
    assert decoded.columns["items"].tolist() == [1, 3]
    assert decoded.columns["online"].tolist() == [False, True]
    assert decoded.events[1] == Payment("p1", APPEND_MS, "c1", 2.5, 3, True, "x", 0.5, 7)


def test_an_optional_field_that_is_absent_or_null_is_none_as_text_and_nan_as_number() -> None:
    columns = decode(GOOD, altered(note=None, tip=None, points=None)).columns
    assert columns["note"].tolist() == [None, None]
    assert np.isnan(columns["tip"]).all()
    assert np.isnan(columns["points"]).all()


def test_unknown_fields_are_ignored_and_defaults_stand_for_absent_ones() -> None:
    decoded = decode(altered(currency="EUR", nested={"deep": [1, {"x": None}]}))
    assert not decoded.rejected
    assert decoded.columns["items"].tolist() == [1]
    assert "currency" not in decoded.columns


def test_a_poll_of_nothing_is_columns_of_no_rows() -> None:
    decoded = decode()
    assert decoded.events == []
    assert decoded.rejected == []
    assert {len(column) for column in decoded.columns.values()} == {0}


@pytest.mark.parametrize(
    "value", [b"", b"{", b"not json", b'{"id": "p1"', json.dumps(GOOD).encode() + b"}", b"\xff\xfe", b"\xef\xbb\xbf{}"]
)
def test_what_does_not_parse_is_rejected(value: bytes) -> None:
    assert "truncated" in reason(value) or "malformed" in reason(value)


@pytest.mark.parametrize(
    ("value", "kind"), [(b"null", "null"), (b'"text"', "str"), (b"[]", "array"), (b"1", "int"), (b"true", "bool")]
)
def test_json_that_is_no_object_is_rejected(value: bytes, kind: str) -> None:
    assert reason(value) == f"Expected `object`, got `{kind}`"


def test_an_array_of_events_is_not_an_event() -> None:
    assert reason([GOOD]) == "Expected `object`, got `array`"


def test_a_record_without_value_is_rejected() -> None:
    assert reason(None) == "the record has no value"


@pytest.mark.parametrize("field", ["id", "time", "card", "amount"])
def test_a_missing_field_is_named(field: str) -> None:
    assert reason({name: value for name, value in GOOD.items() if name != field}) == (
        f"Object missing required field `{field}`"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 1),
        ("card", None),
        ("amount", "2.5"),
        ("amount", True),
        ("amount", None),
        ("items", 1.5),
        ("items", "1"),
        ("items", True),
        ("online", 1),
        ("note", 1),
        ("tip", "NaN"),
        ("points", 0.5),
        ("time", True),
        ("time", None),
        ("time", 1.5),
    ],
)
def test_a_wrong_type_is_rejected_with_the_place(field: str, value: Any) -> None:
    why = reason(altered(**{field: value}))
    assert why.startswith("Expected `")
    assert why.endswith(f"at `$.{field}`")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "nan"])
def test_nan_and_infinity_are_no_json(number: str) -> None:
    assert "malformed" in reason(raw(amount=number))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
@pytest.mark.parametrize("field", ["amount", "tip"])
def test_a_number_that_no_float_holds_is_rejected(field: str, number: str) -> None:
    assert reason(raw(**{field: number})) == f"Number out of range - at `$.{field}`"


@pytest.mark.parametrize("field", ["items", "time"])
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**30, 10**400])
def test_an_integer_beyond_64_bits_is_rejected(field: str, number: int) -> None:
    why = reason(raw(**{field: str(number)}))
    assert why.startswith(f"{field} is ")
    assert why.endswith(", which no 64 bits hold")


def test_an_integer_as_long_as_a_book_is_rejected() -> None:
    assert reason(raw(items="9" * 100_000)) == "Integer value out of range - at `$.items`"
    assert reason(raw(points="9" * 400)).endswith("which no 64 bits hold")


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_the_ends_of_64_bits_are_kept_exactly(number: int) -> None:
    assert decode(altered(items=number)).columns["items"].tolist() == [number]


def test_a_time_far_in_the_future_is_rejected_and_one_just_within_is_not() -> None:
    assert not decode(altered(time=APPEND_MS + AHEAD_MS)).rejected
    assert reason(altered(time=APPEND_MS + AHEAD_MS + 1)) == (
        f"time {APPEND_MS + AHEAD_MS + 1} lies 60 s after the record was appended; at most 60 s are allowed"
    )
    assert "lies 92" in reason(altered(time=2**63 - 1))


@pytest.mark.parametrize("time", [-1, -(2**63), "0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z"])
def test_a_time_before_1970_is_rejected_and_the_epoch_itself_is_not(time: object) -> None:
    assert "lies before 1970; write the milliseconds since then" in reason(altered(time=time))
    assert decode(altered(time=0)).columns["time"].tolist() == [0]


def test_a_time_is_held_against_its_own_record_s_append_time() -> None:
    decoder = EventDecoder(Payment, max_ahead_ms=AHEAD_MS)
    values = [b"broken", *(json.dumps(altered(time=APPEND_MS + ahead)).encode() for ahead in (0, 2 * AHEAD_MS))]
    appended = np.array([0, APPEND_MS - AHEAD_MS - 1, APPEND_MS + AHEAD_MS])
    assert decoder.decode(values, [None] * 3, appended).rows.tolist() == [2]


def test_a_time_in_the_deepest_past_is_not_taken_for_the_future() -> None:
    assert reason(altered(time=-(2**63))).startswith(f"time {-(2**63)} lies before 1970")


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T23:13:20+01:00",
        "2023-11-14 16:13:20-06:00",
        "2023-11-15T03:43:20+05:30",
    ],
)
def test_iso_time_with_a_zone_is_the_same_instant(text: str) -> None:
    assert decode(altered(time=text), GOOD).columns["time"].tolist() == [1_700_000_000_000] * 2


@given(st.integers(0, APPEND_MS), st.integers(-14 * 60, 14 * 60))
@settings(max_examples=60, deadline=None)
def test_iso_time_is_exact_to_the_millisecond(time_ms: int, zone_minutes: int) -> None:
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    text = instant.astimezone(timezone(timedelta(minutes=zone_minutes))).isoformat()
    assert decode(altered(time=text)).columns["time"].tolist() == [time_ms]


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20", "2023-11-14", "yesterday", "1700000000000", ""])
def test_time_as_text_without_a_zone_is_rejected(text: str) -> None:
    assert reason(altered(time=text)).endswith("at `$.time`")


@pytest.mark.parametrize("key", [b"c2", b"", None, b"c1 ", b'"c1"', b"\xff"])
def test_a_key_that_is_not_the_field_it_stands_for_is_rejected(key: bytes | None) -> None:
    assert reason(GOOD, keys=[key], by="card") == (
        f"the record's key is {key!r}, its card is {b'c1'!r}; a record must be keyed by its card"
    )


@pytest.mark.parametrize(
    ("value", "key", "cause"),
    [
        (b"{", b"c1", "parse"),
        (None, b"c1", "parse"),
        (json.dumps(GOOD | {"items": 2**64}).encode(), b"c1", "value"),
        (json.dumps(GOOD | {"time": APPEND_MS * 2}).encode(), b"c1", "time"),
        (json.dumps(GOOD).encode(), b"c2", "key"),
    ],
)
def test_a_rejection_names_the_class_of_its_reason(value: bytes | None, key: bytes, cause: str) -> None:
    decoded = decode(GOOD, value, keys=[b"c1", key], by="card")
    assert [(each.row, each.cause) for each in decoded.rejected] == [(1, cause)]


def test_without_a_key_field_keys_mean_nothing() -> None:
    assert not decode(GOOD, GOOD, keys=[b"whatever", None]).rejected


def test_an_integer_key_is_written_in_decimals() -> None:
    assert not decode(altered(items=-12), keys=[b"-12"], by="items").rejected
    assert decode(altered(items=-12), keys=[b"12"], by="items").rejected


def test_keys_are_utf_8_and_are_compared_with_the_records_that_are_left() -> None:
    values = [altered(card="ä"), b"broken", altered(card="b"), None, altered(card="c")]
    decoded = decode(*values, keys=["ä".encode(), b"x", b"b", b"x", b"wrong"], by="card")
    assert decoded.rows.tolist() == [0, 2]
    assert [each.row for each in decoded.rejected] == [1, 3, 4]


def test_two_broken_records_do_not_pass_together_as_one() -> None:
    whole = json.dumps(GOOD).encode()
    for cut in range(1, len(whole)):
        decoded = decode(GOOD, whole[:cut], whole[cut:], GOOD)
        assert decoded.rows.tolist() == [0, 3]


def test_a_string_left_open_and_closed_in_the_next_record_swallows_nothing() -> None:
    opened = b'{"id": "p", "time": 1, "amount": 1, "card": "'
    decoded = decode(opened, b'"}', opened, GOOD, b'"}')
    assert decoded.rows.tolist() == [3]


def test_two_events_in_one_record_are_not_an_event() -> None:
    whole = json.dumps(GOOD).encode()
    for between in (b"", b",", b"\n", b" ", b',"x",', b'],["x",', b"\x00"):
        assert "malformed" in reason(whole + between + whole)


def test_separators_newlines_and_brackets_inside_text_are_text() -> None:
    text = '],"[{,\n\r\t\\ \u2028 \x00 💳'
    decoded = decode(GOOD, altered(card=text), GOOD)
    assert not decoded.rejected
    assert decoded.columns["card"].tolist() == ["c1", text, "c1"]


def test_white_space_around_a_record_is_no_part_of_it() -> None:
    assert not decode(b"\n\t " + json.dumps(GOOD).encode() + b" \r\n").rejected


def test_of_a_field_given_twice_the_last_one_counts() -> None:
    assert decode(raw(card='"c2"')).columns["card"].tolist() == ["c2"]
    assert reason(raw(amount='"much"')).endswith("at `$.amount`")


def test_text_that_is_not_utf_8_is_rejected() -> None:
    assert "utf-8" in reason(raw(card='"?"').replace(b"?", b"\xff"))


def test_half_a_surrogate_pair_is_rejected() -> None:
    reason(raw(card='"\\ud800"'))
    reason(raw(card='"\\ud800\\u0041"'))


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_a_record_nested_deeper_than_the_stack_is_rejected(depth: int) -> None:
    assert "recursion" in reason(raw(unknown="[" * depth + "]" * depth))


def test_a_batch_and_its_records_agree_at_the_brink_of_the_stack() -> None:
    for depth in range(900, 1_010):
        value = raw(unknown="[" * depth + "]" * depth)
        rejected = [
            bool(decode(*poll).rejected) for poll in ([value], [value] * 2, [GOOD] * 50 + [value] + [GOOD] * 50)
        ]
        assert rejected in ([True] * 3, [False] * 3)


def test_a_poll_of_nothing_but_broken_records_is_rejected_record_by_record() -> None:
    assert [each.row for each in decode(*[b"{broken"] * 1_000).rejected] == list(range(1_000))


# The property: a poll is its records, one by one.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
fields = {
    "id": texts,
    "time": st.one_of(
        st.integers(APPEND_MS - 10**9, APPEND_MS + 2 * AHEAD_MS),
        st.sampled_from([-(2**63), 2**63 - 1, 2**63, APPEND_MS + AHEAD_MS, APPEND_MS + AHEAD_MS + 1]),
    ),
    "card": texts,
    "amount": st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70)),
    "items": st.one_of(
        st.integers(-10, 10), st.integers(2**63 - 2, 2**63 + 2), st.integers(-(2**63) - 2, -(2**63) + 2)
    ),
    "online": st.booleans(),
    "note": st.none() | texts,
    "tip": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "points": st.none() | st.integers(-(2**70), 2**70) | st.just(10**400),
    "unknown": st.recursive(st.none() | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3),
}
anything = st.none() | st.booleans() | st.integers(-5, 5) | texts | st.just([]) | st.just({}) | st.just(0.5)


@st.composite
def records(draw: st.DrawFn) -> tuple[bytes | None, bytes | None]:
    """A value and a key: mostly an event, sometimes damaged in one of many ways."""
    record = {name: draw(values) for name, values in fields.items()}
    match draw(st.sampled_from(["whole"] * 8 + ["without", "odd", "cut", "noise", "none", "array", "key"])):
        case "without":
            del record[draw(st.sampled_from(sorted(record)))]
        case "odd":
            record[draw(st.sampled_from(sorted(record)))] = draw(anything)
        case "cut":
            whole = json.dumps(record).encode()
            return whole[: draw(st.integers(0, len(whole)))], b"k"
        case "noise":
            return draw(st.binary(max_size=12)), b"k"
        case "none":
            return None, b"k"
        case "array":
            return json.dumps([record]).encode(), b"k"
        case "key":
            return json.dumps(record).encode(), draw(st.none() | st.binary(max_size=4))
    ascii_only = draw(st.booleans())
    return json.dumps(record, ensure_ascii=ascii_only).encode(), str(record.get("card")).encode()


def expected(value: bytes | None, key: bytes | None) -> dict[str, Any] | None:
    """The row that a record must become, by json.loads and the declaration alone; None for a dead letter."""
    try:
        record = json.loads(value or b"")
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    row = {"items": 1, "online": False, "note": None, "tip": None, "points": None} | record
    wanted = {"id": str, "time": int, "card": str, "amount": float, "items": int, "online": bool}
    if not all(name in row and _is(row[name], kind) for name, kind in wanted.items()):
        return None
    optional = {"note": str, "tip": float, "points": int}
    if not all(row[name] is None or _is(row[name], kind) for name, kind in optional.items()):
        return None
    fits = all(-(2**63) <= row[name] < 2**63 for name in ("time", "items")) and abs(row["points"] or 0) < 1e308
    if not fits or not 0 <= row["time"] <= APPEND_MS + AHEAD_MS or key != row["card"].encode():
        return None
    return {name: row[name] for name in Payment.__struct_fields__}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is kind


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records(), max_size=40), st.data())
def test_a_poll_decodes_like_its_records_one_by_one_however_it_is_cut(
    polled: list[tuple[bytes | None, bytes | None]], data: st.DataObject
) -> None:
    values, keys = [value for value, _ in polled], [key for _, key in polled]
    whole = decode(*values, keys=keys, by="card")
    cuts = sorted({0, len(values), *data.draw(st.lists(st.integers(0, len(values)), max_size=4), label="cuts")})
    _assert_same(whole, values, keys, list(pairwise(cuts)))
    _assert_same(whole, values, keys, [(row, row + 1) for row in range(len(values))])
    rows = [expected(value, key) for value, key in polled]
    assert whole.rows.tolist() == [at for at, row in enumerate(rows) if row is not None]
    good = [row for row in rows if row is not None]
    for name, column in whole.columns.items():
        as_column = [math.nan if row[name] is None and name != "note" else row[name] for row in good]
        assert np.array_equal(column, np.array(as_column, dtype=column.dtype), equal_nan=column.dtype == np.float64)
    assert [event.id for event in whole.events] == [row["id"] for row in good]


def _assert_same(
    whole: Decoded[Payment], values: list[bytes | None], keys: list[bytes | None], parts: list[tuple[int, int]]
) -> None:
    events, rejected, rows, columns = [], [], [], []
    for start, end in parts:
        part = decode(*values[start:end], keys=keys[start:end], by="card")
        events += part.events
        rejected += [(start + row, *why) for row, *why in part.rejected]
        rows += [start + row for row in part.rows.tolist()]
        columns.append(part.columns)
    assert (whole.events, whole.rejected, whole.rows.tolist()) == (events, rejected, rows)
    for name, column in whole.columns.items():
        together = np.concatenate([part[name] for part in columns]) if columns else column
        assert column.dtype == together.dtype
        assert np.array_equal(column, together, equal_nan=column.dtype == np.float64)


# Declarations.


@pytest.mark.parametrize("hint", [list[str], dict[str, int], bytes, datetime, int | str, str | float | None, None, Any])
def test_a_field_that_is_no_column_is_refused(hint: Any) -> None:
    odd = type("Odd", (Event,), {"__annotations__": {"what": hint}}, frozen=True)
    with pytest.raises(DeclarationError, match=r"Odd\.what is a .*declare it as str, int, float or bool") as refusal:
        EventDecoder(odd)
    assert "| None" in str(refusal.value)


def test_a_key_field_that_the_event_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(DeclarationError, match="Payment has no field 'iban' to be keyed by; it has id, time, card"):
        EventDecoder(Payment, by="iban")


def test_columns_stand_in_order_of_declaration_with_missing_numbers_as_floats() -> None:
    assert field_types(Payment) == {
        "id": str,
        "time": int,
        "card": str,
        "amount": float,
        "items": int,
        "online": bool,
        "note": str,
        "tip": float,
        "points": float,
    }


def test_a_subclass_may_say_its_time_anew() -> None:
    class Reading(Event, frozen=True):
        time: Timestamp
        value: float

    assert field_types(Reading)["time"] is int

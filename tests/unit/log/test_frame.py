"""Frames come back as they went in, and a cursor applies each offset once, from the first copy."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import LogError
from app.event import Columns
from app.log.frame import (
    HEADER,
    LATE,
    Cursor,
    DeadLetter,
    Decided,
    Frame,
    FrameHeader,
    Stages,
    decode_frame,
    decode_header,
    encode_frame,
    encode_within,
)

STAGES = Stages(1.5, 2.5, 3.5, 4.5, 5.5)


def frame(
    first: int,
    last: int,
    decided: Sequence[int],
    rejected: Sequence[int] = (),
    *,
    event: Columns | None = None,
    scores: Columns | None = None,
    actions: Sequence[bytes | None] | None = None,
    label: str = "",
    duplicates: Sequence[int] = (),
) -> Frame:
    """`label` is the reason of its dead letters and the version of its model: which copy this is."""
    rows = Decided(
        offsets=np.array(decided, dtype=np.int64),
        append_ms=np.arange(len(decided), dtype=np.int64),
        event=event or {},
        features={},
        scores=scores or {},
        reasons=np.ones(len(decided), dtype=np.int8),
        actions=actions or [None] * len(decided),
        versions={"risk": label},
    )
    dead = [DeadLetter(offset, 7, label, None, b"bytes") for offset in rejected]
    count = sum(each is not None for each in actions or ())
    header = FrameHeader(
        "fraud", "payments", 3, first, last, len(decided), len(dead), count, duplicates=len(duplicates)
    )
    return Frame(header, STAGES, rows, dead, duplicates)


def through_the_log(sent: Frame) -> Frame:
    header, value = encode_frame(sent)
    return decode_frame(decode_header([("other", b"x"), header]), value)


FLOATS = np.array([0.0, -0.0, 1.5, np.nan, np.inf, -np.inf, 5e-324, 1e308])
INTS = np.array([0, -1, 2**63 - 1, -(2**63), 2**53 + 1])
TEXTS = np.array(["", "a", None, "ä\n\x00", "💳", "NaN"], dtype=object)
COLUMNS: dict[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]] = {
    "float": lambda seeds: FLOATS[seeds % len(FLOATS)],
    "int": lambda seeds: INTS[seeds % len(INTS)],
    "bool": lambda seeds: seeds % 2 == 0,
    "text": lambda seeds: TEXTS[seeds % len(TEXTS)],
    "float32": lambda seeds: seeds.astype(np.float32),
    "every second": lambda seeds: np.repeat(seeds, 2)[::2],
    "two-dimensional": lambda seeds: np.stack([seeds * 0.5, seeds * 2.0, -seeds], axis=1),
    "of one width": lambda seeds: seeds[:, None].astype(np.float32),
    "transposed": lambda seeds: np.stack([seeds, seeds + 1]).T,
    "flags": lambda seeds: np.stack([seeds % 2 == 0, seeds % 3 == 0], axis=1),
}
"""Columns of every kind that a field, a feature or a model's answer can be, of random numbers, one a row."""
places = st.dictionaries(st.text("ab.", min_size=1, max_size=3), st.sampled_from(sorted(COLUMNS)), max_size=4)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    first = draw(st.integers(0, 2**62))
    fates = draw(st.text("drlx-", max_size=12))
    decided = first + np.array([at for at, fate in enumerate(fates) if fate == "d"], dtype=np.int64)
    rows = len(decided)
    seeds = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 10**6, rows)
    actions = [(None, b"[{}]", b'[{"type": "Hold"}]')[seed % 3] for seed in seeds]
    columns = [{name: COLUMNS[kind](seeds) for name, kind in draw(places).items()} for _ in range(3)]
    dead = [
        DeadLetter(
            first + at,
            at - 1,
            "reason" * at,
            *draw(st.sampled_from([(None, None), (b"", b""), (b"\xff", b"{")])),
            LATE if fate == "l" else draw(st.sampled_from(["parse", "other"])),
            *draw(st.sampled_from([(), ((("h", None), ("h", b"\xff")), 3, "line 1\nline 2")])),
        )
        for at, fate in enumerate(fates)
        if fate in "rl"
    ]
    duplicates = [first + at for at, fate in enumerate(fates) if fate == "x"]
    header = FrameHeader(
        "fraud",
        "payments",
        3,
        first,
        first + max(0, len(fates) - 1),
        rows,
        len(dead),
        rows - actions.count(None),
        duplicates=len(duplicates),
        late=fates.count("l"),
    )
    versions = draw(st.dictionaries(st.sampled_from(["risk", "value"]), st.sampled_from(["", "v1"])))
    reasons = (seeds % 3).astype(np.int8)
    return Frame(header, STAGES, Decided(decided, seeds, *columns, reasons, actions, versions), dead, duplicates)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames())
def test_a_frame_comes_back_from_the_log_as_it_was_written(sent: Frame) -> None:
    read = through_the_log(sent)
    assert read.header == sent.header
    assert read.stages == sent.stages
    assert list(read.rejected) == list(sent.rejected)
    assert list(read.duplicates) == list(sent.duplicates)
    assert list(read.decided.actions) == list(sent.decided.actions)
    assert read.decided.versions == sent.decided.versions
    for name in ("offsets", "append_ms", "reasons"):
        assert np.array_equal(getattr(read.decided, name), getattr(sent.decided, name))
    for place in ("event", "features", "scores"):
        columns: Columns = getattr(read.decided, place)
        assert list(columns) == list(getattr(sent.decided, place))
        for name, expected in getattr(sent.decided, place).items():
            assert columns[name].dtype == expected.dtype
            assert columns[name].shape == expected.shape
            np.testing.assert_array_equal(columns[name], expected)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), st.integers(0, 6_000))
def test_a_frame_that_is_too_large_becomes_several_that_say_the_same(sent: Frame, most_bytes: int) -> None:
    parts = list(encode_within(sent, most_bytes))
    assert [each.header.first for each in parts] == [sent.header.first, *(each.header.last + 1 for each in parts[:-1])]
    assert parts[-1].header.last == sent.header.last
    for each in parts:
        assert len(each.value) <= most_bytes or each.header.decided + each.header.rejected <= 1 or len(parts) == 1
        assert decode_header([each.field]) == each.header
    read = [decode_frame(each.header, each.value) for each in parts]
    for part in read:
        outcomes = [*part.decided.offsets, *(letter.offset for letter in part.rejected), *part.duplicates]
        assert all(part.header.first <= offset <= part.header.last for offset in outcomes)
        assert (part.header.decided, part.header.rejected) == (len(part.decided.offsets), len(part.rejected))
        late = sum(letter.cause == LATE for letter in part.rejected)
        assert (part.header.late, part.header.duplicates) == (late, len(part.duplicates))
        assert (part.stages, part.decided.versions) == (sent.stages, sent.decided.versions)
    assert [letter for part in read for letter in part.rejected] == list(sent.rejected)
    assert [offset for part in read for offset in part.duplicates] == list(sent.duplicates)
    assert [action for part in read for action in part.decided.actions] == list(sent.decided.actions)
    for name in ("offsets", "append_ms", "reasons"):
        joined = np.concatenate([getattr(part.decided, name) for part in read])
        np.testing.assert_array_equal(joined, getattr(sent.decided, name))
    for place in ("event", "features", "scores"):
        for name, expected in getattr(sent.decided, place).items():
            joined = np.concatenate([getattr(part.decided, place)[name] for part in read])
            np.testing.assert_array_equal(joined, expected)


def test_the_parts_of_a_frame_know_their_own_actions_and_times() -> None:
    actions = [b'[{"type": "Hold"}, {"type": "Call"}]', None, b'[{"type": "Hold"}]', None]
    parts = [each.header for each in encode_within(frame(0, 9, [1, 3, 5, 7], actions=actions), 0)]
    assert [(each.first, each.last, each.actions) for each in parts] == [(0, 2, 2), (3, 4, 0), (5, 6, 1), (7, 9, 0)]
    assert [(each.oldest_ms, each.newest_ms) for each in parts] == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_frame_from_before_there_were_duplicates_is_read_as_one_without() -> None:
    header, value = encode_frame(frame(5, 7, [5, 7], [6]))
    columns, dead, _ = msgspec.msgpack.decode(value)
    old_header = msgspec.msgpack.encode(msgspec.msgpack.decode(header[1])[:10])
    letters = [{name: each for name, each in letter.items() if name != "cause"} for letter in dead]
    read = decode_frame(decode_header([(HEADER, old_header)]), msgspec.msgpack.encode([columns, letters]))
    assert (read.header.duplicates, read.header.late, list(read.duplicates)) == (0, 0, [])
    assert [(each.offset, each.cause) for each in read.rejected] == [(6, "other")]


def test_numbers_are_views_of_the_record_and_nothing_is_copied() -> None:
    read = through_the_log(frame(0, 2, [0, 1, 2], scores={"risk": np.arange(3.0), "two": np.ones((3, 2))}))
    for each in (read.decided.offsets, read.decided.scores["risk"], read.decided.scores["two"]):
        assert not each.flags.writeable
        assert not each.flags.owndata


def test_columns_of_one_name_in_several_places_stay_apart() -> None:
    sent = frame(0, 0, [0], event={"a": np.ones(1), "a.b": np.zeros(1)}, scores={"a": np.full(1, 2.0)})
    read = through_the_log(sent).decided
    assert {name: each.tolist() for name, each in read.event.items()} == {"a": [1.0], "a.b": [0.0]}
    assert read.scores["a"].tolist() == [2.0]


def test_a_torn_frame_is_an_error_that_names_its_place() -> None:
    header, value = encode_frame(frame(5, 7, [5, 7], [6], scores={"risk": np.ones(2)}))
    for cut in range(len(value)):
        with pytest.raises(LogError, match=r"the frame of payments\[3\] 5\.\.7 cannot be read"):
            decode_frame(decode_header([header]), value[:cut])


def test_columns_torn_inside_a_whole_record_are_an_error() -> None:
    header, value = encode_frame(frame(5, 7, [5, 7], [6], scores={"risk": np.ones(2)}))
    columns, *others = msgspec.msgpack.decode(value)
    end_of_stream = 8
    for cut in range(len(columns) - end_of_stream):
        with pytest.raises(LogError, match="cannot be read"):
            decode_frame(decode_header([header]), msgspec.msgpack.encode([columns[:cut], *others]))


def test_columns_of_something_else_are_an_error() -> None:
    header, _ = encode_frame(frame(0, 0, [0]))
    batch = pa.record_batch([pa.array([1])], names=["a"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(LogError, match="cannot be read"):
        decode_frame(decode_header([header]), msgspec.msgpack.encode([sink.getvalue().to_pybytes(), []]))


@pytest.mark.parametrize("headers", [None, [], [("traceparent", b"x")], [(HEADER, None)], [(HEADER.upper(), b"x")]])
def test_a_record_without_the_header_is_no_frame(headers: list[tuple[str, bytes | None]] | None) -> None:
    with pytest.raises(LogError, match="no 'headrace' header; was something else written to this topic"):
        decode_header(headers)


@pytest.mark.parametrize("value", [b"", b"\x00", b"not msgpack", msgspec.msgpack.encode(["fraud", "payments", "0"])])
def test_a_record_with_another_header_of_that_name_is_no_frame(value: bytes) -> None:
    with pytest.raises(LogError, match="header of no frame"):
        decode_header([(HEADER, value)])


# Cursor: copies overlap, come twice, come late; the first one counts.


@st.composite
def logs(draw: st.DrawFn) -> list[Frame]:
    """What a log can hold: writers go on at most one behind what the log has, and may go back as far as they like.
    Every copy labels its offsets, and splits them into decided, rejected and no record in its own way."""
    log: list[Frame] = []
    end = 0
    for at in range(draw(st.integers(0, 8))):
        first = draw(st.integers(0, end))
        last = first + draw(st.integers(0, 6))
        fates = draw(st.text("drx-", min_size=last - first + 1, max_size=last - first + 1))
        offsets = {fate: [first + row for row, each in enumerate(fates) if each == fate] for fate in "drx"}
        log.append(frame(first, last, offsets["d"], offsets["r"], label=str(at), duplicates=offsets["x"]))
        end = max(end, last + 1)
    return log


def applied_by_cursor(log: list[Frame], cursor: Cursor) -> list[tuple[int, str, str]]:
    applied = []
    for each in map(through_the_log, log):
        if not cursor.admit(each.header):
            continue
        label = each.decided.versions["risk"]
        applied += [(int(at), "decided", label) for at in each.decided.offsets[cursor.new_rows(each)]]
        applied += [(dead.offset, "rejected", dead.reason) for dead in cursor.new_dead_letters(each)]
        applied += [(offset, "duplicate", label) for offset in cursor.new_duplicates(each)]
        cursor.advance(each.header)
    return applied


def first_copies(log: list[Frame], after: int) -> list[tuple[int, str, str]]:
    """By definition: for each offset, the first frame that covers it says what became of it."""
    seen: set[int] = set(range(after + 1))
    found = []
    for each in log:
        covered = set(range(each.header.first, each.header.last + 1)) - seen
        label = each.decided.versions["risk"]
        found += [(int(at), "decided", label) for at in each.decided.offsets if int(at) in covered]
        found += [(dead.offset, "rejected", dead.reason) for dead in each.rejected if dead.offset in covered]
        found += [(offset, "duplicate", label) for offset in each.duplicates if offset in covered]
        seen |= covered
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.data())
def test_each_offset_is_applied_once_and_from_its_first_copy(log: list[Frame], data: st.DataObject) -> None:
    cursor = Cursor(-1)
    assert applied_by_cursor(log, cursor) == first_copies(log, -1)
    end = max((each.header.last for each in log), default=-1)
    assert cursor.applied == end
    resumed = data.draw(st.integers(-1, end), label="applied before")
    assert applied_by_cursor(log, Cursor(resumed)) == first_copies(log, resumed)


def test_without_a_place_the_log_starts_wherever_its_first_frame_starts() -> None:
    cursor = Cursor()
    assert applied_by_cursor([frame(40, 42, [40, 42], [41], label="a")], cursor) == [
        (40, "decided", "a"),
        (42, "decided", "a"),
        (41, "rejected", "a"),
    ]
    assert cursor.applied == 42


@pytest.mark.parametrize(("first", "missing"), [(11, "10..10"), (12, "10..11"), (99, "10..98")])
def test_offsets_that_are_in_no_frame_are_an_error_that_names_them(first: int, missing: str) -> None:
    cursor = Cursor(9)
    with pytest.raises(LogError, match=re.escape(f"payments[3]: offsets {missing} are in no frame")):
        cursor.admit(frame(first, 100, []).header)
    assert cursor.applied == 9
    assert cursor.admit(frame(10, 11, []).header)


def test_a_writer_thought_dead_does_not_move_the_cursor_back() -> None:
    cursor = Cursor(9)
    zombie = frame(3, 7, [3, 7]).header
    assert not cursor.admit(zombie)
    cursor.advance(zombie)
    assert cursor.applied == 9

"""Tasks: every frame is a function of the log's prefix, wherever it is cut, and wherever the task was stopped."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.actions.action import Action
from app.errors import LogError
from app.event import Event
from app.features import Features, count, latest, total
from app.log.frame import LATE, REASONS, Frame, Stages, decode_frame, decode_header, encode_frame
from app.log.replayed import count_replays, replay_headers
from app.pipeline import Pipeline
from app.runtime.checkpoint import decode_checkpoint, encode_checkpoint
from app.runtime.task import (
    Outcome,
    Slice,
    Task,
    TaskSettings,
    decide,
    merge_inputs,
    split_outcome,
)
from app.sources import Header, Records

START_MS = 1_600_000_000_000
HOUR_MS = 3_600_000
HORIZON_MS = 90 * 60_000
SETTINGS = TaskSettings(
    "fraud", "payments", allowed_lateness_ms=HOUR_MS, max_ahead_ms=10**12, deduplicate_ms=HORIZON_MS
)
STAGES = Stages(1.0, 2.0, 3.0, 4.0, 5.0)


class Payment(Event, frozen=True):
    card: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")
    spent = total("amount", last="2h")


class CardLast(Features, of=Payment, by="card"):
    last_amount = latest("amount", last="1h")


class Hold(Action, frozen=True):
    payment: str


def judge(payment: Payment) -> Iterator[Action]:
    if payment.amount == 13:
        raise ValueError("unlucky")
    if payment.amount > 50:
        yield Hold(payment.id)


PIPELINE = Pipeline(source=Payment, features=[CardHistory, CardLast], decide=judge)


@dataclass
class Stored:
    offset: int
    value: bytes
    key: bytes
    replays: int = 0
    """How often it has come back from the dead letters."""

    @property
    def headers(self) -> list[Header]:
        own: list[Header] = [("trace", b"%d" % self.offset), ("trace", None)]
        return replay_headers(own, "3/0", self.replays) if self.replays else own


def payment(offset: int, minute: int, amount: float = 1.0, card: str = "c", event_id: str | None = None) -> Stored:
    record = {"id": event_id or str(offset), "time": START_MS + minute * 60_000, "card": card, "amount": amount}
    return Stored(offset, json.dumps(record).encode(), card.encode())


def poll(stored: Sequence[Stored]) -> Records:
    return Records(
        topic="payments",
        partition=3,
        offsets=np.array([each.offset for each in stored], dtype=np.int64),
        append_ms=np.array([START_MS + each.offset for each in stored], dtype=np.int64),
        keys=[each.key for each in stored],
        values=[each.value for each in stored],
        headers=lambda: [each.headers for each in stored],
    )


def new_task(next_offset: int = 0, decided_through: int | None = None, **options: Any) -> Task[Payment]:
    through = next_offset - 1 if decided_through is None else decided_through
    return Task(PIPELINE, SETTINGS, 3, next_offset=next_offset, decided_through=through, **options)


def decided(part: Slice[Payment]) -> Frame:
    return decide(PIPELINE, SETTINGS, part, Outcome({}, {}, "rules"), STAGES)


def outcomes(frames: Sequence[Frame]) -> dict[int, Any]:
    """What became of each offset, features to the last bit."""
    found: dict[int, Any] = {}
    for frame in frames:
        rows = frame.decided
        for row, offset in enumerate(rows.offsets.tolist()):
            assert offset not in found
            features = {name: column[row].tobytes() for name, column in rows.features.items()}
            found[offset] = (rows.event["id"][row], int(rows.append_ms[row]), features, rows.actions[row])
        for dead in frame.rejected:
            assert dead.offset not in found
            found[dead.offset] = (
                dead.reason,
                dead.append_ms,
                dead.key,
                dead.value,
                dead.cause,
                dead.headers,
                dead.attempts,
                dead.stack,
            )
        for offset in frame.duplicates:
            assert offset not in found
            found[offset] = "duplicate"
        counts = (frame.header.decided, frame.header.rejected, frame.header.duplicates, frame.header.late)
        late = sum(dead.cause == LATE for dead in frame.rejected)
        assert counts == (len(rows.offsets), len(frame.rejected), len(frame.duplicates), late)
    return found


def admitted(task: Task[Payment], stored: Sequence[Stored], cuts: Sequence[int] = ()) -> list[Frame]:
    frames = []
    edges = sorted({0, len(stored), *cuts})
    for start, end in pairwise(edges):
        part = task.admit(poll(stored[start:end]))
        if part is not None:
            frames.append(decided(part))
    return frames


@st.composite
def logs(draw: st.DrawFn) -> list[Stored]:
    """Payments of three cards in disorder, some too late, some broken, some that decide fails on, some that have the
    id of one before them, at its time or at another, and offsets that are no record, as compaction and transactions
    leave them."""
    stored = []
    offset = draw(st.integers(0, 2))
    for kind, minute in draw(st.lists(st.tuples(st.sampled_from("ppppbkxcd"), st.integers(0, 250)), max_size=25)):
        amount = {"x": 13.0}.get(kind, float(minute))
        made = payment(offset, minute, amount, card="abc"[minute % 3])
        if kind in "cd" and stored:
            first = stored[minute % len(stored)]
            made = Stored(offset, first.value, first.key)
        if kind == "d" and made.value.endswith(b"}"):
            event = json.loads(made.value)
            event["time"] = START_MS + minute * 60_000
            made = Stored(offset, json.dumps(event).encode(), made.key)
        if kind == "b":
            made = Stored(offset, made.value[:-3], made.key)
        if kind == "k":
            made = Stored(offset, made.value, b"another")
        stored.append(replace(made, replays=offset if offset % 3 == 2 else 0))
        offset += 1 + (minute % 5 == 0)
    return stored


def expected(stored: Sequence[Stored]) -> dict[int, tuple[Any, ...]]:
    """Payments, spent, amount before and holds of what is decided; of the rejected words of the reason; of duplicates
    nothing."""
    found: dict[int, tuple[Any, ...]] = {}
    seen: list[dict[str, Any]] = []
    counted: list[dict[str, Any]] = []
    highest = 0
    for each in stored:
        try:
            event = json.loads(each.value)
        except ValueError:
            found[each.offset] = ("truncated",)
            continue
        if each.key == b"another":
            found[each.offset] = ("keyed by",)
            continue
        highest = max(highest, event["time"])
        event["seen_ms"], event["offset"] = highest, each.offset
        known = any(other["id"] == event["id"] and highest - other["seen_ms"] <= HORIZON_MS for other in counted)
        if known and not count_replays(each.headers):
            found[each.offset] = ()
            continue
        if event["time"] < highest - HOUR_MS:
            found[each.offset] = ("late",)
            continue
        copies = [other for other in seen if known and says_the_same(other, event)]
        at = copies[-1] if copies else event  # a replay does not count again
        if not copies:
            seen.append(event)
        if not known:
            counted.append(event)
        if event["amount"] == 13:
            found[each.offset] = ("decide raised ValueError: unlucky",)
            continue
        mine = [other for other in seen if other["card"] == event["card"] and place(other) <= place(at)]
        hour = [other for other in mine if other["time"] > event["time"] - HOUR_MS]
        spent = sum(other["amount"] for other in mine if other["time"] > event["time"] - 2 * HOUR_MS)
        last = max((other for other in hour if other is not at), key=place, default={"amount": np.nan})
        found[each.offset] = (len(hour), spent, last["amount"], 1 if event["amount"] > 50 else 0)
    return found


def says_the_same(event: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(event[name] == other[name] for name in ("card", "time", "amount"))


def place(event: Mapping[str, Any]) -> tuple[int, int]:
    """Its place among the events of its card."""
    return event["time"], event["offset"]


CAUSE = {
    "truncated": "parse",
    "keyed by": "key",
    "late": "late",
    "decide raised ValueError: unlucky": "decide",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_every_record_is_decided_or_rejected_as_the_definition_says(stored: list[Stored]) -> None:
    found = outcomes(admitted(new_task(), stored))
    wanted = expected(stored)
    assert sorted(found) == sorted(wanted)
    for offset, answer in wanted.items():
        if not answer:
            assert found[offset] == "duplicate"
        elif len(answer) == 1:
            assert answer[0] in found[offset][0]
            [record] = [each for each in stored if each.offset == offset]
            own, attempts = (("trace", b"%d" % offset), ("trace", None)), offset + 1 if offset % 3 == 2 else 1
            assert found[offset][2:7] == (record.key, record.value, CAUSE[answer[0]], own, attempts)
        else:
            _, _, features, actions = found[offset]
            read = [np.frombuffer(features[name])[0] for name in ("payments", "spent", "last_amount")]
            assert np.array_equal([*read, len(json.loads(actions or b"[]"))], answer, equal_nan=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.lists(st.integers(0, 25), max_size=5), st.integers(0, 25), st.integers(-1, 30))
def test_cut_stopped_and_restored_anywhere_the_frames_say_what_they_say_without_stopping(
    stored: list[Stored], cuts: list[int], stop: int, decided_through: int
) -> None:
    whole = outcomes(admitted(new_task(), stored))
    cuts = [cut for cut in cuts if cut <= len(stored)]
    stop %= len(stored) + 1
    task = new_task()
    frames = admitted(task, stored[:stop], [cut for cut in cuts if cut < stop])
    assert _covered(frames) == list(range(task.next_offset))
    snapshot = decode_checkpoint(encode_checkpoint(task.snapshot(log_offset=7)))
    assert (snapshot.position.offset, snapshot.position.log_offset) == (task.next_offset, 7)
    through = max(decided_through, snapshot.position.offset - 1)
    restored = new_task(snapshot.position.offset, through, checkpoint=snapshot)
    assert restored.watermark_ms == task.watermark_ms
    again = admitted(restored, stored[stop:], [cut - stop for cut in cuts if cut > stop])
    assert _covered(again) == list(range(through + 1, restored.next_offset))
    assert outcomes(frames) | outcomes(again) == {
        offset: outcome for offset, outcome in whole.items() if offset < snapshot.position.offset or offset > through
    }
    assert restored.snapshot(0).position.max_time_ms == _highest(stored)


def _covered(frames: Sequence[Frame]) -> list[int]:
    """All offsets that stand in the headers' ranges, in the order of the frames: without gaps, each once."""
    return [offset for frame in frames for offset in range(frame.header.first, frame.header.last + 1)]


def _highest(stored: Sequence[Stored]) -> int | None:
    whole = [each for each in stored if each.key != b"another" and each.value.endswith(b"}")]
    return max((json.loads(each.value)["time"] for each in whole), default=None)


def test_the_watermark_follows_the_highest_time_and_never_falls() -> None:
    task = new_task()
    assert task.watermark_ms is None
    seen = []
    for offset, minute in enumerate([0, 90, 30, 120, 60]):
        task.admit(poll([payment(offset, minute)]))
        assert task.watermark_ms is not None
        seen.append((task.watermark_ms - START_MS) // 60_000)
    assert seen == [-60, 30, 30, 60, 60]


def test_a_row_exactly_at_the_watermark_is_in_time_and_one_before_it_is_late() -> None:
    part = new_task().admit(poll([payment(0, 60), payment(1, 0), payment(2, -1)]))
    assert part is not None
    assert part.records.offsets[part.rows].tolist() == [0, 1]
    [late] = part.rejected
    assert late.offset == 2
    assert late.reason == f"late: its time {START_MS - 60_000} lies before the watermark {START_MS}"
    assert late.cause == LATE


def test_a_rejected_record_does_not_move_the_watermark() -> None:
    task = new_task()
    task.admit(poll([payment(0, 0), Stored(1, payment(1, 600).value, b"wrong key")]))
    assert task.watermark_ms == START_MS - HOUR_MS


def fates(*stored: Stored, task: Task[Payment] | None = None) -> dict[int, str]:
    """What became of each offset, in a word."""
    [frame] = admitted(task or new_task(), stored)
    found = dict.fromkeys(frame.decided.offsets.tolist(), "decided")
    found |= {dead.offset: LATE if dead.cause == LATE else "rejected" for dead in frame.rejected}
    return dict(sorted((found | dict.fromkeys(frame.duplicates, "duplicate")).items()))


def test_of_several_copies_the_first_that_counts_wins() -> None:
    found = fates(
        Stored(0, b"{", b"c"),
        payment(1, 100, event_id="a"),
        Stored(2, payment(2, 100, event_id="b").value, b"wrong key"),
        payment(3, 10, event_id="b"),
        payment(4, 100, event_id="b"),
        payment(5, 100, event_id="a"),
        payment(6, 100, event_id="b"),
    )
    assert list(found.values()) == ["rejected", "decided", "rejected", "late", "decided", "duplicate", "duplicate"]


def test_a_dead_letter_that_was_sent_again_is_no_copy_of_the_record_that_became_one() -> None:
    failing, again = payment(0, 100, 13, event_id="a"), payment(1, 100, 1, event_id="a")
    assert list(fates(failing, again).values()) == ["rejected", "duplicate"]
    assert list(fates(failing, replace(again, replays=1)).values()) == ["rejected", "decided"]


@pytest.mark.parametrize("stop", range(3))
def test_a_dead_letter_that_was_sent_again_counts_once_in_the_features(stop: int) -> None:
    failing, other = payment(0, 100, 13), payment(1, 90, 5)
    again, later = Stored(2, failing.value, failing.key, replays=1), payment(3, 110, 7)
    task = new_task()
    admitted(task, [failing, other][:stop])
    restored = decode_checkpoint(encode_checkpoint(task.snapshot(log_offset=7)))
    task = new_task(stop, checkpoint=restored)
    *_, frame = admitted(task, [failing, other, again, later][stop:])
    assert (frame.decided.features["payments"][-1], frame.decided.features["spent"][-1]) == (3, 13 + 5 + 7)


@pytest.mark.parametrize("stop", range(4))
def test_a_copy_of_an_event_from_before_a_checkpoint_is_a_duplicate(stop: int) -> None:
    stored = [payment(0, 0, event_id="a"), payment(1, 40), payment(2, 80, event_id="a"), payment(3, 91, event_id="a")]
    task = new_task()
    before = admitted(task, stored[:stop])
    after = admitted(new_task(stop, checkpoint=task.snapshot(0)), stored[stop:])
    assert [offset for frame in (*before, *after) for offset in frame.duplicates] == [2]


def test_copies_that_stand_in_the_log_already_are_not_logged_again() -> None:
    stored = [payment(at, 0, event_id="a") for at in range(5)]
    part = new_task(decided_through=2).admit(poll(stored))
    assert part is not None
    assert (part.first, part.last, list(part.duplicates), list(part.rows)) == (3, 4, [3, 4], [])


def test_a_copy_touches_no_feature() -> None:
    part = new_task().admit(poll([payment(0, 0, 5.0, event_id="a"), payment(1, 1, 5.0, event_id="a"), payment(2, 2)]))
    assert part is not None
    assert part.duplicates == [1]
    assert part.features["payments"].tolist() == [1.0, 2.0]
    assert part.features["spent"].tolist() == [5.0, 6.0]


def test_an_exact_copy_is_never_decided_again_however_late_it_comes() -> None:
    """Within the horizon it is a duplicate; behind it, and so behind the lateness, it is late."""
    for minutes in range(0, 300, 10):
        found = fates(payment(0, 0, event_id="a"), payment(1, minutes), payment(2, 0, event_id="a"))
        assert found[2] == ("duplicate" if minutes <= 90 else "late")


def test_an_event_that_decide_fails_on_has_happened_and_its_copy_is_a_duplicate() -> None:
    assert list(fates(payment(0, 0, 13, event_id="a"), payment(1, 0, 13, event_id="a")).values()) == [
        "rejected",
        "duplicate",
    ]


def test_with_deduplication_off_copies_are_events_like_any_other() -> None:
    task = Task(PIPELINE, replace(SETTINGS, deduplicate_ms=None), 3, next_offset=0, decided_through=-1)
    assert list(fates(payment(0, 0, event_id="a"), payment(1, 0, event_id="a"), task=task).values()) == ["decided"] * 2
    assert not [name for name in task.snapshot(0).state if name.startswith(".")]


def test_a_poll_of_nothing_but_copies_is_a_frame_that_covers_them() -> None:
    task = new_task()
    task.admit(poll([payment(0, 0, event_id="a")]))
    part = task.admit(poll([payment(1, 0, event_id="a"), payment(4, 0, event_id="a")]))
    assert part is not None
    frame = decode_whole(decided(part))
    assert (frame.header.first, frame.header.last, list(frame.duplicates)) == (1, 4, [1, 4])
    assert (frame.header.decided, frame.header.rejected, frame.header.duplicates) == (0, 0, 2)


def decode_whole(frame: Frame) -> Frame:
    field, value = encode_frame(frame)
    return decode_frame(decode_header([field]), value)


def test_the_first_event_of_a_partition_may_lie_absurdly_far_back_and_the_next_one_puts_the_watermark_right() -> None:
    task = new_task()
    assert list(fates(payment(0, -(START_MS // 60_000)), payment(1, 0), payment(2, -61), task=task).values()) == [
        "decided",
        "decided",
        "late",
    ]
    assert task.watermark_ms == START_MS - HOUR_MS


def test_a_time_before_1970_is_rejected_and_moves_no_watermark() -> None:
    task = new_task()
    assert list(fates(payment(0, -(START_MS // 60_000) - 1), task=task).values()) == ["rejected"]
    assert task.watermark_ms is None


def test_a_poll_that_is_decided_already_only_rebuilds_state() -> None:
    task = new_task(decided_through=1)
    assert task.admit(poll([payment(0, 0), payment(1, 1)])) is None
    part = task.admit(poll([payment(2, 2)]))
    assert part is not None
    assert (part.first, part.last, part.features["payments"].tolist()) == (2, 2, [3.0])


def test_a_poll_that_is_decided_in_part_gives_the_rest() -> None:
    stored = [payment(0, 0), Stored(1, b"broken", b"c"), payment(2, 2), Stored(3, b"broken", b"c"), payment(4, 4)]
    part = new_task(decided_through=2).admit(poll(stored))
    assert part is not None
    assert (part.first, part.last) == (3, 4)
    assert [each.id for each in part.events] == ["4"]
    assert part.features["payments"].tolist() == [3.0]
    assert part.append_ms.tolist() == [START_MS + 4]
    assert [dead.offset for dead in part.rejected] == [3]


def test_offsets_that_hold_no_record_are_covered_by_the_next_frame() -> None:
    task = new_task()
    part = task.admit(poll([payment(5, 0), payment(9, 1)]))
    assert part is not None
    assert (part.first, part.last) == (0, 9)
    following = task.admit(poll([payment(20, 2)]))
    assert following is not None
    assert (following.first, following.last) == (10, 20)


@pytest.mark.parametrize("offset", [0, 4])
def test_records_that_come_again_are_refused_and_change_nothing(offset: int) -> None:
    task = new_task()
    task.admit(poll([payment(at, at) for at in range(5)]))
    with pytest.raises(LogError, match=rf"payments\[3\]: offset {offset} came again, 5 was next"):
        task.admit(poll([payment(offset, 10)]))
    part = task.admit(poll([payment(5, 5)]))
    assert part is not None
    assert part.features["payments"].tolist() == [6.0]


def test_a_poll_of_nothing_changes_nothing() -> None:
    task = new_task(4)
    assert task.admit(poll([])) is None
    assert (task.next_offset, task.watermark_ms) == (4, None)


def test_a_poll_of_nothing_but_broken_records_is_a_frame_of_dead_letters() -> None:
    part = new_task().admit(poll([Stored(0, b"{", b"c"), Stored(1, b"}", b"c")]))
    assert part is not None
    frame = decided(part)
    encode_frame(frame)
    assert (frame.header.first, frame.header.last, frame.header.decided, frame.header.rejected) == (0, 1, 0, 2)


def test_a_snapshot_is_not_touched_by_what_comes_after_it() -> None:
    task = new_task()
    task.admit(poll([payment(0, 0)]))
    snapshot = task.snapshot(0)
    before = encode_checkpoint(snapshot)
    task.admit(poll([payment(1, 1), payment(2, 2, card="d")]))
    assert encode_checkpoint(snapshot) == before


def test_forgotten_keys_free_their_memory_and_nothing_else_changes() -> None:
    task = new_task()
    task.admit(poll([payment(at, 0, card=f"c{at}") for at in range(100)]))
    assert task.keys == 200  # each Features class keeps its own
    for at in range(100, 110):  # each poll sweeps a part of the keys
        part = task.admit(poll([payment(at, 60 * 24)]))
    assert task.keys == 2
    assert part is not None
    assert part.features["payments"].tolist() == [10.0]


# Deciding a slice.


def test_a_frame_says_what_decided_its_rows_and_with_which_versions() -> None:
    part = new_task().admit(poll([payment(0, 0, 60), payment(1, 1, 13), payment(2, 2, 1)]))
    assert part is not None
    scores = {"risk": np.array([0.1, 0.2, 0.3]), "embedding": np.arange(6.0).reshape(3, 2)}
    frame = decide(PIPELINE, SETTINGS, part, Outcome(scores, {"risk": "v2"}, "model"), STAGES)
    assert [REASONS[each] for each in frame.decided.reasons] == ["model", "model"]
    assert frame.decided.versions == {"risk": "v2"}
    assert frame.decided.scores["risk"].tolist() == [0.1, 0.3]
    assert frame.decided.scores["embedding"].tolist() == [[0, 1], [4, 5]]
    assert frame.decided.offsets.tolist() == [0, 2]
    assert frame.header.actions == 1
    assert [(dead.offset, dead.reason) for dead in frame.rejected] == [(1, "decide raised ValueError: unlucky")]
    assert frame.stages == STAGES


def test_a_dead_letter_that_decide_raised_carries_the_innermost_calls() -> None:
    part = new_task().admit(poll([payment(0, 0, 13), Stored(1, b"{", b"c")]))
    assert part is not None
    unlucky, broken = decided(part).rejected
    assert unlucky.stack is not None
    assert unlucky.stack.endswith('    raise ValueError("unlucky")\nValueError: unlucky\n')
    assert broken.stack is None


def test_an_exception_whose_words_nothing_can_encode_is_a_dead_letter_like_any_other() -> None:
    def decide_badly(payment: Payment) -> Iterator[Action]:
        raise ValueError("half a pair: \ud800")

    part = new_task().admit(poll([payment(0, 0)]))
    assert part is not None
    frame = decide(Pipeline(source=Payment, decide=decide_badly), SETTINGS, part, Outcome({}, {}, "rules"), STAGES)
    encode_frame(frame)
    assert frame.rejected[0].reason == "decide raised ValueError: half a pair: \\ud800"


def test_headers_are_decoded_only_for_dead_letters_and_once_a_poll() -> None:
    calls = []

    def counting(records: Records) -> Records:
        return replace(records, headers=lambda: calls.append(1) or records.headers())

    task = new_task()
    fine = task.admit(counting(poll([payment(0, 0), payment(1, 1)])))
    assert fine is not None
    decided(fine)
    assert calls == []
    task.admit(counting(poll([Stored(at, b"{", b"c") for at in range(2, 9)])))
    assert calls == [1]


def test_dead_letters_of_all_causes_stand_in_offset_order() -> None:
    stored = [payment(0, 600, 13), Stored(1, b"{", b"c"), payment(2, 600, 13), payment(3, 0), payment(4, 600, 13)]
    part = new_task().admit(poll(stored))
    assert part is not None
    assert [dead.offset for dead in decided(part).rejected] == [0, 1, 2, 3, 4]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=5))
def test_what_is_merged_for_the_model_is_split_again_for_each_partition(sizes: list[int]) -> None:
    parts = []
    for size in [*sizes, 1]:
        part = new_task().admit(poll([payment(at, at, at + size / 10) for at in range(size)]))
        parts += [part] if part else []
    merged = merge_inputs(parts, frozenset({"amount", "payments", "card"}))
    assert list(merged) == ["amount", "card", "payments"]
    assert {len(column) for column in merged.values()} == {sum(sizes) + 1}
    failed: dict[int, Exception] = {row: ValueError(str(row)) for row in range(sum(sizes) + 1)}
    start = 0
    for part, own in zip(parts, split_outcome(Outcome(merged, {}, "model", failed), parts), strict=True):
        assert {name: column.tolist() for name, column in own.scores.items()} == {
            name: part.inputs[name].tolist() for name in merged
        }
        assert {row: str(error) for row, error in own.failed.items()} == {
            row: str(start + row) for row in range(len(part.rows))
        }
        start += len(part.rows)

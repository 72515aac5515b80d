"""Changed declarations: state that fits is kept, the rest made from the log, as if it had been declared all along."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.event import Event
from app.features import Features, count, distinct, latest, maximum, mean, time_since_last, total
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from app.runtime.history import Milestone
from app.runtime.rebuild import fit, needed_from, reach_ms, rebuild, up_to
from app.runtime.task import Task, TaskSettings
from app.sources import Records

START_MS = 1_600_000_000_000
MINUTE_MS, HOUR_MS = 60_000, 3_600_000


class Payment(Event, frozen=True):
    card: str
    shop: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")
    spent = total("amount", last="2h")


class CardShops(Features, of=Payment, by="card", ttl="9h"):
    shops = distinct("shop", last="30m")
    highest = maximum("amount", last="3h")


class CardLife(Features, of=Payment, by="card", ttl="5h"):
    orders = count()
    before = latest("amount")
    idle = time_since_last(last="1h")


def under_the_name(name: str, features: type[Features]) -> type[Features]:
    features.__name__ = name
    return features


class Changed(Features, of=Payment, by="card"):
    lately = count(last="10m")
    usual = mean("amount", last="4h")


class Forever(Features, of=Payment, by="card"):
    orders = count()


CardHistory2 = under_the_name("CardHistory", Changed)
CardLife2 = under_the_name("CardLife", Forever)


def declared(*features: type[Features]) -> Pipeline[Payment]:
    return Pipeline(source=Payment, features=features)


class Stored(NamedTuple):
    offset: int
    value: bytes
    key: bytes


def payment(offset: int, minute: float, card: str = "a", shop: str = "s", amount: float = 1.0) -> Stored:
    time_ms = START_MS + round(minute * MINUTE_MS)
    record = {"id": str(offset), "time": time_ms, "card": card, "shop": shop, "amount": amount}
    return Stored(offset, json.dumps(record).encode(), card.encode())


def poll(stored: Sequence[Stored]) -> Records:
    return Records(
        topic="payments",
        partition=0,
        offsets=np.array([each.offset for each in stored], dtype=np.int64),
        append_ms=np.full(len(stored), START_MS + 10**9),
        keys=[each.key for each in stored],
        values=[each.value for each in stored],
        headers=lambda: [[] for _ in stored],
    )


def settings_of(lateness_ms: int = HOUR_MS, deduplicate_ms: int | None = None) -> TaskSettings:
    return TaskSettings("fraud", "payments", lateness_ms, max_ahead_ms=10**15, deduplicate_ms=deduplicate_ms)


def new_task(
    pipeline: Pipeline[Payment], used: TaskSettings, offset: int = 0, checkpoint: Checkpoint | None = None
) -> Task[Payment]:
    return Task(pipeline, used, 0, next_offset=offset, decided_through=offset - 1, checkpoint=checkpoint)


def features_from(task: Task[Payment], stored: Sequence[Stored]) -> dict[int, dict[str, float]]:
    """Of each event that is taken in, its features."""
    part = task.admit(poll(stored)) if stored else None
    if part is None:
        return {}
    offsets = part.records.offsets[part.rows].tolist()
    return {
        offset: {name: float(column[row]) for name, column in part.features.items()}
        for row, offset in enumerate(offsets)
    }


def checkpointed(
    pipeline: Pipeline[Payment], used: TaskSettings, stored: Sequence[Stored], cuts: Sequence[int] = ()
) -> Checkpoint:
    """What a task has saved behind these records, having saved at the cuts before."""
    task = new_task(pipeline, used)
    for start, stop in pairwise(sorted({0, *(min(cut, len(stored)) for cut in cuts), len(stored)})):
        task.admit(poll(stored[start:stop]))
        task.snapshot(0)
    return decode_checkpoint(encode_checkpoint(task.snapshot(0)))


def go_on(
    pipeline: Pipeline[Payment], used: TaskSettings, checkpoint: Checkpoint, stored: Sequence[Stored], polls: int = 1
) -> tuple[Task[Payment], Milestone]:
    """A task at the checkpoint with the state of `pipeline`'s features; it sees no more of the log than is said to be
    needed. And where that begins."""
    end = checkpoint.position.offset
    start = needed_from(fit(pipeline, used, checkpoint).features, used, checkpoint)
    needed = [each for each in stored if each.offset >= start.offset]
    log = [poll(needed[at : at + polls]) for at in range(0, len(needed), polls)]
    renewed = rebuild(pipeline, used, checkpoint, start, up_to(log, end))
    return new_task(pipeline, used, end, decode_checkpoint(encode_checkpoint(renewed))), start


AMOUNTS = st.integers(0, 999).map(float)


@st.composite
def logs(draw: st.DrawFn, amounts: st.SearchStrategy[float] = AMOUNTS) -> list[Stored]:
    """Payments in disorder over hours and days, some too late, some broken, some followed by one copy of theirs, with
    offsets that hold no record."""
    stored: list[Stored] = []
    minute, offset = 0.0, draw(st.integers(0, 2))
    steps = st.tuples(
        st.sampled_from([0, 1, 5, 10, 29, 30, 59, 60, 121, 600]),
        st.sampled_from([0, 0, 1, 30, 58, 59, 60, 61, 119, 180]),
        st.sampled_from("aabc"),
        st.sampled_from("st"),
        amounts,
        st.sampled_from("ppppppbcc"),
    )
    uncopied: list[Stored] = []
    for later, delay, card, shop, amount, kind in draw(
        st.lists(steps, min_size=draw(st.sampled_from([0, 30])), max_size=40)
    ):
        minute += later
        made = payment(offset, minute - delay, card, shop, amount)
        if kind == "b":
            made = Stored(offset, made.value[:-2], made.key)
        elif kind == "c" and uncopied:
            first = uncopied.pop(draw(st.sampled_from([0, -1])))
            made = Stored(offset, first.value, first.key)
        else:
            uncopied.append(made)
        stored.append(made)
        offset += 1 + (later == 10)
    return stored


cuts = st.just(range(40)) | st.lists(st.integers(0, 40), max_size=6)
"""Where checkpoints are written: here and there, or behind every record."""
HISTORIES, LIVES = [None, CardHistory, CardHistory2], [None, CardLife, CardLife2]


@st.composite
def declarations(draw: st.DrawFn, *, windowed: bool = False) -> list[type[Features]]:
    chosen = [
        draw(st.sampled_from(HISTORIES)),
        draw(st.sampled_from([None, CardShops])),
        None if windowed else draw(st.sampled_from(LIVES)),
    ]
    return draw(st.permutations([each for each in chosen if each is not None]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    logs(),
    declarations(),
    declarations(),
    st.sampled_from([HOUR_MS, 2 * HOUR_MS]),
    st.tuples(*[st.sampled_from([None, HOUR_MS, 3 * HOUR_MS])] * 2),
    cuts,
    st.integers(0, 40),
    st.integers(1, 40),
)
def test_after_a_change_features_are_those_of_a_run_that_had_the_new_declarations_from_the_start(
    stored: list[Stored],
    old: list[type[Features]],
    new: list[type[Features]],
    new_lateness_ms: int,
    deduplicate_ms: tuple[int | None, int | None],
    cuts: Sequence[int],
    change: int,
    polls: int,
) -> None:
    before, after = stored[:change], stored[change:]
    checkpoint = checkpointed(declared(*old), settings_of(HOUR_MS, deduplicate_ms[0]), before, cuts)
    used = settings_of(new_lateness_ms, deduplicate_ms[1])
    whole = new_task(declared(*new), used)
    features_from(whole, before)
    task, _ = go_on(declared(*new), used, checkpoint, stored, polls)
    assert task.watermark_ms == whole.watermark_ms
    np.testing.assert_equal(features_from(task, after), features_from(whole, after))


WILD = st.sampled_from([0.1, -3.7, 1e16, -1e16, 1e16 + 2, 1e-3, 99.99])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs(WILD), declarations(windowed=True), cuts, st.integers(0, 40))
def test_sums_of_wild_numbers_are_the_same_to_the_last_bit_where_the_log_is_whole_and_else_to_twelve_digits(
    stored: list[Stored], new: list[type[Features]], cuts: Sequence[int], change: int
) -> None:
    before, after = stored[:change], stored[change:]
    checkpoint = checkpointed(declared(), settings_of(), before, cuts)
    whole = new_task(declared(*new), settings_of())
    features_from(whole, before)
    expected = features_from(whole, after)
    task, start = go_on(declared(*new), settings_of(), checkpoint, stored)
    found = features_from(task, after)
    if start.offset == 0:
        np.testing.assert_equal(found, expected)
    assert found.keys() == expected.keys()
    for offset, features in expected.items():
        assert found[offset] == pytest.approx(features, rel=1e-12, abs=1e-12, nan_ok=True)


HOURLY = [payment(at, at * 10.0, amount=float(at)) for at in range(300)]


def test_no_more_is_read_again_than_the_windows_need_and_an_eighth() -> None:
    checkpoint = checkpointed(declared(), settings_of(), HOURLY[:200], range(0, 200, 2))
    for features in (CardHistory, CardShops):
        start = needed_from([features], settings_of(), checkpoint)
        reach = reach_ms(features)
        assert reach is not None
        rows = (reach + HOUR_MS) / (10 * MINUTE_MS)
        assert 200 - rows * 8 / 7 - 3 <= start.offset <= 200 - rows


def test_features_without_a_window_need_all_since_the_partition_began() -> None:
    checkpoint = checkpointed(declared(), settings_of(), HOURLY[:200], range(0, 200, 2))
    assert needed_from([CardHistory, CardLife], settings_of(), checkpoint) == Milestone(0, None)
    assert [reach_ms(each) for each in (CardHistory, CardShops, CardLife)] == [2 * HOUR_MS, 3 * HOUR_MS, None]


def test_a_partition_without_an_event_needs_nothing() -> None:
    broken = [Stored(at, b"{", b"a") for at in range(5)]
    checkpoint = checkpointed(declared(), settings_of(), broken)
    assert needed_from([CardLife], settings_of(), checkpoint) == Milestone(5, None)


def names(classes: Sequence[type[Features]]) -> list[str]:
    return [each.__name__ for each in classes]


@pytest.mark.parametrize(
    ("new", "rebuilt"),
    [
        ([CardHistory, CardLife], []),
        ([CardLife, CardHistory], []),
        ([CardHistory], []),
        ([], []),
        ([CardHistory, CardShops, CardLife], ["CardShops"]),
        ([CardHistory2, CardLife], ["CardHistory"]),
        ([CardHistory2, CardLife2], ["CardHistory", "CardLife"]),
    ],
)
def test_only_what_was_added_or_changed_is_rebuilt(new: list[type[Features]], rebuilt: list[str]) -> None:
    checkpoint = checkpointed(declared(CardHistory, CardLife), settings_of(), HOURLY[:50])
    found = fit(declared(*new), settings_of(), checkpoint)
    assert names(found.features) == rebuilt
    kept = {name.partition("/")[0] for name in found.kept}
    assert kept == {each.__name__ for each in new} - set(rebuilt)


def test_a_class_that_only_got_another_name_keeps_its_state() -> None:
    class CardPast(Features, of=Payment, by="card"):
        payments = count(last="1h")
        spent = total("amount", last="2h")

    checkpoint = checkpointed(declared(CardHistory), settings_of(), HOURLY[:50])
    task, _ = go_on(declared(CardPast), settings_of(), checkpoint, [])
    assert features_from(task, HOURLY[50:51]) == {50: {"payments": 6.0, "spent": float(sum(range(39, 51)))}}


def test_with_another_lateness_nothing_fits() -> None:
    checkpoint = checkpointed(declared(CardHistory, CardLife), settings_of(), HOURLY[:50])
    found = fit(declared(CardHistory, CardLife), settings_of(2 * HOUR_MS), checkpoint)
    assert names(found.features) == ["CardHistory", "CardLife"]


def test_the_ids_that_tell_duplicates_stay_when_features_change() -> None:
    used = settings_of(HOUR_MS, 2 * HOUR_MS)
    kept = checkpointed(declared(CardHistory), used, HOURLY[:50])
    renewed = rebuild(declared(CardShops), used, kept, Milestone(50, None), ())
    assert {name.partition("/")[0] for name in renewed.state} == {".ids", "CardShops"}
    for name, array in kept.state.items():
        if name.startswith(".ids/"):
            np.testing.assert_array_equal(renewed.state[name], array)


@pytest.mark.parametrize(("old", "new", "changed"), [(None, HOUR_MS, 2), (HOUR_MS, MINUTE_MS, 2), (HOUR_MS, None, 1)])
def test_when_ids_are_remembered_for_another_time_all_is_rebuilt(
    old: int | None, new: int | None, changed: int
) -> None:
    checkpoint = checkpointed(declared(CardHistory), settings_of(HOUR_MS, old), HOURLY[:50])
    found = fit(declared(CardHistory), settings_of(HOUR_MS, new), checkpoint)
    assert found.changed == ("CardHistory", "the ids of the events")[:changed]


def test_what_was_late_when_it_came_is_late_again() -> None:
    checkpoint = checkpointed(declared(), settings_of(), HOURLY[:200])
    log = [payment(198, 600.0), *HOURLY[199:200]]
    renewed = rebuild(
        declared(CardLife), settings_of(), checkpoint, Milestone(198, START_MS + 119_700_000), [poll(log)]
    )
    task = new_task(declared(CardLife), settings_of(), 200, renewed)
    assert features_from(task, HOURLY[200:201])[200]["orders"] == 2


def test_a_log_is_read_up_to_an_offset_and_no_further() -> None:
    def polls() -> Any:
        yield poll(HOURLY[:4])
        yield poll(HOURLY[4:9])
        raise AssertionError("it was read further")

    read = list(up_to(polls(), 6))
    assert [each.offsets.tolist() for each in read] == [[0, 1, 2, 3], [4, 5]]
    assert [len(each.headers()) for each in read] == [4, 2]
    assert [len(each) for each in up_to([poll(HOURLY[7:9])], 5)] == [0]

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import CheckpointError
from app.features import Features, KeyedState, count, distinct, latest, mean, std, time_since_last, total
from app.features.keytable import hash_strings
from app.features.layout import utf8
from tests.unit.features.streams import (
    LATENESS_MS,
    Payment,
    Stream,
    assert_identical,
    busy_stream,
    make_stream,
    run,
    run_whole,
    streams,
    sweep,
)


class Windowed(Features, of=Payment, by="card"):
    payments = count(last=["1s", "4s"])
    spread = std("amount", last="4s")
    merchants = distinct("merchant", last="1s")


class Lifelong(Features, of=Payment, by="card", ttl="5s"):
    orders = count()
    spent = total("amount")
    previous = latest("amount")
    idle = time_since_last()


class Numbered(Features, of=Payment, by="account"):
    payments = count(last="1s")


def events(*times: int, card: str = "a", watermark_ms: list[int] | None = None) -> Stream:
    """Payments of 1.0 by one card at the given times."""
    size = len(times)
    columns = {
        "time": np.array(times),
        "card": np.array([card] * size, object),
        "merchant": np.array(["m"] * size, object),
        "amount": np.ones(size),
    }
    if watermark_ms is None:
        return Stream(columns, np.maximum.accumulate(times) - LATENESS_MS)
    return Stream(columns, np.array(watermark_ms))


def column(features: type[Features], name: str, stream: Stream) -> list[float]:
    return run_whole(features, stream)[name].tolist()


def test_a_window_begins_just_behind_its_length_and_ends_with_the_event() -> None:
    assert column(Windowed, "payments_1s", events(0, 1, 999, 1000, 1001)) == [1, 2, 3, 3, 3]


def test_an_event_does_not_see_later_times_that_stand_before_it() -> None:
    assert column(Windowed, "payments_1s", events(500, 900, 400, 900)) == [1, 2, 1, 4]


def test_an_event_at_the_watermark_still_sees_its_whole_window() -> None:
    out = column(Windowed, "payments_4s", events(1, 5000, 6000, 4000, watermark_ms=[-1999, 3000, 4000, 4000]))
    assert out == [1, 1, 2, 2]


def test_a_watermark_from_before_all_time_forgets_nothing() -> None:
    stream = events(0, 1, 2, watermark_ms=[np.iinfo(np.int64).min] * 3)
    assert column(Windowed, "payments_4s", stream) == [1, 2, 3]
    assert column(Lifelong, "orders", stream) == [1, 2, 3]


def test_the_event_before_is_the_last_one_by_event_time() -> None:
    class Previous(Features, of=Payment, by="card"):
        idle = time_since_last()
        idle_1s = time_since_last(last="1s")

    stream = events(0, 2000, 1000, 2000, 2999)
    assert column(Previous, "idle", stream)[1:] == [2.0, 1.0, 0.0, 0.999]
    assert np.isnan(column(Previous, "idle_1s", stream)).tolist() == [True, True, True, False, False]


def test_a_sum_of_very_different_numbers_is_exact() -> None:
    stream = events(0, 1, 2, 3)
    stream.columns["amount"] = np.array([1e16, 1.0, -1e16, 0.5])
    assert column(Lifelong, "spent", stream) == [1e16, 1e16, 1.0, 1.5]


def test_equal_values_have_no_deviation_at_all() -> None:
    stream = events(*range(100))
    stream.columns["amount"] = np.full(100, 0.1)
    assert column(Windowed, "spread", stream)[1:] == [0.0] * 99


def test_a_key_is_forgotten_when_the_watermark_is_its_ttl_past_its_newest_event() -> None:
    kept = events(0, 5000, watermark_ms=[-2000, 4999])
    assert column(Lifelong, "orders", kept) == [1, 2]
    forgotten = events(0, 5000, watermark_ms=[-2000, 5000])
    assert column(Lifelong, "orders", forgotten) == [1, 1]
    assert np.isnan(column(Lifelong, "previous", forgotten)[1])


def test_sweeping_forgets_the_keys_that_are_due_and_only_these() -> None:
    state = KeyedState(Lifelong, LATENESS_MS)
    run(state, [events(0, card="old"), events(3000, card="new")])
    assert sweep(state, 4999) == 0
    assert (sweep(state, 5000), state.keys) == (1, 1)
    assert (sweep(state, 8000), state.keys) == (1, 0)


def test_a_key_that_was_swept_and_one_that_was_not_go_on_alike() -> None:
    swept, idle = KeyedState(Windowed, LATENESS_MS), KeyedState(Windowed, LATENESS_MS)
    before, after = events(*range(40)), events(*range(10_000, 10_040))
    for state in (swept, idle):
        run(state, [before])
    assert sweep(swept, 8000) == 1
    assert_identical(run(swept, [after]), run(idle, [after]))
    assert_identical(swept.snapshot(), idle.snapshot())


def test_a_late_event_is_refused_and_changes_nothing() -> None:
    state = KeyedState(Windowed, LATENESS_MS)
    run(state, [events(10_000)])
    with pytest.raises(ValueError, match="row 1 has time 7999, behind its watermark 8000"):
        state.update(*events(10_000, 7_999))
    assert run(state, [events(10_000)])["payments_1s"].tolist() == [2]


@settings(max_examples=30, deadline=None)
@given(stream=streams())
def test_a_restored_state_saves_as_what_it_was_restored_from(stream: Stream) -> None:
    for features in (Windowed, Lifelong):
        state = KeyedState(features, LATENESS_MS)
        state.update(*stream)
        snapshot = state.snapshot()
        for array in snapshot.values():
            array.flags.writeable = False
        assert_identical(KeyedState.restore(features, LATENESS_MS, snapshot).snapshot(), snapshot)


def test_a_snapshot_does_not_change_with_the_state() -> None:
    stream = busy_stream(seed=5, size=200, keys=3)
    state = KeyedState(Windowed, LATENESS_MS)
    run(state, [stream.part(0, 100)])
    snapshot = state.snapshot()
    saved = {name: array.copy() for name, array in snapshot.items()}
    expected = run(state, [stream.part(100, 200)])
    assert_identical(snapshot, saved)
    restored = KeyedState.restore(Windowed, LATENESS_MS, snapshot)
    assert_identical(run(restored, [stream.part(100, 200)]), expected)


def test_a_state_of_another_declaration_or_lateness_is_refused() -> None:
    snapshot = KeyedState(Windowed, LATENESS_MS).snapshot()
    with pytest.raises(CheckpointError, match=r"Lifelong is .* replay the log"):
        KeyedState.restore(Lifelong, LATENESS_MS, snapshot)
    with pytest.raises(CheckpointError, match=r"with 2000 ms of lateness, .* with 2001 ms; replay the log"):
        KeyedState.restore(Windowed, 2001, snapshot)


def test_keys_are_told_apart_by_all_their_characters() -> None:
    names = ["", "a", "a\0", "\0a", "ab", "b" * 1000, "b" * 1001, "\u00e9", "e\u0301", "\U0001f600", "\ud83d"]
    cards = np.array(names, object)
    columns = {"time": np.zeros(11, np.int64), "card": cards, "merchant": cards, "amount": np.zeros(11)}
    state = KeyedState(Windowed, LATENESS_MS)
    for times in (1, 2):
        assert state.update(columns, np.zeros(11, np.int64))["payments_1s"].tolist() == [times] * 11
    assert state.keys == 11


@pytest.mark.parametrize("features", [Windowed, Numbered])
def test_many_thousand_keys_are_found_again_after_growth_and_restoring(features: type[Features]) -> None:
    random = np.random.default_rng(6)
    size = 60_000
    stream = make_stream(random, np.zeros(size, np.int64), np.zeros(size, np.int64), 30_000)
    key = stream.columns[features.by]
    _, numbers = np.unique(key.astype(str), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    expected = np.empty(size)
    starts = np.flatnonzero(np.r_[True, np.diff(numbers[order]) > 0])
    expected[order] = np.arange(size) - np.repeat(starts, np.diff(np.r_[starts, size])) + 1
    state = KeyedState(features, LATENESS_MS)
    out = run(state, [stream.part(0, 30_000)])
    state = KeyedState.restore(features, LATENESS_MS, state.snapshot())
    out2 = run(state, [stream.part(30_000, size)])
    name = features.columns()[0]
    assert np.concatenate([out[name], out2[name]]).tolist() == expected.tolist()
    assert state.keys == numbers.max() + 1


def test_memory_of_keys_that_come_and_go_stays_flat() -> None:
    state = KeyedState(Windowed, LATENESS_MS)
    random = np.random.default_rng(7)
    sizes = []
    for turn in range(40):
        columns = {
            "time": turn * 5_000 + np.sort(random.integers(0, 5_000, 5_000)),
            "card": np.array([f"{turn}-{card}" for card in random.zipf(1.3, 5_000) % 3_000], object),
            "merchant": np.array(["m"] * 5_000, object),
            "amount": random.normal(size=5_000),
        }
        state.update(columns, columns["time"] - LATENESS_MS)
        sweep(state, int(columns["time"][-1]) - LATENESS_MS)
        sizes.append(state.state_bytes)
    assert max(sizes[10:]) < 1.2 * sizes[10]


def test_a_hot_key_that_cools_down_gives_its_memory_to_others() -> None:
    state = KeyedState(Windowed, LATENESS_MS)
    hot = 20_000
    run(state, [events(*np.sort(np.random.default_rng(8).integers(0, 4_000, hot)).tolist())])
    grown = state.state_bytes
    for time in range(10_000, 60_000, 1_000):
        run(state, [events(time)])
        sweep(state, time - LATENESS_MS)
    cards = {f"card-{number}": number for number in range(4_000)}
    columns = {
        "time": np.full(4_000, 60_000),
        "card": np.array(list(cards), object),
        "merchant": np.array(["m"] * 4_000, object),
        "amount": np.ones(4_000),
    }
    state.update(columns, np.full(4_000, 58_000))
    assert state.state_bytes == grown


@settings(deadline=None)
@given(st.lists(st.text()))
def test_strings_become_their_bytes(strings: list[str]) -> None:
    data, starts = utf8(strings)
    assert [data[start:stop].tobytes().decode() for start, stop in pairwise(starts)] == strings


def test_hashes_are_those_of_every_process_and_spread() -> None:
    codes = np.empty(100_000, np.int64)
    hash_strings(*utf8([f"merchant-{number}" for number in range(100_000)]), codes)
    assert len(set(codes.tolist())) == 100_000
    assert len(set((codes & 0xFFFF).tolist())) > 45_000
    few = np.empty(3, np.int64)
    hash_strings(*utf8(["", "a", "merchant-12345"]), few)
    assert few.tolist() == [0, 510903276987443985, 2470565451151044337]


def test_the_mean_of_a_long_stream_does_not_drift() -> None:
    class Mean(Features, of=Payment, by="card"):
        usual = mean("amount", last="1s")

    size = 30_000
    stream = events(*range(0, size * 10, 10))
    amounts = np.where(np.arange(size) < size - 200, 1e15, 0.1) * np.random.default_rng(9).random(size)
    stream.columns["amount"] = amounts
    assert column(Mean, "usual", stream)[-1] == pytest.approx(np.mean(amounts[-100:]), rel=1e-14)

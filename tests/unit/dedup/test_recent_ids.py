"""Recent ids: what is a duplicate is a function of the log's prefix, by a definition that needs no memory bound."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dedup import RecentIds
from app.dedup.murmur3 import hash_ids
from app.dedup.recent_ids import LEAST_GROWTH, id_bytes

HORIZON_MS = 10
LATENESS_MS = 4
Event = tuple[str, int]


def stream(events: Sequence[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, the stream's time at each, and which are late."""
    ids = np.array([each for each, _ in events] + [None], object)[:-1]
    times_ms = np.array([time_ms for _, time_ms in events], np.int64)
    clock_ms = np.maximum.accumulate(times_ms)
    return ids, clock_ms, times_ms < clock_ms - LATENESS_MS


def marked(recent: RecentIds, events: Sequence[Event], cuts: Sequence[int] = ()) -> list[bool]:
    ids, clock_ms, late = stream(events)
    found: list[bool] = []
    for start, end in pairwise(sorted({0, len(events), *cuts})):
        found += recent.mark(ids[start:end], clock_ms[start:end], late[start:end]).tolist()
    return found


def by_definition(events: Sequence[Event]) -> list[bool]:
    """A duplicate has its id in common with an event before it that counted, not more than the horizon ago."""
    ids, clock_ms, late = stream(events)
    counted: list[int] = []
    found = []
    for at in range(len(events)):
        found.append(any(ids[at] == ids[one] and clock_ms[at] - clock_ms[one] <= HORIZON_MS for one in counted))
        if not (found[-1] or late[at]):
            counted.append(at)
    return found


names = st.sampled_from(["", "a", "b", "a\0", "aa", "ä", "x" * 40])
streams = st.lists(st.tuples(names, st.integers(0, 60)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(streams, st.lists(st.integers(0, 60)))
def test_duplicates_are_those_of_the_definition_however_the_log_is_cut(events: list[Event], cuts: list[int]) -> None:
    assert marked(RecentIds(HORIZON_MS), events, [cut for cut in cuts if cut <= len(events)]) == by_definition(events)


@settings(max_examples=100, deadline=None)
@given(streams, st.lists(st.integers(0, 60)))
def test_restored_at_every_point_it_goes_on_as_if_never_stopped(events: list[Event], cuts: list[int]) -> None:
    ids, clock_ms, late = stream(events)
    expected = by_definition(events)
    for stop in range(len(events) + 1):
        first = RecentIds(HORIZON_MS)
        for start, end in pairwise(sorted({0, stop, *(cut for cut in cuts if cut <= stop)})):
            first.mark(ids[start:end], clock_ms[start:end], late[start:end])
        restored = RecentIds.restore(HORIZON_MS, first.snapshot())
        assert restored.mark(ids[stop:], clock_ms[stop:], late[stop:]).tolist() == expected[stop:]


@settings(max_examples=100, deadline=None)
@given(streams, st.lists(st.integers(0, 60)))
def test_a_snapshot_is_the_same_to_the_last_bit_however_the_log_was_cut(events: list[Event], cuts: list[int]) -> None:
    whole, cut_up = RecentIds(HORIZON_MS), RecentIds(HORIZON_MS)
    marked(whole, events)
    marked(cut_up, events, [cut for cut in cuts if cut <= len(events)])
    again = RecentIds.restore(HORIZON_MS, cut_up.snapshot())
    for name, array in whole.snapshot().items():
        assert array.tobytes() == cut_up.snapshot()[name].tobytes() == again.snapshot()[name].tobytes()


def test_hundreds_of_thousands_of_ids_are_told_apart_while_the_table_grows_and_forgets() -> None:
    random = np.random.default_rng(5)
    recent, horizon_ms = RecentIds(100_000), 100_000
    newest: dict[int, int] = {}
    for start_ms in range(0, 300_000, 5_000):
        clock_ms = np.arange(start_ms, start_ms + 5_000)
        numbers = random.integers(0, 400_000, 5_000)
        expected = []
        for number, now_ms in zip(numbers.tolist(), clock_ms.tolist(), strict=True):
            expected.append(now_ms - newest.get(number, -(10**9)) <= horizon_ms)
            if not expected[-1]:
                newest[number] = now_ms
        ids = np.array([f"payment-{number}" for number in numbers], object)
        assert recent.mark(ids, clock_ms, np.zeros(5_000, bool)).tolist() == expected
    assert 60_000 < recent.count <= 100_000


def test_memory_stays_what_a_horizon_of_ids_takes_and_no_id_takes_more_than_45_bytes() -> None:
    recent = RecentIds(50_000)
    sizes = []
    for start_ms in range(0, 500_000, 5_000):
        ids = np.array([f"id-{number}" for number in range(start_ms, start_ms + 5_000)], object)
        assert not recent.mark(ids, np.arange(start_ms, start_ms + 5_000), np.zeros(5_000, bool)).any()
        sizes.append(recent.nbytes)
    assert recent.count == 50_001
    assert len(set(sizes[12:])) == 1
    assert recent.nbytes / recent.count <= 40 * 9 / 8


def test_when_the_time_jumps_everything_is_forgotten_at_once_and_freed_little_by_little() -> None:
    recent = RecentIds(1_000)
    many = LEAST_GROWTH
    ids = np.array([str(number) for number in range(many)], object)
    zeros, none = np.zeros(many, np.int64), np.zeros(many, bool)
    recent.mark(ids, zeros, none)
    assert recent.mark(ids, zeros + 1_000, none).all()
    assert not recent.mark(ids[:1], zeros[:1] + 1_001, none[:1]).any()
    assert recent.count == many - 1
    assert len(recent.snapshot()["codes"]) == 1
    assert not recent.mark(ids[1:], zeros[1:] + 1_001, none[1:]).any()
    assert recent.count == many


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "00000000000000000000000000000000"),
        ("hello", "cbd8a7b341bd9b025b1e906a48ae1d19"),
        ("hello, world", "342fac623a5ebc8e4cdcbc079642414d"),
        ("19 Jan 2038 at 3:14:07 AM", "b89e5988b737affc664fc2950231b2cb"),
        ("The quick brown fox jumps over the lazy dog.", "cd99481f9ee902c9695da1a38987b6e7"),
    ],
)
def test_hashes_are_those_that_every_murmur3_gives(text: str, code: str) -> None:
    codes = np.empty((1, 2), np.uint64)
    hash_ids(*id_bytes(np.array([text], object)), codes)
    assert "".join(f"{word:016x}" for word in codes[0].tolist()) == code


@given(st.lists(st.text(alphabet="ab\0ä💳\ud800"), max_size=20))
def test_ids_are_cut_apart_at_their_own_bounds_whatever_characters_they_have(texts: list[str]) -> None:
    data, starts, stops = id_bytes(np.array([*texts, None], object)[:-1])
    found = [data[start:stop].tobytes() for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    assert found == [text.encode(errors="surrogatepass") for text in texts]


def test_ids_of_every_kind_are_hashed_by_what_was_compiled_for_the_first_ones() -> None:
    for ids in ([""], ["a", "b"], ["a\0b", "c"], []):
        rows = len(ids)
        RecentIds(0).mark(np.array(ids, object), np.zeros(rows, np.int64), np.zeros(rows, np.bool_))
    assert len(hash_ids.signatures) == 1

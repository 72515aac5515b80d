"""The headers of a replayed record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.log.replayed import REPLAYS_HEADER, count_replays, original_headers, replay_headers, replay_of

HEADERS = st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=4).map(tuple)


@given(HEADERS, st.integers(1, 10**6))
def test_a_replayed_record_says_whose_which_replay_it_is_and_keeps_its_own_headers(own, replays: int) -> None:
    sent = replay_headers(own, "3/1234", replays)
    assert original_headers(sent) == own
    assert count_replays(sent) == replays
    assert replay_of(sent) == ("3/1234", replays)


@given(HEADERS)
def test_a_record_that_comes_by_itself_has_no_replay_behind_it(own) -> None:
    assert (count_replays(own), replay_of(own)) == (0, None)


@pytest.mark.parametrize("value", [None, b"", b"-1", b"many", b"\xff"])
def test_a_count_that_nobody_can_read_is_none(value: bytes | None) -> None:
    assert count_replays([(REPLAYS_HEADER, value)]) == 0

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from kafka.errors import InvalidProducerEpochError, OutOfOrderSequenceNumberError

from app.broker.batch import BatchHeader, read_header
from app.broker.producers import Producers
from tests.unit.broker.batches import make_batch


def header(sequence: int, count: int = 1, *, epoch: int = 0, producer_id: int = 9, at: int = 0) -> BatchHeader:
    made = make_batch([b"x"] * count, producer_id=producer_id, epoch=epoch, sequence=sequence)
    return read_header(made)._replace(base_offset=at)


@pytest.fixture
def producers() -> Producers:
    """With seven batches of two records at sequences 0, 2 … 12 and offsets 100, 102 … 112."""
    producers = Producers()
    for sequence in range(0, 14, 2):
        producers.remember(header(sequence, 2, at=100 + sequence))
    return producers


def test_the_last_five_batches_are_known_by_their_sequence(producers: Producers) -> None:
    for sequence in range(4, 14, 2):
        duplicate = producers.find_duplicate(header(sequence, 2))
        assert duplicate is not None
        assert duplicate.base_offset == 100 + sequence


def test_the_next_batch_in_sequence_is_new(producers: Producers) -> None:
    assert producers.find_duplicate(header(14)) is None


@pytest.mark.parametrize("sequence", [15, 13, 2, 0])
def test_a_gap_an_overlap_and_a_batch_too_old_are_out_of_order(producers: Producers, sequence: int) -> None:
    with pytest.raises(OutOfOrderSequenceNumberError, match="14 is next"):
        producers.find_duplicate(header(sequence))


def test_a_new_epoch_begins_at_0_and_ends_the_old_one(producers: Producers) -> None:
    with pytest.raises(OutOfOrderSequenceNumberError):
        producers.find_duplicate(header(14, epoch=1))
    assert producers.find_duplicate(header(0, 2, epoch=1)) is None
    producers.remember(header(0, 2, epoch=1))
    with pytest.raises(InvalidProducerEpochError):
        producers.find_duplicate(header(14, epoch=0))


def test_an_unknown_producer_may_start_anywhere(producers: Producers) -> None:
    assert producers.find_duplicate(header(500, producer_id=10)) is None


def test_a_producer_that_is_not_idempotent_is_never_a_duplicate() -> None:
    producers = Producers()
    plain = read_header(make_batch([b"x"]))
    producers.remember(plain)
    assert producers.find_duplicate(plain) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=30), st.integers(0, 2**31 - 1))
def test_resending_up_to_five_batches_keeps_each_once(plan: list[tuple[int, int]], start: int) -> None:
    """Each step sends a batch of some records, then resends some of the last five, over the end of the numbers."""
    producers, kept, sequence = Producers(), [], start
    for count, resent in plan:
        fresh = header(sequence, count, at=len(kept))
        assert producers.find_duplicate(fresh) is None
        producers.remember(fresh)
        kept.append(fresh)
        sequence = (sequence + count) % 2**31
        for earlier in kept[-1 - resent :]:
            duplicate = producers.find_duplicate(earlier)
            assert duplicate is not None
            assert duplicate.base_offset == earlier.base_offset

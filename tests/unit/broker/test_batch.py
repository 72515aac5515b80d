import pytest
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    MessageSizeTooLargeError,
    UnsupportedForMessageFormatError,
)
from kafka.record import MemoryRecords

from app.broker.batch import check_batch, first_record_at, make_marker, marker_commits, read_header, stamp
from tests.unit.broker.batches import make_batch, read_back


def test_a_stamped_batch_has_its_offset_its_append_time_and_a_fitting_checksum() -> None:
    stamped = stamp(make_batch([b"a", b"b"], times_ms=[5, 9]), base_offset=70, append_ms=1_234)
    assert read_back(stamped) == [(70, b"a", 1_234), (71, b"b", 1_234)]


def test_without_an_append_time_the_producers_times_stay() -> None:
    stamped = stamp(make_batch([b"a", b"b"], times_ms=[5, 9]), base_offset=70, append_ms=None)
    assert read_back(stamped) == [(70, b"a", 5), (71, b"b", 9)]


def test_a_changed_byte_is_found() -> None:
    batch = bytearray(make_batch([b"abc"]))
    batch[-2] ^= 1
    with pytest.raises(CorruptRecordError):
        check_batch(bytes(batch), 1_000)


def test_a_batch_above_the_limit_is_refused() -> None:
    batch = make_batch([b"abc"])
    assert check_batch(batch, len(batch)).record_count == 1
    with pytest.raises(MessageSizeTooLargeError, match=r"max\.message\.bytes"):
        check_batch(batch, len(batch) - 1)


@pytest.mark.parametrize("records", [make_batch([b"a"])[:-1], make_batch([b"a"]) * 2])
def test_anything_but_one_whole_batch_is_refused(records: bytes) -> None:
    with pytest.raises(InvalidRecordError):
        check_batch(records, 1_000)


def test_an_older_message_format_is_refused() -> None:
    batch = bytearray(make_batch([b"a"]))
    batch[16] = 1
    with pytest.raises(UnsupportedForMessageFormatError):
        check_batch(bytes(batch), 1_000)


def test_fewer_bytes_than_a_header_are_corrupt() -> None:
    with pytest.raises(CorruptRecordError):
        check_batch(b"abc", 1_000)


def test_sequence_numbers_start_again_behind_the_largest_int32() -> None:
    header = read_header(make_batch([b"a", b"b", b"c"], producer_id=1, epoch=0, sequence=2**31 - 2))
    assert header.last_sequence == 0


def test_a_record_is_found_by_time_within_a_batch() -> None:
    batch = make_batch([b"a", b"b", b"c"], times_ms=[10, 30, 20])
    assert first_record_at(batch, 10) == (0, 10)
    assert first_record_at(batch, 11) == (1, 30)
    assert first_record_at(batch, 31) is None


@pytest.mark.parametrize("commits", [True, False])
def test_a_marker_is_a_control_batch_that_clients_understand(commits: bool) -> None:
    marker = make_marker(7, 3, commits=commits, base_offset=70, append_ms=1_234)
    assert marker_commits(marker) is commits
    header = read_header(marker)
    assert (header.producer_id, header.producer_epoch, header.base_offset, header.next_offset) == (7, 3, 70, 71)
    batch = MemoryRecords(marker).next_batch()
    assert batch.validate_crc()
    assert batch.is_control_batch
    [record] = batch
    assert (record.commit, record.abort) == (commits, not commits)


def test_a_client_may_not_write_a_marker() -> None:
    with pytest.raises(InvalidRecordError, match="EndTxn"):
        check_batch(make_marker(7, 3, commits=True, base_offset=0, append_ms=0), 1_000)

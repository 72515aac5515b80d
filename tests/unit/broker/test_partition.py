import os
from itertools import accumulate
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from kafka.errors import OffsetOutOfRangeError, OutOfOrderSequenceNumberError

from app.broker.batch import walk_batches
from app.broker.config import TopicConfig
from app.broker.partition import Partition
from app.errors import BrokerError
from tests.unit.broker.batches import make_batch, read_back

BATCH = make_batch([b"0123456789"])
bounded = settings(max_examples=50, deadline=None)  # a busy machine can hold one example for a second
batch_sizes = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def fill(partition: Partition, counts: list[int], config: TopicConfig, now_ms: int = 1_000) -> None:
    """Record n has the value n; each batch comes a millisecond after the last."""
    for number, (start, count) in enumerate(zip(accumulate(counts, initial=0), counts, strict=False)):
        values = [b"%d" % (start + record) for record in range(count)]
        partition.append(make_batch(values), config, now_ms + number)


@bounded
@given(batch_sizes, st.integers(1, 400), st.integers(1, 600))
def test_reading_starts_with_the_batch_of_the_offset_and_stays_within_the_limit(
    counts: list[int], segment_bytes: int, max_bytes: int
) -> None:
    partition = Partition(None)
    fill(partition, counts, TopicConfig(segment_bytes=segment_bytes))
    batch_starts = list(accumulate(counts, initial=0))
    for offset in range(sum(counts)):
        data = partition.read(offset, max_bytes)
        read = read_back(data)
        assert [(at, value) for at, value, _ in read] == [
            (read[0][0] + n, b"%d" % (read[0][0] + n)) for n in range(len(read))
        ]
        assert read[0][0] == max(start for start in batch_starts if start <= offset)
        assert len(data) <= max_bytes or len(list(walk_batches(memoryview(data)))) == 1
    assert partition.read(sum(counts), max_bytes) == b""


def test_reading_takes_as_many_batches_as_fit() -> None:
    partition = Partition(None)
    fill(partition, [1, 1, 1], TopicConfig())
    size_bytes = len(partition.read(2, 1))
    for room_bytes, records in ((1, 1), (2 * size_bytes, 2), (3 * size_bytes - 1, 2), (3 * size_bytes, 3)):
        assert len(read_back(partition.read(0, room_bytes))) == records


@bounded
@given(batch_sizes, st.integers(1, 400))
def test_an_offset_is_found_by_append_time(counts: list[int], segment_bytes: int) -> None:
    partition = Partition(None)
    fill(partition, counts, TopicConfig(segment_bytes=segment_bytes), now_ms=1_000)
    batch_starts = list(accumulate(counts, initial=0))
    for number in range(len(counts)):
        assert partition.find_time(1_000 + number) == (batch_starts[number], 1_000 + number)
    assert partition.find_time(0) == (0, 1_000)
    assert partition.find_time(1_000 + len(counts)) is None


@bounded
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=8),
    st.integers(-1, 51),
    st.integers(1, 400),
)
def test_an_offset_is_found_by_the_producers_times_in_any_order(
    times_ms: list[list[int]], wanted_ms: int, segment_bytes: int
) -> None:
    partition = Partition(None)
    config = TopicConfig(segment_bytes=segment_bytes, message_timestamp_type="CreateTime")
    for batch_times in times_ms:
        partition.append(make_batch([b"x"] * len(batch_times), times_ms=batch_times), config, 0)
    flat = [time_ms for batch_times in times_ms for time_ms in batch_times]
    oracle = next(((at, time_ms) for at, time_ms in enumerate(flat) if time_ms >= wanted_ms), None)
    assert partition.find_time(wanted_ms) == oracle


@bounded
@given(counts=batch_sizes, cut=st.floats(0, 1), segment_bytes=st.integers(100, 1_000))
def test_after_a_crash_the_log_is_a_whole_prefix(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], cut: float, segment_bytes: int
) -> None:
    """The last segment ends at any byte."""
    directory = tmp_path_factory.mktemp("partition")
    config = TopicConfig(segment_bytes=segment_bytes)
    written = Partition(directory)
    fill(written, counts, config)
    last = max(directory.glob("*.log"))
    last.write_bytes(last.read_bytes()[: int(cut * last.stat().st_size)])
    recovered = Partition(directory)
    batch_ends = list(accumulate(counts, initial=0))
    assert recovered.end_offset in batch_ends
    assert recovered.end_offset >= int(last.stem)
    if cut == 1:
        assert recovered.end_offset == sum(counts)
    for offset in range(recovered.end_offset):
        assert recovered.read(offset, 10_000) == written.read(offset, 10_000)[: len(recovered.read(offset, 10_000))]
    assert recovered.append(BATCH, config, 5_000).base_offset == recovered.end_offset - 1
    assert Partition(directory).end_offset == recovered.end_offset


def test_a_changed_byte_in_the_last_segment_ends_the_log_in_front_of_its_batch(tmp_path: Path) -> None:
    fill(Partition(tmp_path), [1, 1, 1], TopicConfig())
    [path] = tmp_path.glob("*.log")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert Partition(tmp_path).end_offset == 2


def test_a_missing_segment_is_an_error_that_names_the_gap(tmp_path: Path) -> None:
    fill(Partition(tmp_path), [1, 1, 1], TopicConfig(segment_bytes=1))
    (tmp_path / f"{1:020}.log").unlink()
    with pytest.raises(BrokerError, match="lacks offsets 1 to 1"):
        Partition(tmp_path)


def test_idempotence_survives_a_restart(tmp_path: Path) -> None:
    batches = [make_batch([b"x"], producer_id=7, epoch=0, sequence=sequence) for sequence in range(4)]
    written = Partition(tmp_path)
    for batch in batches[:3]:
        written.append(batch, TopicConfig(), 1_000)
    recovered = Partition(tmp_path)
    assert recovered.append(batches[1], TopicConfig(), 9_000) == (1, 1_000)
    assert recovered.append(batches[3], TopicConfig(), 9_000) == (3, 9_000)
    assert recovered.end_offset == 4
    with pytest.raises(OutOfOrderSequenceNumberError):
        recovered.append(make_batch([b"x"], producer_id=7, epoch=0, sequence=9), TopicConfig(), 9_000)


def test_a_full_medium_leaves_the_log_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of a large batch is written; the next, small one takes its place."""
    partition, write = Partition(tmp_path), os.pwrite
    partition.append(BATCH, TopicConfig(), 1_000)
    monkeypatch.setattr("os.pwrite", lambda file, data, position: write(file, data[: len(data) // 2], position))
    with pytest.raises(OSError, match="wrote"):
        partition.append(make_batch([bytes(5_000)]), TopicConfig(), 1_000)
    monkeypatch.undo()
    for offset in (1, 2):
        assert partition.append(BATCH, TopicConfig(), 1_000).base_offset == offset
    assert Partition(tmp_path).end_offset == 3


def test_offsets_outside_the_log_are_out_of_range() -> None:
    partition = Partition(None)
    fill(partition, [2, 2], TopicConfig())
    partition.delete_before(3)
    for offset in (2, 5):
        with pytest.raises(OffsetOutOfRangeError):
            partition.read(offset, 1_000)
    assert [at for at, _, _ in read_back(partition.read(3, 1_000))] == [2, 3]
    with pytest.raises(OffsetOutOfRangeError):
        partition.delete_before(5)


def test_deleting_frees_whole_segments_and_is_remembered(tmp_path: Path) -> None:
    partition = Partition(tmp_path)
    fill(partition, [2, 2, 2], TopicConfig(segment_bytes=1))
    assert partition.delete_before(3) == 3
    assert len(list(tmp_path.glob("*.log"))) == 2
    recovered = Partition(tmp_path)
    assert (recovered.start_offset, recovered.end_offset) == (3, 6)


def test_retention_by_size_keeps_at_least_what_is_asked_for() -> None:
    partition = Partition(None)
    config = TopicConfig(segment_bytes=1, retention_bytes=2 * len(BATCH) + 1)
    for _ in range(6):
        partition.append(BATCH, config, 1_000)
    partition.drop_expired(config, 1_000)
    assert (partition.start_offset, partition.end_offset) == (3, 6)


def test_retention_by_time_drops_what_is_older_and_goes_on_numbering(tmp_path: Path) -> None:
    partition = Partition(tmp_path)
    config = TopicConfig(segment_bytes=1, retention_ms=100)
    for now_ms in (1_000, 1_050, 1_200):
        partition.append(BATCH, config, now_ms)
    partition.drop_expired(config, 1_200)
    assert (partition.start_offset, partition.end_offset) == (2, 3)
    partition.drop_expired(config, 9_000)
    assert (partition.start_offset, partition.end_offset) == (3, 3)
    recovered = Partition(tmp_path)
    assert recovered.append(BATCH, config, 9_000).base_offset == 3


def test_a_segment_is_closed_after_a_quarter_of_the_retention(tmp_path: Path) -> None:
    partition = Partition(tmp_path)
    config = TopicConfig(retention_ms=400)
    for now_ms in (1_000, 1_100, 1_101):
        partition.append(BATCH, config, now_ms)
    assert [int(path.stem) for path in sorted(tmp_path.glob("*.log"))] == [0, 2]

"""Checkpoints: whole or not at all, newest first, and never of something else."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from app.errors import CheckpointError, ConfigError, StoreError
from app.runtime.checkpoint import (
    FORMAT,
    LEFT_BEHIND_S,
    Checkpoint,
    CheckpointStore,
    Position,
    decode_checkpoint,
    encode_checkpoint,
)
from app.runtime.history import Milestone


def checkpoint(offset: int, *, partition: int = 0, mark: float = 0.0, **position: Any) -> Checkpoint:
    values = {
        "pipeline": "fraud",
        "topic": "payments",
        "log_offset": 5,
        "max_time_ms": 7,
    } | position
    return Checkpoint(Position(partition=partition, offset=offset, **values), {"CardHistory/entries": np.full(3, mark)})


@pytest.fixture(params=["path", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    where = tmp_path / "deep" / "below"
    return CheckpointStore(str(where) if request.param == "path" else where.as_uri(), "fraud")


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.rglob("*") if path.is_file())


def offsets(store: CheckpointStore, partition: int = 0) -> list[int | str]:
    """Of each checkpoint its offset, or the error that stands in its place."""
    found = store.load("payments", partition)
    return [str(each) if isinstance(each, CheckpointError) else each.position.offset for each in found]


arrays = st.builds(
    lambda dtype, shape: np.arange(np.prod(shape)).reshape(shape).astype(dtype),
    st.sampled_from(["f8", "i8", "i4", "u1", "?"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
)


times = st.none() | st.integers(-(2**62), 2**62)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"), arrays, max_size=4),
    st.builds(
        Position,
        *[st.text(max_size=4)] * 2,
        *[st.integers(0, 2**62)] * 3,
        times,
        st.lists(st.builds(Milestone, st.integers(0, 2**62), times), max_size=3).map(tuple),
    ),
)
def test_a_checkpoint_comes_back_as_it_was_written(state: dict[str, Any], position: Position) -> None:
    read = decode_checkpoint(encode_checkpoint(Checkpoint(position, state)))
    assert read.position == position
    assert set(read.state) == set(state)
    for name, array in state.items():
        assert read.state[name].dtype == array.dtype
        assert read.state[name].shape == array.shape
        assert np.array_equal(read.state[name], array)


def test_arrays_that_lie_oddly_in_memory_are_stored_by_value() -> None:
    table = np.arange(12.0).reshape(3, 4)
    state = {"transposed": table.T, "every second": table[:, ::2], "backwards": table[::-1]}
    read = decode_checkpoint(encode_checkpoint(Checkpoint(checkpoint(1).position, state)))
    assert all(np.array_equal(read.state[name], array) for name, array in state.items())


def test_nothing_that_is_torn_or_foreign_is_read() -> None:
    whole = encode_checkpoint(checkpoint(10))
    headers = [b"[]", b"null", b"{}", b'{"__metadata__": null}', b'{"__metadata__": {"position": "\xff"}}']
    foreign = [b"\x00" * 64, b"PK\x03\x04" * 20, *(len(each).to_bytes(8, "little") + each for each in headers)]
    of_another_version = whole.replace(b"log_offset", b"log_offzet")
    for data in [*(whole[:cut] for cut in range(len(whole))), *foreign, of_another_version]:
        with pytest.raises(CheckpointError, match=f"its {len(data)} bytes are no checkpoint"):
            decode_checkpoint(data)


def test_the_newest_two_are_kept_and_the_newest_comes_first(store: CheckpointStore, tmp_path: Path) -> None:
    sizes = [store.save(checkpoint(offset)) for offset in (9, 10, 100, 1_000)]
    assert offsets(store) == [1_000, 100]
    assert [path.stat().st_size for path in files(tmp_path)] == sizes[2:]


def test_partitions_and_pipelines_do_not_see_each_other_s(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(checkpoint(1, partition=1))
    store.save(checkpoint(2, partition=11))
    CheckpointStore(str(tmp_path / "deep" / "below"), "other").save(checkpoint(3, partition=1))
    assert offsets(store, partition=1) == [1]
    assert offsets(store, partition=11) == [2]
    assert offsets(store, partition=2) == []


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_as_many_are_kept_as_the_yaml_says(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(str(tmp_path), "fraud", keep)
    for offset in range(8):
        store.save(checkpoint(offset))
        assert offsets(store) == list(range(offset, max(-1, offset - keep), -1))


def test_a_writer_thought_dead_does_not_push_out_newer_ones_and_goes_with_the_next(store: CheckpointStore) -> None:
    for offset in (100, 200, 50, 60, 70):
        store.save(checkpoint(offset))
    assert offsets(store) == [200, 100, 70, 60]
    store.save(checkpoint(300))
    assert offsets(store) == [300, 200]


def test_one_that_is_written_behind_a_damaged_one_is_kept(store: CheckpointStore, tmp_path: Path) -> None:
    for offset in (100, 200):
        store.save(checkpoint(offset))
    for damaged in files(tmp_path):
        damaged.write_bytes(b"")
    store.save(checkpoint(7))
    assert offsets(store)[2:] == [7]


def test_the_same_checkpoint_twice_is_one(store: CheckpointStore) -> None:
    for _ in range(3):
        store.save(checkpoint(100))
    assert offsets(store) == [100]


TORN = "it is torn, its {} bytes do not have the checksum in its name; remove it"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointStore, Path, bytes]:
    """Checkpoints at 10 and 20, and the newer one's file with its bytes: for tests that damage it again and again."""
    folder = tmp_path_factory.mktemp("checkpoints")
    store = CheckpointStore(str(folder), "fraud")
    for offset in (10, 20):
        store.save(checkpoint(offset))
    newer = files(folder)[1]
    return store, newer, newer.read_bytes()


def assert_torn(store: CheckpointStore, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert offsets(store) == [f"checkpoint {path} cannot be used: {TORN.format(len(data))}", 10]


def test_every_single_truncation_is_found_out_and_the_older_one_follows(
    saved: tuple[CheckpointStore, Path, bytes],
) -> None:
    store, path, whole = saved
    for length in range(len(whole)):
        assert_torn(store, path, whole[:length])


def test_every_single_bit_that_is_flipped_is_found_out(saved: tuple[CheckpointStore, Path, bytes]) -> None:
    store, path, whole = saved
    for at in range(len(whole)):
        assert_torn(store, path, whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_many_bits_that_are_flipped_are_found_out(
    saved: tuple[CheckpointStore, Path, bytes], data: st.DataObject
) -> None:
    store, path, whole = saved
    places = data.draw(st.sets(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=40))
    damaged = bytearray(whole)
    for place in places:
        damaged[place // 8] ^= 1 << place % 8
    assert_torn(store, path, bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pieces_of_zeros_as_a_power_cut_leaves_them_are_found_out(
    saved: tuple[CheckpointStore, Path, bytes], data: st.DataObject
) -> None:
    store, path, whole = saved
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    zeros = whole[:start] + bytes(stop - start) + whole[stop:]
    if zeros != whole:
        assert_torn(store, path, zeros)


def put(folder: Path, offset: int, data: bytes) -> Path:
    """A file as the store itself names it."""
    path = folder / "fraud" / "payments-0" / f"{offset:020d}-{crc32c(data):08x}.safetensors"
    path.write_bytes(data)
    return path


FOREIGN = [
    (
        encode_checkpoint(checkpoint(20, pipeline="other")),
        "it is of pipeline 'other' and payments[0], not of 'fraud' and payments[0]; put it back where it came from, "
        "or remove it",
    ),
    (
        encode_checkpoint(checkpoint(20, partition=3)),
        "it is of pipeline 'fraud' and payments[3], not of 'fraud' and payments[0]; put it back where it came from, "
        "or remove it",
    ),
    (
        encode_checkpoint(checkpoint(20, topic="orders")),
        "it is of pipeline 'fraud' and orders[0], not of 'fraud' and payments[0]; put it back where it came from, "
        "or remove it",
    ),
    (
        encode_checkpoint(checkpoint(19)),
        "it is of offset 19, which is not the one in its name; remove it",
    ),
    (
        encode_checkpoint(checkpoint(20, format=FORMAT + 1)),
        f"its format is {FORMAT + 1}, and this version of Headrace reads formats up to {FORMAT}; go on with the "
        "version that wrote it",
    ),
    (b"", "its 0 bytes are no checkpoint: Input data was truncated"),
    (b"not safetensors", "its 15 bytes are no checkpoint: JSON is malformed: invalid character (byte 4)"),
]


@pytest.mark.parametrize(("data", "reason"), FOREIGN)
def test_what_is_whole_and_not_ours_is_refused_with_its_name_and_the_remedy(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    store = CheckpointStore(str(tmp_path), "fraud")
    store.save(checkpoint(10))
    path = put(tmp_path, 20, data)
    assert offsets(store) == [f"checkpoint {path} cannot be used: {reason}", 10]


def test_a_newer_format_is_recognized_though_nothing_else_of_it_is_known() -> None:
    data = encode_checkpoint(checkpoint(20, format=FORMAT + 1)).replace(b"log_offset", b"log_offzet")
    with pytest.raises(CheckpointError, match="this version of Headrace reads formats up to"):
        decode_checkpoint(data)


def test_one_of_the_version_before_milestones_is_read_as_of_a_partition_that_began_with_its_log() -> None:
    fields = {"pipeline": "fraud", "fingerprint": "f1", "topic": "payments", "partition": 0, "offset": 9}
    position = json.dumps({**fields, "log_offset": 5, "max_time_ms": 7})
    read = decode_checkpoint(save_tensors({"a": np.arange(3)}, metadata={"position": position}))
    assert read.position == Position("fraud", "payments", 0, 9, 5, 7, history=(Milestone(0, None),))


def test_a_directory_in_the_place_of_a_checkpoint_is_refused_and_never_in_the_way(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "fraud")
    store.save(checkpoint(10))
    place = tmp_path / "fraud" / "payments-0" / f"{20:020d}-00000000.safetensors"
    place.mkdir()
    assert offsets(store) == [f"checkpoint {place} cannot be used: it is a directory; remove it", 10]
    for offset in (30, 40, 50):
        store.save(checkpoint(offset))
    assert offsets(store)[:2] == [50, 40]


def test_other_files_are_left_alone(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(checkpoint(10))
    note = files(tmp_path)[0].parent / "00-README"
    note.write_text("not ours")
    for offset in (20, 30):
        store.save(checkpoint(offset))
    assert offsets(store) == [30, 20]
    assert note.exists()


class Crash(BaseException):
    """The process ends here."""


STEPS = ["os.fsync", "pathlib.Path.replace"]


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_before_the_new_name_leaves_the_old_ones_and_no_half_file(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    store.save(checkpoint(10))
    with monkeypatch.context() as failing:
        failing.setattr(step, fail)
        with pytest.raises(StoreError, match=r"checkpoint .*-\w{8}.safetensors is not written: .*Input/output error"):
            store.save(checkpoint(20))
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"]
    store.save(checkpoint(20))
    assert offsets(store) == [20, 10]


def test_what_a_killed_process_left_half_written_goes_when_it_is_old(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Crash

    store.save(checkpoint(10))
    with monkeypatch.context() as dying:
        dying.setattr("pathlib.Path.replace", die)
        dying.setattr("pathlib.Path.unlink", die)  # a killed process clears nothing away
        with pytest.raises(Crash):
            store.save(checkpoint(20))
    [half] = [path for path in files(tmp_path) if path.suffix == ".part"]
    assert offsets(store) == [10]
    store.save(checkpoint(20))
    assert half.exists()  # its writer may only be slow
    old_s = time.time() - LEFT_BEHIND_S - 1
    os.utime(half, (old_s, old_s))
    store.save(checkpoint(30))
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 2


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_its_name_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path), "fraud", keep=1)
    store.save(checkpoint(10))
    fsync, seen = os.fsync, []

    def note(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((target.suffix, len([path for path in files(tmp_path) if path.suffix == ".safetensors"])))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", note)
    store.save(checkpoint(20))
    assert seen == [(".part", 1), ("", 2)]
    assert offsets(store) == [20]


def test_two_workers_that_write_and_drop_at_once_leave_only_whole_ones(tmp_path: Path) -> None:
    def write(first: int) -> None:
        store = CheckpointStore(str(tmp_path), "fraud")
        for offset in range(first, 60):
            store.save(checkpoint(offset))

    with ThreadPoolExecutor(2) as workers:
        for done in [workers.submit(write, first) for first in (0, 0)]:
            done.result()
    assert offsets(CheckpointStore(str(tmp_path), "fraud")) == [59, 58]
    assert len(files(tmp_path)) == 2


def test_a_full_disk_refuses_loses_nothing_and_takes_the_next_when_there_is_room(small_disk: Path) -> None:
    store = CheckpointStore(str(small_disk), "fraud")
    store.save(checkpoint(10))
    hog = small_disk / "hog"
    with suppress(OSError), hog.open("wb") as file:
        file.write(bytes(2_000_000))
    with pytest.raises(StoreError, match=r"is not written: \[Errno 28\] No space left on device; make room there"):
        store.save(checkpoint(20))
    assert [path.suffix for path in files(small_disk / "fraud")] == [".safetensors"]
    assert offsets(store) == [10]
    hog.unlink()
    store.save(checkpoint(20))
    assert offsets(store) == [20, 10]


def test_a_file_that_may_not_grow_further_is_refused_without_a_trace(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from tests.unit.runtime.test_checkpoint import CheckpointStore, StoreError, checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore({str(tmp_path)!r}, "fraud")
store.save(checkpoint(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    store.save(checkpoint(20))
except StoreError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("is not written: [Errno 27] File too large; make room there")
    assert offsets(CheckpointStore(str(tmp_path), "fraud")) == [10]
    assert len(files(tmp_path)) == 1


def test_a_file_that_is_dropped_while_it_is_listed_is_passed_over(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    loading = store.load("payments", 0)
    newest = next(loading)
    assert isinstance(newest, Checkpoint)
    files(tmp_path)[0].unlink()
    assert list(loading) == []


def test_of_nothing_there_is_none(store: CheckpointStore) -> None:
    assert offsets(store) == []


def test_a_place_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "fraud").write_text("in the way")
    store = CheckpointStore(str(tmp_path), "fraud")
    with pytest.raises(StoreError, match=r"is not written: .*Not a directory"):
        store.save(checkpoint(10))


@pytest.mark.parametrize("uri", ["nonsense://bucket/path", "file://host/path"])
def test_a_place_that_is_none_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=f"checkpoints.uri '{uri}' cannot be used: .*write a path or a URI like 's3://"
    ):
        CheckpointStore(uri, "fraud")

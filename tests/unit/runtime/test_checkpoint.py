"""Checkpoints: whole or not at all, newest first, and never of something else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import CheckpointError, ConfigError
from app.runtime.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Position,
    decode_checkpoint,
    encode_checkpoint,
    newest_fitting,
)


def checkpoint(offset: int, *, partition: int = 0, mark: float = 0.0, **position: Any) -> Checkpoint:
    values = {
        "pipeline": "fraud",
        "fingerprint": "f1",
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


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"), arrays, max_size=4),
    st.builds(
        Position,
        *[st.text(max_size=4)] * 3,
        *[st.integers(0, 2**62)] * 3,
        st.none() | st.integers(-(2**62), 2**62),
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
        with pytest.raises(CheckpointError, match=f"a checkpoint of {len(data)} bytes cannot be read"):
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


def test_a_writer_thought_dead_does_not_push_out_newer_ones(store: CheckpointStore) -> None:
    for offset in (100, 200, 50, 60):
        store.save(checkpoint(offset))
    assert offsets(store) == [200, 100]


def test_the_same_checkpoint_twice_is_one(store: CheckpointStore) -> None:
    for _ in range(3):
        store.save(checkpoint(100))
    assert offsets(store) == [100]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "swapped"])
def test_in_place_of_a_torn_one_stands_the_error_and_the_older_one_follows(
    store: CheckpointStore, tmp_path: Path, damage: str
) -> None:
    store.save(checkpoint(10))
    store.save(checkpoint(20, mark=1.0))
    older, newer = files(tmp_path)
    whole = newer.read_bytes()
    damaged = {
        "truncated": whole[:-1],
        "one bit": whole[:-1] + bytes([whole[-1] ^ 1]),
        "empty": b"",
        "swapped": older.read_bytes(),
    }
    newer.write_bytes(damaged[damage])
    error, offset = offsets(store)
    assert str(error).endswith("is torn: its checksum is not the one in its name")
    assert newer.name in str(error)
    assert offset == 10


def test_whole_files_of_another_format_are_passed_over(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(checkpoint(10))
    [path] = files(tmp_path)
    data = b"not safetensors"
    (path.parent / f"{20:020d}-{crc32c(data):08x}.safetensors").write_bytes(data)
    (path.parent / "README").write_text("not ours")
    error, offset = offsets(store)
    assert str(error).startswith("a checkpoint of 15 bytes cannot be read")
    assert offset == 10


def test_a_crash_between_writing_and_renaming_leaves_the_old_one(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        """The process ends here."""

    def crash(*_: Any) -> None:
        raise Crash

    store.save(checkpoint(10))
    local = store._files

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return crash if name == "move" else getattr(local, name)

    with monkeypatch.context() as dying:
        dying.setattr("app.runtime.checkpoint.fs.LocalFileSystem", Dying)
        store._files = Dying()
        with pytest.raises(Crash):
            store.save(checkpoint(20))
    store._files = local
    assert offsets(store) == [10]
    store.save(checkpoint(20))
    assert offsets(store) == [20, 10]
    assert len(files(tmp_path)) == 2


def test_a_file_that_is_dropped_while_it_is_listed_is_passed_over(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    loading = store.load("payments", 0)
    newest = next(loading)
    assert isinstance(newest, Checkpoint)
    files(tmp_path)[0].unlink()
    assert list(loading) == []


def test_the_newest_that_fits_is_taken_and_what_was_wrong_with_newer_ones_is_told(
    store: CheckpointStore, tmp_path: Path
) -> None:
    store.save(checkpoint(10, mark=3.0))
    store.save(checkpoint(20, fingerprint="f2"))
    found, refused = newest_fitting(store, "fraud", "f1", "payments", 0)
    assert found is not None
    assert (found.position.offset, found.state["CardHistory/entries"].tolist()) == (10, [3.0, 3.0, 3.0])
    [error] = refused
    assert "at offset 20 is of pipeline 'fraud' with features f2, not of 'fraud' with f1" in str(error)
    assert "its state is rebuilt from the source" in str(error)
    files(tmp_path)[1].write_bytes(b"torn")
    found, refused = newest_fitting(store, "fraud", "f2", "payments", 0)
    assert found is None
    assert ["torn" in str(each) for each in refused] == [True, False]


def test_of_nothing_there_is_none(store: CheckpointStore) -> None:
    assert newest_fitting(store, "fraud", "f1", "payments", 0) == (None, [])


@pytest.mark.parametrize("uri", ["nonsense://bucket/path", "file://host/path"])
def test_a_place_that_is_none_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=f"checkpoints.uri '{uri}' cannot be used: .*write a path or a URI like 's3://"
    ):
        CheckpointStore(uri, "fraud")

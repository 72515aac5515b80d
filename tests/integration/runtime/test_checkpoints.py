"""Checkpoints in an object store that speaks S3."""

from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from app.errors import CheckpointError
from app.runtime.checkpoint import Checkpoint, CheckpointStore, Position, newest_fitting


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def uri(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own for each test, as it would stand in the YAML; credentials come from the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"checkpoints-{uuid4()}"
    options = {"region": "us-east-1", "scheme": "http", "endpoint_override": endpoint}
    fs.S3FileSystem(**options, allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/headrace?region=us-east-1&scheme=http&endpoint_override={quote(endpoint)}"


def checkpoint(offset: int, partition: int = 0) -> Checkpoint:
    position = Position("fraud", "payments", partition, offset, 5, 7)
    return Checkpoint(position, {"CardHistory/entries": np.arange(300_000.0) + offset})


def offsets(store: CheckpointStore, partition: int = 0) -> list[int | str]:
    found = store.load("payments", partition)
    return [str(each) if isinstance(each, CheckpointError) else each.position.offset for each in found]


def test_the_newest_two_are_kept_and_come_back_whole(uri: str) -> None:
    store = CheckpointStore(uri, "fraud")
    for offset in (10, 20, 30):
        assert store.save(checkpoint(offset)) > 2_400_000
    store.save(checkpoint(7, partition=1))
    assert offsets(store) == [30, 20]
    assert offsets(store, partition=1) == [7]
    assert offsets(store, partition=2) == []
    found, refused = newest_fitting(CheckpointStore(uri, "fraud"), "fraud", "f1", "payments", 0)
    assert found is not None
    assert refused == []
    assert np.array_equal(found.state["CardHistory/entries"], np.arange(300_000.0) + 30)


def test_an_object_that_is_torn_gives_way_to_the_older_one(uri: str) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    files, base = fs.FileSystem.from_uri(uri)
    newest = max(info.path for info in files.get_file_info(fs.FileSelector(f"{base}/fraud/payments-0")))
    with files.open_output_stream(newest) as stream:
        stream.write(b"half of it")
    error, offset = offsets(store)
    assert "is torn" in str(error)
    assert offset == 10


def test_an_upload_that_has_not_ended_shows_nothing(uri: str) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    files, base = fs.FileSystem.from_uri(uri)
    with files.open_output_stream(f"{base}/fraud/payments-0/{20:020d}-00000000.safetensors") as stream:
        stream.write(bytes(6_000_000))
        stream.flush()
        assert offsets(store) == [10]


def test_a_bucket_that_does_not_exist_is_an_error_when_saving(uri: str) -> None:
    store = CheckpointStore(uri.replace("s3://checkpoints", "s3://elsewhere"), "fraud")
    with pytest.raises(OSError, match="elsewhere"):
        store.save(checkpoint(10))

"""Checkpoints in an object store that speaks S3."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen
from uuid import uuid4

import numpy as np
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

from app.errors import CheckpointError, StoreError
from app.runtime.checkpoint import Checkpoint, CheckpointStore, Position


class Endpoint:
    """An S3 server that can go away and come back with what it had."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called before a request is answered."""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.start()

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.before(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        return self._moto(environ, start_response)

    def check_credentials(self, after: int | None) -> None:
        """From so many requests on, every one is checked; None: no more."""
        data = b"inf" if after is None else str(after).encode()
        urlopen(Request(f"http://{self.address}/moto-api/reset-auth", data, {"Content-Type": "text/plain"})).read()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.stop()


@pytest.fixture
def uri(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own for each test, as it would stand in the YAML; credentials come from the environment."""
    endpoint.before = lambda method, path: None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"checkpoints-{uuid4()}"
    options = {"region": "us-east-1", "scheme": "http", "endpoint_override": endpoint.address}
    fs.S3FileSystem(**options, allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/headrace?region=us-east-1&scheme=http&endpoint_override={quote(endpoint.address)}"


def checkpoint(offset: int, partition: int = 0, rows: int = 300_000) -> Checkpoint:
    position = Position("fraud", "payments", partition, offset, 5, 7)
    return Checkpoint(position, {"CardHistory/entries": np.arange(float(rows)) + offset})


def offsets(store: CheckpointStore, partition: int = 0) -> list[int | str]:
    found = store.load("payments", partition)
    return [str(each) if isinstance(each, CheckpointError) else each.position.offset for each in found]


def objects(uri: str) -> list[str]:
    files, base = fs.FileSystem.from_uri(uri)
    found = files.get_file_info(fs.FileSelector(base, recursive=True))
    return sorted(info.path.removeprefix(base) for info in found if info.type == fs.FileType.File)


def test_the_newest_two_are_kept_and_come_back_whole(uri: str) -> None:
    store = CheckpointStore(uri, "fraud")
    for offset in (10, 20, 30):
        assert store.save(checkpoint(offset)) > 2_400_000
    store.save(checkpoint(7, partition=1))
    assert offsets(store) == [30, 20]
    assert offsets(store, partition=1) == [7]
    assert offsets(store, partition=2) == []
    newest = next(CheckpointStore(uri, "fraud").load("payments", 0))
    assert isinstance(newest, Checkpoint)
    assert np.array_equal(newest.state["CardHistory/entries"], np.arange(300_000.0) + 30)


def test_as_many_are_kept_as_the_yaml_says_and_nothing_lies_beside_them(uri: str) -> None:
    store = CheckpointStore(uri, "fraud", keep=3)
    for offset in range(6):
        store.save(checkpoint(offset, rows=10))
    assert [name.partition("-")[0] for name in objects(uri)] == ["/fraud/payments"] * 3
    assert offsets(store) == [5, 4, 3]


def test_an_object_that_is_torn_gives_way_to_the_older_one(uri: str) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    files, base = fs.FileSystem.from_uri(uri)
    newest = f"{base}{objects(uri)[-1]}"
    with files.open_output_stream(newest) as stream:
        stream.write(b"half of it")
    error, offset = offsets(store)
    assert str(error).startswith(f"checkpoint {newest} cannot be used: it is torn, its 10 bytes do not have")
    assert offset == 10


def test_an_upload_that_has_not_ended_shows_nothing(uri: str) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    files, base = fs.FileSystem.from_uri(uri)
    with files.open_output_stream(f"{base}/fraud/payments-0/{20:020d}-00000000.safetensors") as stream:
        stream.write(bytes(6_000_000))
        stream.flush()
        assert offsets(store) == [10]


def test_two_workers_that_write_drop_and_read_at_once_see_only_whole_ones(uri: str) -> None:
    def write(first: int) -> list[str]:
        store, errors = CheckpointStore(uri, "fraud"), []
        for offset in range(first, 30, 2):
            store.save(checkpoint(offset, rows=1_000))
            errors += [each for each in offsets(store) if isinstance(each, str)]
        return errors

    with ThreadPoolExecutor(2) as workers:
        writing = [workers.submit(write, first) for first in (0, 1)]
    assert [done.result() for done in writing] == [[], []]
    assert offsets(CheckpointStore(uri, "fraud"))[0] == 29


def test_one_that_is_dropped_just_before_it_is_read_gives_way_to_the_others(uri: str, endpoint: Endpoint) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    store.save(checkpoint(20))
    files, base = fs.FileSystem.from_uri(uri)
    newest = f"{base}{objects(uri)[-1]}"

    def drop(method: str, path: str) -> None:
        """Its size is told, with HEAD; its bytes are not."""
        if method == "GET" and path == f"/{newest}":
            files.delete_file(newest)

    endpoint.before = drop
    assert offsets(store) == [10]


def test_a_bucket_that_does_not_exist_is_an_error_that_names_it_and_the_remedy(uri: str) -> None:
    elsewhere = CheckpointStore(uri.replace("s3://checkpoints", "s3://elsewhere"), "fraud")
    with pytest.raises(
        StoreError, match=r"checkpoint elsewhere-.* is not written: .*make the bucket, or correct checkp"
    ):
        elsewhere.save(checkpoint(10))


def test_wrong_credentials_are_an_error_that_says_where_to_look(uri: str, endpoint: Endpoint) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    endpoint.check_credentials(0)
    try:
        with pytest.raises(
            StoreError, match=r"is not written: .*check the credentials \(AWS_ACCESS_KEY_ID, AWS_SECRET"
        ):
            store.save(checkpoint(20))
        with pytest.raises(StoreError, match=r"cannot be (listed|read): .*check the credentials \(AWS_ACCESS_KEY_ID"):
            offsets(store)
    finally:
        endpoint.check_credentials(None)
    assert offsets(store) == [10]


def test_a_store_that_goes_away_refuses_in_seconds_and_takes_the_next_one_when_it_is_back(
    uri: str, endpoint: Endpoint
) -> None:
    store = CheckpointStore(uri, "fraud")
    store.save(checkpoint(10))
    endpoint.stop()
    try:
        began_s = time.monotonic()
        with pytest.raises(StoreError, match=r"is not written: .*is the place that checkpoints.uri names there\?"):
            store.save(checkpoint(20))
        with pytest.raises(StoreError, match=r"cannot be listed: .*is the place that checkpoints.uri names there\?"):
            offsets(store)
        assert time.monotonic() - began_s < 60
    finally:
        endpoint.start()
    assert offsets(store) == [10]
    store.save(checkpoint(20))
    assert offsets(store) == [20, 10]

"""Checkpoints: the state of one partition's task and the source offset it reflects, as one atomic object.

A checkpoint is a pure function of the log, so it is valid whoever wrote it, and the newest whole one is taken. It is
one safetensors file, `{offset}-{crc32c}.safetensors`: a torn or altered one does not match its own name.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from app.errors import CheckpointError, ConfigError

SUFFIX = ".safetensors"
KEPT = 2


class Position(msgspec.Struct, frozen=True):
    """What a checkpoint reflects. `offset` is the next source offset to read; `log_offset` a place in the decision
    log at or before the first frame that may lie beyond it; `max_time_ms` the highest event time seen."""

    pipeline: str
    fingerprint: str
    topic: str
    partition: int
    offset: int
    log_offset: int
    max_time_ms: int | None


class Checkpoint(msgspec.Struct, frozen=True):
    position: Position
    state: Mapping[str, npt.NDArray[Any]]


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    position = msgspec.json.encode(checkpoint.position).decode()
    tensors = {name: np.ascontiguousarray(array) for name, array in checkpoint.state.items()}
    data: bytes = save_tensors(tensors, metadata={"position": position})
    return data


def decode_checkpoint(data: bytes) -> Checkpoint:
    try:
        header_size = int.from_bytes(data[:8], "little")
        metadata = msgspec.json.decode(data[8 : 8 + header_size])["__metadata__"]
        position = msgspec.json.decode(metadata["position"], type=Position)
        return Checkpoint(position, load_tensors(data))
    except (SafetensorError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"a checkpoint of {len(data)} bytes cannot be read: {error}") from error


class CheckpointStore:
    """Keeps the checkpoints of one pipeline under a local path or any pyarrow filesystem URI (`s3://bucket/path`)."""

    def __init__(self, uri: str, pipeline: str) -> None:
        try:
            self._files, base = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"checkpoints.uri {uri!r} cannot be used: {error}; write a path or a URI like 's3://bucket/path'"
            ) from error
        self._base = f"{base.rstrip('/')}/{pipeline}"

    def save(self, checkpoint: Checkpoint) -> int:
        """Writes state and offset as one object, then drops all but the newest two; returns its size in bytes.

        After a crash both exist or neither: a local file is renamed into place when it is whole, an object store shows
        an object when its upload has ended.
        """
        position, data = checkpoint.position, encode_checkpoint(checkpoint)
        folder = self._folder(position.topic, position.partition)
        path = f"{folder}/{position.offset:020d}-{crc32c(data):08x}{SUFFIX}"
        self._files.create_dir(folder)
        self._write(path, data)
        for _, old in list(self._newest_first(position.topic, position.partition))[KEPT:]:
            with suppress(FileNotFoundError):  # two workers on one partition drop the same ones
                self._files.delete_file(old)
        return len(data)

    def load(self, topic: str, partition: int) -> Iterator[Checkpoint | CheckpointError]:
        """Each checkpoint of a partition, newest first; in place of one that cannot be read, the error that says so."""
        for checksum, path in self._newest_first(topic, partition):
            try:
                yield self._read(path, checksum)
            except CheckpointError as error:
                yield error
            except FileNotFoundError:
                continue  # whoever had the partition before has just written a newer one and dropped this

    def _folder(self, topic: str, partition: int) -> str:
        return f"{self._base}/{topic}-{partition}"

    def _read(self, path: str, checksum: str) -> Checkpoint:
        with self._files.open_input_stream(path) as stream:
            data = stream.read()
        if f"{crc32c(data):08x}" != checksum:
            raise CheckpointError(f"checkpoint {path} is torn: its checksum is not the one in its name")
        return decode_checkpoint(data)

    def _write(self, path: str, data: bytes) -> None:
        local = isinstance(self._files, fs.LocalFileSystem)
        target = f"{path}.part" if local else path
        with self._files.open_output_stream(target) as stream:
            stream.write(data)
        if local:
            self._files.move(target, path)

    def _newest_first(self, topic: str, partition: int) -> Iterator[tuple[str, str]]:
        found = self._files.get_file_info(fs.FileSelector(self._folder(topic, partition), allow_not_found=True))
        names = sorted((info.base_name for info in found if info.base_name.endswith(SUFFIX)), reverse=True)
        for name in names:
            checksum = name.removesuffix(SUFFIX).rpartition("-")[2]
            yield checksum, f"{self._folder(topic, partition)}/{name}"


def newest_fitting(
    store: CheckpointStore, pipeline: str, fingerprint: str, topic: str, partition: int
) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest whole checkpoint of these declarations, if there is any; and what was wrong with newer ones."""
    refused: list[CheckpointError] = []
    for found in store.load(topic, partition):
        if isinstance(found, CheckpointError):
            refused.append(found)
        elif (found.position.pipeline, found.position.fingerprint) != (pipeline, fingerprint):
            refused.append(
                CheckpointError(
                    f"the checkpoint of {topic}[{partition}] at offset {found.position.offset} is of pipeline "
                    f"{found.position.pipeline!r} with features {found.position.fingerprint}, not of {pipeline!r} "
                    f"with {fingerprint}; its state is rebuilt from the source"
                )
            )
        else:
            return found, refused
    return None, refused

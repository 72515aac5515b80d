"""Checkpoints: the state of one partition's task and the source offset it reflects, as one atomic object.

A checkpoint is a pure function of the log, so it is valid whoever wrote it, and the newest whole one is taken. It is
one safetensors file, `{offset}-{crc32c}.safetensors`: a torn or altered one does not match its own name.
"""

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from app.errors import CheckpointError, ConfigError, StoreError
from app.runtime.attempts import Attempts
from app.runtime.history import History, Milestone

FORMAT = 1
SUFFIX, PART = ".safetensors", ".part"
ATTEMPTS = "attempts.json"
LEFT_BEHIND_S = 600.0
"""A file that was begun so long ago has lost its writer: the slowest save seen took seconds."""


class Position(msgspec.Struct, frozen=True):
    """What a checkpoint reflects. `offset` is the next source offset to read; `log_offset` a place in the decision
    log at or before the first frame that may lie beyond it; `max_time_ms` the highest event time seen."""

    pipeline: str
    topic: str
    partition: int
    offset: int
    log_offset: int
    max_time_ms: int | None
    history: History = (Milestone(0, None),)
    format: int = FORMAT


class Checkpoint(msgspec.Struct, frozen=True):
    position: Position
    state: Mapping[str, npt.NDArray[Any]]


class _Version(msgspec.Struct):
    format: int = FORMAT


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    position = msgspec.json.encode(checkpoint.position).decode()
    tensors = {name: np.ascontiguousarray(array) for name, array in checkpoint.state.items()}
    data: bytes = save_tensors(tensors, metadata={"position": position})
    return data


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Raises CheckpointError for what is none, or was written in a format that is newer than this program."""
    try:
        header_size = int.from_bytes(data[:8], "little")
        metadata = msgspec.json.decode(data[8 : 8 + header_size])["__metadata__"]
        version = msgspec.json.decode(metadata["position"], type=_Version).format
        if version > FORMAT:
            raise CheckpointError(
                f"its format is {version}, and this version of Headrace reads formats up to {FORMAT}; "
                "go on with the version that wrote it"
            )
        position = msgspec.json.decode(metadata["position"], type=Position)
        return Checkpoint(position, load_tensors(data))
    except (SafetensorError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"its {len(data)} bytes are no checkpoint: {error}") from error


class CheckpointStore:
    """Keeps the checkpoints of one pipeline under a local path or any pyarrow filesystem URI (`s3://bucket/path`).

    Raises StoreError when the place is away, full or closed to us; what it holds is then as it was before.
    """

    def __init__(self, uri: str, pipeline: str, keep: int = 2) -> None:
        try:
            self._files, base = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"checkpoints.uri {uri!r} cannot be used: {error}; write a path or a URI like 's3://bucket/path'"
            ) from error
        self._pipeline = pipeline
        self._keep = keep
        self._base = f"{base.rstrip('/')}/{pipeline}"

    def save(self, checkpoint: Checkpoint) -> int:
        """Writes state and offset as one object, then drops the predecessors that are too many; returns its bytes.

        After a crash both exist or neither: a local file is on the disk before it is renamed into place, an object
        store shows an object when its upload has ended. A checkpoint of a later offset stays, whoever wrote it.
        """
        position, data = checkpoint.position, encode_checkpoint(checkpoint)
        folder = self._folder(position.topic, position.partition)
        path = f"{folder}/{position.offset:020d}-{crc32c(data):08x}{SUFFIX}"
        try:
            before = self._list(folder)
            self._drop(info.path for info in before if _is_left_behind(info, time.time()))
            self._write(path, data)
            self._drop(_older(before, path)[self._keep - 1 :])
        except OSError as error:
            raise StoreError(f"checkpoint {path} is not written: {error}; {_remedy(error)}") from error
        return len(data)

    def load(self, topic: str, partition: int) -> Iterator[Checkpoint | CheckpointError]:
        """Each checkpoint of a partition, newest first; in place of one that cannot be used, the error that says so."""
        folder = self._folder(topic, partition)
        try:
            found = [info for info in self._list(folder) if info.path.endswith(SUFFIX)]
        except OSError as error:
            raise StoreError(f"the checkpoints in {folder} cannot be listed: {error}; {_remedy(error)}") from error
        for info in found:
            try:
                yield self._read(info, topic, partition)
            except CheckpointError as error:
                yield CheckpointError(f"checkpoint {info.path} cannot be used: {error}")
            except OSError as error:
                if not self._is_gone(info.path):
                    raise StoreError(f"checkpoint {info.path} cannot be read: {error}; {_remedy(error)}") from error
                # Whoever had the partition before has just written a newer one and dropped this.

    def note(self, topic: str, partition: int, attempts: Attempts) -> None:
        """Writes down what is known of a partition's owners; a process that dies later cannot undo it."""
        path = f"{self._folder(topic, partition)}/{ATTEMPTS}"
        try:
            self._write(path, msgspec.json.encode(attempts))
        except OSError as error:
            raise StoreError(f"{path} is not written: {error}; {_remedy(error)}") from error

    def noted(self, topic: str, partition: int) -> Attempts | None:
        path = f"{self._folder(topic, partition)}/{ATTEMPTS}"
        try:
            with self._files.open_input_stream(path) as stream:
                return msgspec.json.decode(stream.read(), type=Attempts)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None  # nothing is lost with it but crashes that were counted
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}; {_remedy(error)}") from error

    def _folder(self, topic: str, partition: int) -> str:
        return f"{self._base}/{topic}-{partition}"

    def _list(self, folder: str) -> list[fs.FileInfo]:
        """What is in a folder, the newest checkpoint first."""
        selector = fs.FileSelector(folder, allow_not_found=True)
        try:
            found = self._files.get_file_info(selector)
        except FileNotFoundError:  # of a folder that somebody makes between Arrow's look into it and the one for it
            found = self._files.get_file_info(selector)
        return sorted(found, key=lambda info: str(info.path), reverse=True)

    def _is_gone(self, path: str) -> bool:
        """Arrow's S3 says of a file that is dropped between its HEAD and its GET only that something went wrong."""
        with suppress(OSError):
            return bool(self._files.get_file_info(path).type == fs.FileType.NotFound)
        return False

    def _read(self, info: fs.FileInfo, topic: str, partition: int) -> Checkpoint:
        if info.type != fs.FileType.File:
            raise CheckpointError("it is a directory; remove it")
        with self._files.open_input_stream(info.path) as stream:
            data = stream.read()
        if f"{crc32c(data):08x}" != info.base_name.removesuffix(SUFFIX).rpartition("-")[2]:
            raise CheckpointError(f"it is torn, its {len(data)} bytes do not have the checksum in its name; remove it")
        checkpoint = decode_checkpoint(data)
        _check_place(checkpoint.position, self._pipeline, topic, partition, info.base_name.partition("-")[0])
        return checkpoint

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._files, fs.LocalFileSystem):
            _write_to_disk(Path(path), data)
        else:
            with self._files.open_output_stream(path) as stream:
                stream.write(data)

    def _drop(self, paths: Iterable[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):  # two workers on one partition drop the same ones
                self._files.delete_file(path)


def _check_place(position: Position, pipeline: str, topic: str, partition: int, offset: str) -> None:
    mine, its = (pipeline, topic, partition), (position.pipeline, position.topic, position.partition)
    if mine != its:
        raise CheckpointError(
            f"it is of pipeline {its[0]!r} and {its[1]}[{its[2]}], not of {mine[0]!r} and {mine[1]}[{mine[2]}]; "
            "put it back where it came from, or remove it"
        )
    if offset != f"{position.offset:020d}":
        raise CheckpointError(f"it is of offset {position.offset}, which is not the one in its name; remove it")


def _older(found: Sequence[fs.FileInfo], path: str) -> list[str]:
    """The checkpoints of earlier offsets, the newest first."""
    files = (info.path for info in found if info.type == fs.FileType.File)
    return [each for each in files if each.endswith(SUFFIX) and each < path]


def _is_left_behind(info: fs.FileInfo, now_s: float) -> bool:
    return info.path.endswith(PART) and info.mtime is not None and info.mtime.timestamp() < now_s - LEFT_BEHIND_S


def _write_to_disk(path: Path, data: bytes) -> None:
    """The whole file or none, also when the process is killed, the disk is full, or the power fails."""
    _make_folder(path.parent)
    part = path.with_name(f"{path.name}.{uuid4().hex}{PART}")  # its own, whoever else writes the same checkpoint
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    """Makes names in it outlast a power cut: no predecessor may be dropped before its successor is found by name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
CREDENTIALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE", "TOKEN", "status 403")


def _remedy(error: OSError) -> str:
    text = str(error)
    if error.errno in FULL:
        return "make room there"
    if error.errno in CLOSED:
        return "let the workers' user write there"
    if "NO_SUCH_BUCKET" in text:
        return "make the bucket, or correct checkpoints.uri"
    if any(each in text for each in CREDENTIALS):
        return "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or the instance's role)"
    return "is the place that checkpoints.uri names there?"

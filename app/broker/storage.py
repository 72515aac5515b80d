"""Where the bytes of a segment lie: in memory or in a file. Both only grow."""

import errno
import os
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """An append-only run of bytes; `size_bytes` is its end."""

    size_bytes: int

    def append(self, data: bytes) -> None: ...
    def read(self, position: int, size_bytes: int) -> bytes: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def delete(self) -> None: ...


class MemoryStorage:
    """Bytes that are gone with the process."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        self._data += data
        self.size_bytes += len(data)

    def read(self, position: int, size_bytes: int) -> bytes:
        return bytes(memoryview(self._data)[position : position + size_bytes])

    def flush(self) -> None:
        """Nothing to do: there is no medium behind the memory."""

    def close(self) -> None:
        """Nothing to do: fetches in progress hold copies."""

    def delete(self) -> None:
        self._data = bytearray()


class FileStorage:
    """Bytes in a file, in the page cache after `append` (they survive kill -9), on the medium after `flush`.

    A write that fails half way leaves `size_bytes` as it was, and the next append overwrites the torn bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.size_bytes = os.fstat(self._descriptor).st_size

    def append(self, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, self.size_bytes)
        if written != len(data):
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(data)} bytes", str(self.path))
        self.size_bytes += written

    def read(self, position: int, size_bytes: int) -> bytes:
        return os.pread(self._descriptor, size_bytes, position)

    def cut(self, size_bytes: int) -> None:
        """Gives up everything behind `size_bytes`: the torn end that a crash left."""
        os.ftruncate(self._descriptor, size_bytes)
        self.size_bytes = size_bytes

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def delete(self) -> None:
        self.close()
        self.path.unlink()


def replace_file(path: Path, text: str) -> None:
    """Writes a small file as one step: after kill -9 it holds the old text or the new, never a part."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)

"""A segment: a stretch of a partition's log that is kept, read and dropped as one."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from app.broker.batch import BatchHeader, is_intact, walk_batches
from app.broker.storage import FileStorage, Storage


class Segment:
    """Whole batches one behind the other, with an index of 24 bytes a batch in memory."""

    def __init__(self, base_offset: int, storage: Storage) -> None:
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.first_append_ms: int | None = None  # by this process
        self._storage = storage
        self._offsets = array("q")
        self._positions = array("q")
        self._latest_ms = array("q")  # the highest timestamp up to and including each batch

    @property
    def size_bytes(self) -> int:
        return self._storage.size_bytes

    @property
    def is_empty(self) -> bool:
        return not self._offsets

    @property
    def max_timestamp_ms(self) -> int:
        return self._latest_ms[-1] if self._latest_ms else -1

    def append(self, header: BatchHeader, batch: bytes, now_ms: int) -> None:
        """Keeps a stamped batch. Raises OSError when the medium is full; the segment is then as before."""
        position = self._storage.size_bytes
        self._storage.append(batch)
        self.note(position, header)
        if self.first_append_ms is None:
            self.first_append_ms = now_ms

    def note(self, position: int, header: BatchHeader) -> None:
        """Takes a batch that lies in the storage into the index."""
        self._positions.append(position)
        self._offsets.append(header.base_offset)
        self._latest_ms.append(max(self.max_timestamp_ms, header.max_timestamp_ms))
        self.next_offset = header.next_offset

    def read(self, offset: int, max_bytes: int, before: int) -> bytes:
        """Returns whole batches from the one that holds `offset` on: up to `max_bytes`, but at least one; none that
        begins at the offset `before` or behind it."""
        first = bisect_right(self._offsets, offset) - 1
        start, end = self._positions[first], self._position_of(bisect_left(self._offsets, before))
        if end - start <= max_bytes:
            return self._storage.read(start, end - start)
        behind = bisect_right(self._positions, start + max_bytes) - 1
        return self._storage.read(start, self._position_of(max(behind, first + 1)) - start)

    def _position_of(self, index: int) -> int:
        return self._positions[index] if index < len(self._positions) else self.size_bytes

    def find_time(self, timestamp_ms: int) -> tuple[BatchHeader, bytes] | None:
        """Returns the first batch with a record at or behind `timestamp_ms`."""
        index = bisect_left(self._latest_ms, timestamp_ms)
        if index == len(self._latest_ms):
            return None
        start = self._positions[index]
        batch = self._storage.read(start, self._position_of(index + 1) - start)
        return next(walk_batches(memoryview(batch)))[1], batch

    def flush(self) -> None:
        self._storage.flush()

    def close(self) -> None:
        self._storage.close()

    def delete(self) -> None:
        self._storage.delete()


def recover_segment(
    base_offset: int, storage: FileStorage, check: bool
) -> tuple[Segment, list[tuple[BatchHeader, memoryview]]]:
    """Returns the segment that lies in a file, and its batches; cuts off what does not continue the log.

    `check` compares the checksums as well: for the segment that was being written when the process ended.
    """
    segment = Segment(base_offset, storage)
    data = memoryview(storage.read(0, storage.size_bytes))
    batches = []
    end = 0
    for position, header in _continued(segment, data, check):
        segment.note(position, header)
        end = position + header.size_bytes
        batches.append((header, data[position:end]))
    if end < storage.size_bytes:
        storage.cut(end)
    return segment, batches


def _continued(segment: Segment, data: memoryview, check: bool) -> Iterator[tuple[int, BatchHeader]]:
    for position, header in walk_batches(data):
        whole = data[position : position + header.size_bytes]
        if header.base_offset != segment.next_offset or (check and not is_intact(header, whole)):
            return
        yield position, header

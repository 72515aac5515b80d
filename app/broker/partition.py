"""A partition: one log of record batches, in segments."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kafka.errors import OffsetOutOfRangeError

from app.broker.batch import (
    LOG_APPEND_TIME,
    BatchHeader,
    check_batch,
    first_record_at,
    make_marker,
    marker_commits,
    read_header,
    stamp,
)
from app.broker.config import TopicConfig
from app.broker.isolation import Isolation
from app.broker.producers import Producers
from app.broker.segment import Segment, recover_segment
from app.broker.storage import FileStorage, MemoryStorage, replace_file
from app.errors import BrokerError

NO_TIMESTAMP = -1


class Appended(NamedTuple):
    """Where a batch lies, and its append time: -1 where the producer's timestamps are kept."""

    base_offset: int
    append_ms: int


class Partition:
    """The log and what is derived from it; nothing else is stored, except for what was deleted by request.

    With a directory a batch is in the page cache when `append` returns: it survives kill -9 of the process.
    """

    def __init__(self, directory: Path | None) -> None:
        self.producers = Producers()
        self.isolation = Isolation()
        self.watchers: set[asyncio.Event] = set()
        self._directory = directory
        self._segments = self._recover(directory) if directory else []
        if not self._segments:
            self._segments = [self._new_segment(0)]
        self.start_offset = max(self._segments[0].base_offset, self._read_start())

    @property
    def end_offset(self) -> int:
        return self._segments[-1].next_offset

    @property
    def stable_offset(self) -> int:
        """Where the oldest open transaction begins, otherwise the end: read_committed ends here."""
        return self.isolation.stable_offset(self.end_offset)

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, records: bytes, config: TopicConfig, now_ms: int) -> Appended:
        """Keeps a produced batch and wakes who waits for it; a batch kept before is not kept again.

        Raises the protocol's error for a batch that cannot be kept (see `check_batch`, `find_duplicate`), and
        OSError when the medium refuses it; the log is then unchanged.
        """
        header = check_batch(records, config.max_message_bytes)
        by_append_time = config.message_timestamp_type == "LogAppendTime"
        duplicate = self.producers.find_duplicate(header)
        if duplicate:
            return Appended(duplicate.base_offset, duplicate.timestamp_ms if by_append_time else NO_TIMESTAMP)
        batch = stamp(records, self.end_offset, now_ms if by_append_time else None)
        header = self._keep(batch, config, now_ms)
        return Appended(header.base_offset, now_ms if by_append_time else NO_TIMESTAMP)

    def end_transaction(self, producer_id: int, epoch: int, config: TopicConfig, now_ms: int, *, commits: bool) -> None:
        """Writes the marker that commits or aborts what the producer has open here; nothing when it has nothing."""
        if self.isolation.is_open(producer_id):
            end = self.end_offset
            marker = make_marker(producer_id, epoch, commits=commits, base_offset=end, append_ms=now_ms)
            self._keep(marker, config, now_ms)

    def _keep(self, batch: bytes, config: TopicConfig, now_ms: int) -> BatchHeader:
        header = read_header(batch)
        self._segment_for(len(batch), config, now_ms).append(header, batch, now_ms)
        self._note(header, batch)
        for watcher in self.watchers:
            watcher.set()
        return header

    def _note(self, header: BatchHeader, batch: bytes | memoryview) -> None:
        self.producers.remember(header)
        if header.is_control:
            self.isolation.note_end(header, commits=marker_commits(batch))
        elif header.is_transactional:
            self.isolation.note_batch(header)

    def read(self, offset: int, max_bytes: int, before: int | None = None) -> bytes:
        """Returns whole batches from the one that holds `offset` on, at least one; nothing at the log's end.

        `before` is where reading ends earlier, a batch's first offset. Raises OffsetOutOfRangeError in front of the
        log's start and behind its end.
        """
        if not self.start_offset <= offset <= self.end_offset:
            raise OffsetOutOfRangeError(f"offset {offset} is not in {self.start_offset}..{self.end_offset}")
        before = self.end_offset if before is None else before
        if offset >= before:
            return b""
        holding = next(segment for segment in self._segments if offset < segment.next_offset)
        return holding.read(offset, max_bytes, before)

    def find_time(self, timestamp_ms: int) -> tuple[int, int] | None:
        """Returns (offset, timestamp) of the first record at or behind `timestamp_ms`."""
        for segment in self._segments:
            found = segment.find_time(timestamp_ms)
            if found:
                header, batch = found
                if header.attributes & LOG_APPEND_TIME:
                    return max(header.base_offset, self.start_offset), header.max_timestamp_ms
                return first_record_at(batch, timestamp_ms)
        return None

    def delete_before(self, offset: int) -> int:
        """Returns the log's new start. Raises OffsetOutOfRangeError when `offset` lies behind the end."""
        if offset > self.end_offset:
            raise OffsetOutOfRangeError(f"offset {offset} lies behind the end {self.end_offset}")
        if offset > self.start_offset:
            self.start_offset = offset
            if self._directory:
                replace_file(self._directory / "start-offset", str(offset))
            while len(self._segments) > 1 and self._segments[0].next_offset <= offset:
                self._drop_first()
        return self.start_offset

    def drop_expired(self, config: TopicConfig, now_ms: int) -> None:
        """Drops the oldest segments, whole, as long as they are too old or the rest is large enough."""
        while not self._segments[0].is_empty and self._first_is_expired(config, now_ms):
            if len(self._segments) == 1:
                self._segments.append(self._new_segment(self.end_offset))
            self._drop_first()

    def flush(self) -> None:
        for segment in self._segments:
            segment.flush()

    def close(self) -> None:
        for segment in self._segments:
            segment.close()

    def delete(self) -> None:
        for segment in self._segments:
            segment.delete()

    def _first_is_expired(self, config: TopicConfig, now_ms: int) -> bool:
        first = self._segments[0]
        too_old = config.retention_ms >= 0 and first.max_timestamp_ms < now_ms - config.retention_ms
        enough_left = self.size_bytes - first.size_bytes >= config.retention_bytes
        return too_old or (config.retention_bytes >= 0 and len(self._segments) > 1 and enough_left)

    def _drop_first(self) -> None:
        self._segments.pop(0).delete()
        self.start_offset = max(self.start_offset, self._segments[0].base_offset)
        self.isolation.forget_before(self.start_offset)

    def _segment_for(self, batch_bytes: int, config: TopicConfig, now_ms: int) -> Segment:
        active = self._segments[-1]
        full = active.size_bytes + batch_bytes > config.segment_bytes
        old = active.first_append_ms is not None and now_ms - active.first_append_ms > config.roll_ms
        if active.is_empty or not (full or old):
            return active
        self._segments.append(self._new_segment(active.next_offset))
        return self._segments[-1]

    def _new_segment(self, base_offset: int) -> Segment:
        if not self._directory:
            return Segment(base_offset, MemoryStorage())
        return Segment(base_offset, FileStorage(self._directory / f"{base_offset:020}.log"))

    def _recover(self, directory: Path) -> list[Segment]:
        directory.mkdir(parents=True, exist_ok=True)
        segments = []
        paths = sorted(directory.glob("*.log"))
        for path in paths:
            segment, batches = recover_segment(int(path.stem), FileStorage(path), check=path == paths[-1])
            segments.append(segment)
            for header, batch in batches:
                self._note(header, batch)
        for before, behind in pairwise(segments):
            if before.next_offset != behind.base_offset:
                raise BrokerError(
                    f"{directory} lacks offsets {before.next_offset} to {behind.base_offset - 1}; "
                    "restore its files or remove the folder"
                )
        return segments

    def _read_start(self) -> int:
        path = self._directory / "start-offset" if self._directory else None
        return int(path.read_text()) if path and path.exists() else 0

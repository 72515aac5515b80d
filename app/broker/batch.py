"""The record batch (message format v2), kept as the bytes that came: only its header is read and rewritten.

Layout, big endian: https://kafka.apache.org/documentation/#recordbatch. The checksum covers everything from
the attributes on; base offset and leader epoch lie before it, so that a broker can set them as they are.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from crc32c import crc32c
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    MessageSizeTooLargeError,
    UnsupportedForMessageFormatError,
)
from kafka.record import MemoryRecords

HEADER = Struct(">qiibIhiqqqhii")
LENGTH_AT = 8
LENGTH = Struct(">i")
BEFORE_LENGTH_ENDS = 12  # the length counts the bytes behind itself
CHECKSUM_AT = 17
CHECKSUM = Struct(">I")
CHECKSUM_FROM = 21
LOG_APPEND_TIME = 1 << 3
TRANSACTIONAL = 1 << 4
CONTROL = 1 << 5
MAGIC = 2
# The one record of a control batch: length, attributes, deltas of time and offset, a key of version and kind, a value
# of version and coordinator epoch, no headers. Every length is a varint that fits one byte.
MARKER = Struct(">bbbbbhhbhib")
MARKER_BYTES, MARKER_KEY_BYTES, MARKER_VALUE_BYTES = (2 * size for size in (MARKER.size - 1, 4, 6))  # zigzag
ABORT, COMMIT = 0, 1


class BatchHeader(NamedTuple):
    """The fields of one batch's header, in the order of the wire."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    checksum: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        return BEFORE_LENGTH_ENDS + self.length

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & CONTROL)

    @property
    def last_sequence(self) -> int:
        """Sequence numbers start again at 0 behind 2^31 - 1."""
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF


def read_header(data: bytes | memoryview, position: int = 0) -> BatchHeader:
    """Raises CorruptRecordError when fewer bytes are left than a header has."""
    if len(data) - position < HEADER.size:
        raise CorruptRecordError(f"{len(data) - position} bytes are too few for a record batch")
    return BatchHeader._make(HEADER.unpack_from(data, position))


def check_batch(records: bytes, max_bytes: int) -> BatchHeader:
    """Returns the header of the one batch that a produce request may carry for a partition.

    Raises the error that Kafka's protocol has for it: too large, torn, corrupt, of an old format, or with
    offsets that do not count its records, or a control batch, which only a broker writes.
    """
    if len(records) > max_bytes:
        raise MessageSizeTooLargeError(f"a batch of {len(records)} bytes; max.message.bytes is {max_bytes}")
    header = read_header(records)
    if header.magic != MAGIC:
        raise UnsupportedForMessageFormatError(f"message format {header.magic}; only {MAGIC} is kept here")
    if header.size_bytes != len(records):
        raise InvalidRecordError("a produce request carries exactly one whole batch for a partition")
    if not is_intact(header, memoryview(records)):
        raise CorruptRecordError("the batch's checksum does not fit its bytes")
    if header.record_count < 1 or header.record_count != header.last_offset_delta + 1:
        raise InvalidRecordError(f"{header.record_count} records over {header.last_offset_delta + 1} offsets")
    if header.is_control:
        raise InvalidRecordError("a control batch; transactions are ended by EndTxn")
    return header


def is_intact(header: BatchHeader, batch: memoryview) -> bool:
    return bool(header.checksum == crc32c(batch[CHECKSUM_FROM:]))


def stamp(records: bytes, base_offset: int, append_ms: int | None) -> bytes:
    """The batch as the log keeps it: at its offset and, with LogAppendTime, at its time of arrival.

    `append_ms` None keeps the producer's timestamps and thereby the checksum.
    """
    batch = bytearray(records)
    header = read_header(records)._replace(base_offset=base_offset, leader_epoch=0)
    if append_ms is not None:
        header = header._replace(attributes=header.attributes | LOG_APPEND_TIME, max_timestamp_ms=append_ms)
    HEADER.pack_into(batch, 0, *header)
    if append_ms is not None:
        CHECKSUM.pack_into(batch, CHECKSUM_AT, crc32c(memoryview(batch)[CHECKSUM_FROM:]))
    return bytes(batch)


def make_marker(producer_id: int, epoch: int, *, commits: bool, base_offset: int, append_ms: int) -> bytes:
    """The control batch that ends a producer's transaction in a partition."""
    kind = COMMIT if commits else ABORT
    record = MARKER.pack(MARKER_BYTES, 0, 0, 0, MARKER_KEY_BYTES, 0, kind, MARKER_VALUE_BYTES, 0, 0, 0)
    header = BatchHeader(
        base_offset=base_offset,
        length=HEADER.size - BEFORE_LENGTH_ENDS + len(record),
        leader_epoch=0,
        magic=MAGIC,
        checksum=0,
        attributes=TRANSACTIONAL | CONTROL | LOG_APPEND_TIME,
        last_offset_delta=0,
        base_timestamp_ms=append_ms,
        max_timestamp_ms=append_ms,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=-1,
        record_count=1,
    )
    batch = bytearray(HEADER.pack(*header) + record)
    CHECKSUM.pack_into(batch, CHECKSUM_AT, crc32c(memoryview(batch)[CHECKSUM_FROM:]))
    return bytes(batch)


def marker_commits(batch: bytes | memoryview) -> bool:
    """Whether a control batch of this broker's commits; otherwise it aborts."""
    kind: int = MARKER.unpack_from(batch, HEADER.size)[6]
    return kind == COMMIT


def walk_batches(data: memoryview) -> Iterator[tuple[int, BatchHeader]]:
    """Yields (position, header) of every whole batch; stops in front of bytes that are not one."""
    position = 0
    while len(data) - position >= HEADER.size:
        header = read_header(data, position)
        if header.magic != MAGIC or header.length < HEADER.size - BEFORE_LENGTH_ENDS:
            return
        if position + header.size_bytes > len(data):
            return
        yield position, header
        position += header.size_bytes


def first_record_at(batch: bytes, timestamp_ms: int) -> tuple[int, int] | None:
    """Returns (offset, timestamp) of the first record at or behind `timestamp_ms`; unpacks the batch."""
    for unpacked in MemoryRecords(batch):
        for record in unpacked:
            if record.timestamp >= timestamp_ms:
                return record.offset, record.timestamp
    return None

"""Record batches as a producer makes them, by kafka-python's own builder."""

from collections.abc import Sequence

from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder


def make_batch(
    values: Sequence[bytes],
    *,
    producer_id: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    times_ms: Sequence[int] | None = None,
) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        batch_size=10**6,
    )
    for offset, value in enumerate(values):
        time_ms = times_ms[offset] if times_ms else 1_000
        builder.append(offset, timestamp=time_ms, key=None, value=value, headers=[])
    return bytes(builder.build())


def read_back(data: bytes) -> list[tuple[int, bytes, int]]:
    """(offset, value, timestamp) of every record, with checksums compared."""
    records = MemoryRecords(data)
    read = []
    while (batch := records.next_batch()) is not None:
        assert batch.validate_crc()
        read += [(record.offset, bytes(record.value), record.timestamp) for record in batch]
    return read

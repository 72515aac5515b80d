"""Record batches as a producer makes them, by kafka-python's own builder."""

from collections.abc import Sequence

from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder

from app.broker.partition import Partition


def make_batch(
    values: Sequence[bytes],
    *,
    producer_id: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    times_ms: Sequence[int] | None = None,
    transactional: bool = False,
) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=transactional,
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


def read_committed(partition: Partition) -> list[bytes]:
    """The values that a reader makes of what Fetch gives for read_committed, one request a batch."""
    values, offset = [], 0
    while data := partition.read(offset, 1, partition.stable_offset):
        batch = MemoryRecords(data).next_batch()
        aborted = {
            each.producer_id
            for each in partition.isolation.aborted_from(offset)
            if each.first_offset <= batch.base_offset
        }
        if not batch.is_control_batch and batch.producer_id not in aborted:
            values += [bytes(record.value) for record in batch]
        offset = batch.last_offset + 1
    return values

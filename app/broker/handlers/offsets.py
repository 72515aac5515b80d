"""Where a log begins, ends and was at a time: ListOffsets; and where it shall begin: DeleteRecords."""

from typing import TypeAlias

from kafka.errors import BrokerResponseError
from kafka.protocol.admin import DeleteRecordsRequest, DeleteRecordsResponse
from kafka.protocol.consumer import IsolationLevel, ListOffsetsRequest, ListOffsetsResponse, OffsetSpec

from app.broker.partition import NO_TIMESTAMP, Partition
from app.broker.state import BrokerState

Listed: TypeAlias = ListOffsetsResponse.ListOffsetsTopicResponse
ListedPartition: TypeAlias = ListOffsetsResponse.ListOffsetsTopicResponse.ListOffsetsPartitionResponse
Deleted: TypeAlias = DeleteRecordsResponse.DeleteRecordsTopicResult
DeletedPartition: TypeAlias = DeleteRecordsResponse.DeleteRecordsTopicResult.DeleteRecordsPartitionResult
HIGH_WATERMARK = -1
NOT_FOUND = (-1, NO_TIMESTAMP)


async def list_offsets(state: BrokerState, request: ListOffsetsRequest) -> ListOffsetsResponse:
    """For readers of committed records a log ends where its oldest open transaction begins."""
    committed_only = request.isolation_level == IsolationLevel.READ_COMMITTED
    topics = []
    for topic in request.topics:
        partitions = [_list(state, topic.name, wanted, committed_only=committed_only) for wanted in topic.partitions]
        topics.append(Listed(name=topic.name, partitions=partitions))
    return ListOffsetsResponse(topics=topics)


def _list(
    state: BrokerState,
    topic: str,
    wanted: ListOffsetsRequest.ListOffsetsTopic.ListOffsetsPartition,
    *,
    committed_only: bool,
) -> ListedPartition:
    try:
        _, partition = state.find_partition("ListOffsets", topic, wanted.partition_index)
    except BrokerResponseError as error:
        return ListedPartition(partition_index=wanted.partition_index, error_code=error.errno)
    end_offset = partition.stable_offset if committed_only else partition.end_offset
    offset, timestamp_ms = _look_up(partition, wanted.timestamp, end_offset)
    return ListedPartition(
        partition_index=wanted.partition_index,
        error_code=0,
        timestamp=timestamp_ms,
        offset=offset,
        leader_epoch=0 if offset >= 0 else -1,
    )


def _look_up(partition: Partition, timestamp_ms: int, end_offset: int) -> tuple[int, int]:
    if timestamp_ms == OffsetSpec.LATEST:
        return end_offset, NO_TIMESTAMP
    if timestamp_ms == OffsetSpec.EARLIEST:
        return partition.start_offset, NO_TIMESTAMP
    found = partition.find_time(timestamp_ms)
    return found if found and found[0] < end_offset else NOT_FOUND


async def delete_records(state: BrokerState, request: DeleteRecordsRequest) -> DeleteRecordsResponse:
    topics = [
        Deleted(name=topic.name, partitions=[_delete(state, topic.name, wanted) for wanted in topic.partitions])
        for topic in request.topics
    ]
    return DeleteRecordsResponse(topics=topics)


def _delete(
    state: BrokerState, topic: str, wanted: DeleteRecordsRequest.DeleteRecordsTopic.DeleteRecordsPartition
) -> DeletedPartition:
    index = wanted.partition_index
    try:
        _, partition = state.find_partition("DeleteRecords", topic, index)
        offset = partition.end_offset if wanted.offset == HIGH_WATERMARK else wanted.offset
        return DeletedPartition(partition_index=index, low_watermark=partition.delete_before(offset), error_code=0)
    except BrokerResponseError as error:
        return DeletedPartition(partition_index=index, low_watermark=-1, error_code=error.errno)

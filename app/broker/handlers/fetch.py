"""Records out: Fetch, which waits for them."""

import asyncio
from collections.abc import Iterator
from typing import TypeAlias

from kafka.errors import BrokerResponseError
from kafka.protocol.consumer import FetchRequest, FetchResponse, IsolationLevel

from app.broker.faults import Stall
from app.broker.partition import Partition
from app.broker.state import BrokerState

TopicAnswer: TypeAlias = FetchResponse.FetchableTopicResponse
PartitionAnswer: TypeAlias = FetchResponse.FetchableTopicResponse.PartitionData
AbortedAnswer: TypeAlias = FetchResponse.FetchableTopicResponse.PartitionData.AbortedTransaction


async def fetch(state: BrokerState, request: FetchRequest) -> FetchResponse:
    """Answers when `min_bytes` are there, when a partition fails, or at the end of the wait.

    Always in full: the answer names no fetch session, so clients name all their partitions in every request.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + request.max_wait_ms / 1_000
    while True:
        response = _collect(state, request)
        if _is_enough(response, request.min_bytes):
            return response
        if not await _appended(list(_partitions(state, request)), deadline_s - loop.time()):
            return response


def _collect(state: BrokerState, request: FetchRequest) -> FetchResponse:
    left_bytes = request.max_bytes
    topics = []
    for topic in request.topics:
        partitions = []
        for wanted in topic.partitions:
            committed_only = request.isolation_level == IsolationLevel.READ_COMMITTED
            answer = _read(state, topic.topic, wanted, left_bytes, committed_only=committed_only)
            left_bytes -= len(answer.records)
            partitions.append(answer)
        topics.append(TopicAnswer(topic=topic.topic, partitions=partitions))
    return FetchResponse(error_code=0, session_id=0, responses=topics)


def _read(
    state: BrokerState,
    topic: str,
    wanted: FetchRequest.FetchTopic.FetchPartition,
    left_bytes: int,
    *,
    committed_only: bool,
) -> PartitionAnswer:
    """Reads as long as the response has room; a first batch larger than the room goes out whole."""
    try:
        _, partition = state.find_partition("Fetch", topic, wanted.partition)
        nothing = left_bytes <= 0 or state.faults.find(Stall, "Fetch", topic, wanted.partition)
        room_bytes = min(wanted.partition_max_bytes, left_bytes)
        before = partition.stable_offset if committed_only else partition.end_offset
        records = b"" if nothing else partition.read(wanted.fetch_offset, room_bytes, before)
    except BrokerResponseError as error:
        return PartitionAnswer(partition_index=wanted.partition, error_code=error.errno, high_watermark=-1, records=b"")
    return PartitionAnswer(
        partition_index=wanted.partition,
        error_code=0,
        high_watermark=partition.end_offset,
        last_stable_offset=partition.stable_offset,
        log_start_offset=partition.start_offset,
        aborted_transactions=_aborted(partition, wanted.fetch_offset) if committed_only else None,
        records=records,
    )


def _aborted(partition: Partition, offset: int) -> list[AbortedAnswer]:
    return [
        AbortedAnswer(producer_id=each.producer_id, first_offset=each.first_offset)
        for each in partition.isolation.aborted_from(offset)
    ]


def _is_enough(response: FetchResponse, min_bytes: int) -> bool:
    partitions = [partition for topic in response.responses for partition in topic.partitions]
    failed = any(partition.error_code for partition in partitions)
    return failed or sum(len(partition.records) for partition in partitions) >= min_bytes


def _partitions(state: BrokerState, request: FetchRequest) -> Iterator[Partition]:
    for topic in request.topics:
        for wanted in topic.partitions:
            yield state.topics.find(topic.topic).partitions[wanted.partition]


async def _appended(partitions: list[Partition], wait_s: float) -> bool:
    """Waits for an append to one of the partitions; False when there was none in `wait_s`."""
    appended = asyncio.Event()
    for partition in partitions:
        partition.watchers.add(appended)
    try:
        async with asyncio.timeout(wait_s):
            return await appended.wait()
    except TimeoutError:
        return False
    finally:
        for partition in partitions:
            partition.watchers.discard(appended)

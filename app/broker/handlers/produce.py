"""Records in: Produce."""

import asyncio
from typing import TypeAlias

from kafka.errors import (
    BrokerResponseError,
    KafkaStorageError,
    RequestTimedOutError,
)
from kafka.protocol.producer import ProduceRequest, ProduceResponse

from app.broker.batch import read_header
from app.broker.faults import Stall
from app.broker.partition import Appended, Partition
from app.broker.state import BrokerState, now_ms

TopicAnswer: TypeAlias = ProduceResponse.TopicProduceResponse
PartitionAnswer: TypeAlias = ProduceResponse.TopicProduceResponse.PartitionProduceResponse
STALL_LOOK_S = 0.01


async def produce(state: BrokerState, request: ProduceRequest) -> ProduceResponse:
    answers = []
    for topic in request.topic_data:
        partitions = [
            await _produce_partition(state, topic.name, sent, request.transactional_id, request.timeout_ms)
            for sent in topic.partition_data
        ]
        answers.append(TopicAnswer(name=topic.name, partition_responses=partitions))
    return ProduceResponse(responses=answers)


async def _produce_partition(
    state: BrokerState,
    topic: str,
    sent: ProduceRequest.TopicProduceData.PartitionProduceData,
    transactional_id: str | None,
    timeout_ms: int,
) -> PartitionAnswer:
    try:
        found, partition = state.find_partition("Produce", topic, sent.index)
        await _until_it_moves(state, topic, sent.index, timeout_ms)
        records = sent.records or b""
        state.transactions.check_batch(transactional_id, read_header(records), (topic, sent.index))
        appended = partition.append(records, found.config, now_ms())
        return _accepted(sent.index, partition, appended)
    except BrokerResponseError as error:
        return _refused(sent.index, error)
    except OSError as error:
        return _refused(sent.index, KafkaStorageError(str(error)))


async def _until_it_moves(state: BrokerState, topic: str, index: int, timeout_ms: int) -> None:
    """Raises RequestTimedOutError when the partition stalls for longer than the request may wait."""
    waited_s = 0.0
    while state.faults.find(Stall, "Produce", topic, index):
        if waited_s * 1_000 >= timeout_ms:
            raise RequestTimedOutError(f"{topic}/{index} stands still")
        await asyncio.sleep(STALL_LOOK_S)
        waited_s += STALL_LOOK_S
        state.faults.refresh()


def _accepted(index: int, partition: Partition, appended: Appended) -> PartitionAnswer:
    return PartitionAnswer(
        index=index,
        error_code=0,
        base_offset=appended.base_offset,
        log_append_time_ms=appended.append_ms,
        log_start_offset=partition.start_offset,
        record_errors=[],
    )


def _refused(index: int, error: BrokerResponseError) -> PartitionAnswer:
    return PartitionAnswer(
        index=index, error_code=error.errno, base_offset=-1, record_errors=[], error_message=str(error)
    )

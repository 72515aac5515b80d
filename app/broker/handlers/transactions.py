"""Transactions: InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, TxnOffsetCommit, EndTxn."""

from collections.abc import Callable
from typing import TypeAlias

from kafka.errors import BrokerResponseError, KafkaStorageError
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddOffsetsToTxnResponse,
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse,
    EndTxnRequest,
    EndTxnResponse,
    InitProducerIdRequest,
    InitProducerIdResponse,
    TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
)

from app.broker.groups import CommittedOffset
from app.broker.state import BrokerState, now_ms
from app.broker.transactions import PendingOffset, ProducerRef

AddedTopic: TypeAlias = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult
AddedPartition: TypeAlias = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult.AddPartitionsToTxnPartitionResult
CommittedTopic: TypeAlias = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic
CommittedPartition: TypeAlias = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic.TxnOffsetCommitResponsePartition
NO_TRANSACTIONS_EPOCH = 0


async def init_producer_id(state: BrokerState, request: InitProducerIdRequest) -> InitProducerIdResponse:
    """Without a transactional id a new producer each time, as with Kafka."""
    transactional_id = request.transactional_id
    if transactional_id is None:
        new_id = state.transactions.new_producer_id()
        return InitProducerIdResponse(error_code=0, producer_id=new_id, producer_epoch=NO_TRANSACTIONS_EPOCH)
    known_as = (request.producer_id, request.producer_epoch)
    try:
        producer_id, epoch = state.transactions.init(
            transactional_id, request.transaction_timeout_ms, known_as, now_ms()
        )
    except BrokerResponseError as error:
        return InitProducerIdResponse(error_code=error.errno, producer_epoch=-1)
    return InitProducerIdResponse(error_code=0, producer_id=producer_id, producer_epoch=epoch)


async def add_partitions_to_txn(state: BrokerState, request: AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse:
    """All of them, or with the first that cannot be had, none."""
    producer = ProducerRef(
        request.v3_and_below_transactional_id,
        request.v3_and_below_producer_id,
        request.v3_and_below_producer_epoch,
    )
    wanted = [(topic.name, index) for topic in request.v3_and_below_topics for index in topic.partitions]

    def add() -> None:
        for topic, index in wanted:
            state.find_partition("AddPartitionsToTxn", topic, index)
        state.transactions.add_partitions(producer, wanted, now_ms())

    code = _error_code(add)
    topics = []
    for topic in request.v3_and_below_topics:
        results = [AddedPartition(partition_index=index, partition_error_code=code) for index in topic.partitions]
        topics.append(AddedTopic(name=topic.name, results_by_partition=results))
    return AddPartitionsToTxnResponse(results_by_topic_v3_and_below=topics)


async def add_offsets_to_txn(state: BrokerState, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse:
    producer = ProducerRef(request.transactional_id, request.producer_id, request.producer_epoch)
    code = _error_code(lambda: state.transactions.add_group(producer, request.group_id, now_ms()))
    return AddOffsetsToTxnResponse(error_code=code)


async def txn_offset_commit(state: BrokerState, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse:
    """The group has the offsets when the transaction commits, and not before."""
    producer = ProducerRef(request.transactional_id, request.producer_id, request.producer_epoch)
    offsets = [
        PendingOffset(
            request.group_id,
            topic.name,
            sent.partition_index,
            CommittedOffset(sent.committed_offset, sent.committed_leader_epoch, sent.committed_metadata or ""),
        )
        for topic in request.topics
        for sent in topic.partitions
    ]

    def add() -> None:
        for offset in offsets:
            state.find_partition("TxnOffsetCommit", offset.topic, offset.partition)
        state.transactions.add_offsets(producer, offsets)

    code = _error_code(add)
    topics = []
    for topic in request.topics:
        results = [
            CommittedPartition(partition_index=sent.partition_index, error_code=code) for sent in topic.partitions
        ]
        topics.append(CommittedTopic(name=topic.name, partitions=results))
    return TxnOffsetCommitResponse(topics=topics)


async def end_txn(state: BrokerState, request: EndTxnRequest) -> EndTxnResponse:
    producer = ProducerRef(request.transactional_id, request.producer_id, request.producer_epoch)
    code = _error_code(lambda: state.transactions.end(producer, commits=request.committed))
    return EndTxnResponse(error_code=code)


def _error_code(carry_out: Callable[[], None]) -> int:
    try:
        carry_out()
    except BrokerResponseError as error:
        return int(error.errno)
    except OSError as error:
        return int(KafkaStorageError(str(error)).errno)
    return 0

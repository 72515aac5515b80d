"""Requests and answers without a connection."""

import asyncio
from typing import Any

import pytest
from kafka.errors import (
    CorruptRecordError,
    InvalidRecordError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.consumer import FetchRequest
from kafka.protocol.metadata import MetadataRequest
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest

from app.broker.faults import Faults
from app.broker.handlers.fetch import fetch
from app.broker.handlers.metadata import metadata
from app.broker.handlers.produce import produce
from app.broker.handlers.transactions import init_producer_id
from app.broker.state import BrokerState
from tests.unit.broker.batches import make_batch, read_back


@pytest.fixture
def state() -> BrokerState:
    state = BrokerState.open("127.0.0.1", None, Faults())
    state.topics.create("t", 2, {})
    return state


def produce_request(batch: bytes, topic: str = "t", partition: int = 0) -> ProduceRequest:
    sent = ProduceRequest.TopicProduceData.PartitionProduceData(index=partition, records=batch)
    topic_data = [ProduceRequest.TopicProduceData(name=topic, partition_data=[sent])]
    return ProduceRequest(acks=-1, timeout_ms=1_000, topic_data=topic_data)


def fetch_request(max_bytes: int = 10_000, max_wait_ms: int = 0, partitions: int = 2) -> FetchRequest:
    wanted = [
        FetchRequest.FetchTopic.FetchPartition(partition=index, fetch_offset=0, partition_max_bytes=max_bytes)
        for index in range(partitions)
    ]
    topics = [FetchRequest.FetchTopic(topic="t", partitions=wanted)]
    return FetchRequest(max_wait_ms=max_wait_ms, min_bytes=1, max_bytes=max_bytes, topics=topics)


def produce_batch(state: BrokerState, batch: bytes, topic: str = "t", partition: int = 0) -> Any:
    response = asyncio.run(produce(state, produce_request(batch, topic, partition)))
    return response.responses[0].partition_responses[0]


def fetched(response: Any) -> list[bytes]:
    return [partition.records for topic in response.responses for partition in topic.partitions]


def test_asking_for_an_unknown_topic_does_not_create_it(state: BrokerState) -> None:
    asked = MetadataRequest(topics=[MetadataRequest.MetadataRequestTopic(name="new")], allow_auto_topic_creation=True)
    [answer] = asyncio.run(metadata(state, asked)).topics
    assert answer.error_code == UnknownTopicOrPartitionError.errno
    assert [topic.name for topic in state.topics] == ["t"]


@pytest.mark.parametrize(("topic", "partition"), [("new", 0), ("t", 2), ("t", -1)])
def test_producing_to_an_unknown_partition_is_refused(state: BrokerState, topic: str, partition: int) -> None:
    answer = produce_batch(state, make_batch([b"x"]), topic, partition)
    assert answer.error_code == UnknownTopicOrPartitionError.errno


def test_a_corrupt_batch_is_refused_and_not_kept(state: BrokerState) -> None:
    answer = produce_batch(state, make_batch([b"x"])[:-1] + b"\xff")
    assert answer.error_code == CorruptRecordError.errno
    assert state.topics.find("t").partitions[0].end_offset == 0


def test_a_batch_larger_than_the_limit_is_fetched_whole_and_fills_the_response(state: BrokerState) -> None:
    for partition in range(2):
        produce_batch(state, make_batch([bytes(500)]), partition=partition)
    first, second = fetched(asyncio.run(fetch(state, fetch_request(max_bytes=100))))
    assert read_back(first)[0][1] == bytes(500)
    assert second == b""


def test_a_fetch_that_finds_nothing_answers_empty_at_the_end_of_its_wait(state: BrokerState) -> None:
    assert fetched(asyncio.run(fetch(state, fetch_request(max_wait_ms=20)))) == [b"", b""]


def test_a_waiting_fetch_wakes_on_an_append_to_any_of_its_partitions(state: BrokerState) -> None:
    async def wait_then_append() -> Any:
        waiting = asyncio.create_task(fetch(state, fetch_request(max_wait_ms=60_000)))
        await asyncio.sleep(0)
        await produce(state, produce_request(make_batch([b"x"]), partition=1))
        return await asyncio.wait_for(waiting, 10)

    assert [len(read_back(records)) if records else 0 for records in fetched(asyncio.run(wait_then_append()))] == [0, 1]
    assert not any(partition.watchers for partition in state.topics.find("t").partitions)


def test_producers_without_transactions_get_ids_that_differ(state: BrokerState) -> None:
    first, second = (
        asyncio.run(init_producer_id(state, InitProducerIdRequest(transactional_id=None))) for _ in range(2)
    )
    assert first.producer_id != second.producer_id


def test_a_transactional_batch_outside_of_a_transaction_is_refused(state: BrokerState) -> None:
    batch = make_batch([b"x"], producer_id=1, epoch=0, sequence=0, transactional=True)
    assert produce_batch(state, batch).error_code == InvalidRecordError.errno

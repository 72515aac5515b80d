"""Faults on command strike as ordered, and clients get over them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import get_args

import pytest

from app.broker import Broker, Cut, Delay, Refuse, Stall
from app.sources import ClientName, KafkaSettings, TopicPartition, open_consumer
from tests.integration.broker.clients import Client, Record

NOT_LEADER = 6


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker in this process, on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    broker = Broker()
    asyncio.run_coroutine_threadsafe(broker.start(), loop).result(10)
    yield broker
    asyncio.run_coroutine_threadsafe(broker.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def client(library: type[Client], broker: Broker) -> Iterator[Client]:
    with closing(library(broker.bootstrap)) as client:
        client.create_topic("t", partitions=2)
        yield client


def test_a_refused_partition_is_tried_again(broker: Broker, client: Client) -> None:
    broker.faults.add(Refuse(api="Produce", topic="t", partition=1, error_code=NOT_LEADER, times=2))
    assert client.produce("t", [Record(b"x")], partition=1) == [0]
    assert broker.faults.find(Refuse, "Produce", "t", 1) is None


@pytest.mark.parametrize("after", [False, True])
def test_a_cut_connection_costs_and_repeats_nothing(broker: Broker, client: Client, after: bool) -> None:
    client.produce("t", [Record(b"first")])
    broker.faults.add(Cut(api="Produce", after=after, times=1))
    assert client.produce("t", [Record(b"second")]) == [1]
    assert client.bounds("t") == (0, 2)


def test_a_delayed_request_waits_and_others_do_not(broker: Broker, client: Client) -> None:
    client.produce("t", [Record(b"x")])
    broker.faults.add(Delay(api="Produce", delay_ms=1_000, times=1))
    began_s = time.monotonic()
    outcome = client.send(client.producer(), "t", Record(b"y"))
    assert [record.value for record in client.fetch("t", 1)] == [b"x"]
    assert not outcome
    client.producer().flush(10)
    assert outcome == [1]
    assert time.monotonic() - began_s > 1


def test_a_stalled_partition_holds_no_other(broker: Broker, client: Client) -> None:
    for partition in range(2):
        client.produce("t", [Record(b"x")], partition)
    broker.faults.add(Stall(api="Fetch", topic="t", partition=1))
    assert len(client.fetch("t", 1, partition=0)) == 1
    with client.reader("t", partition=1) as reader:
        assert reader.poll(0.3) == []
        broker.faults.clear()
        assert len(reader.take(1)) == 1


def test_what_is_produced_to_a_stalled_partition_is_there_when_it_moves(broker: Broker, client: Client) -> None:
    """The other partition is written by another client: a connection carries its requests out in order."""
    broker.faults.add(Stall(api="Produce", topic="t", partition=0))
    outcome = client.send(client.producer(), "t", Record(b"x"))
    with closing(type(client)(broker.bootstrap)) as other:
        assert other.produce("t", [Record(b"y")], partition=1) == [0]
    assert client.bounds("t") == (0, 0)
    broker.faults.clear()
    client.producer().flush(10)
    assert outcome == [0]
    assert client.bounds("t") == (0, 1)


@pytest.mark.parametrize("name", get_args(ClientName))
def test_the_offsets_of_a_partition_whose_leader_is_just_being_made_are_asked_for_again(
    broker: Broker, client: Client, name: ClientName
) -> None:
    client.produce("t", [Record(b"x")], partition=1)
    broker.faults.add(Refuse(api="ListOffsets", topic="t", partition=1, error_code=NOT_LEADER, times=4))
    with closing(open_consumer(KafkaSettings(bootstrap=broker.bootstrap, client=name))) as consumer:
        assert consumer.end_offsets([TopicPartition("t", 1)]) == {TopicPartition("t", 1): 1}
    assert broker.faults.find(Refuse, "ListOffsets", "t", 1) is None

"""What was acknowledged is there again: after kill -9, after a clean stop, and behind a torn end."""

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.broker.clients import Client, Record
from tests.integration.broker.conftest import BrokerProcess
from tests.integration.conftest import wait_until


@pytest.fixture
def client(library: type[Client], broker_process: BrokerProcess) -> Iterator[Client]:
    with closing(library(broker_process.bootstrap)) as client:
        yield client


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_log_topics_and_groups_are_there_again(
    client: Client, broker_process: BrokerProcess, by: signal.Signals
) -> None:
    client.create_topic("kept", partitions=2, retention_ms=123_456_789)
    for part in range(3):
        client.produce("kept", [Record(b"%d-%d" % (part, n), headers=[("h", b"x")]) for n in range(10)], 1)
    client.commit("readers", "kept", 7, "why")
    before = client.fetch("kept", 30, partition=1)
    broker_process.end(by)
    broker_process.start()
    assert client.fetch("kept", 30, partition=1) == before
    assert client.committed("readers", "kept") == (7, "why")
    assert client.setting("kept", "retention.ms") == "123456789"
    assert client.produce("kept", [Record(b"next")], 1) == [30]


def test_deleted_records_topics_and_partitions_stay_deleted(client: Client, broker_process: BrokerProcess) -> None:
    client.create_topic("kept")
    client.create_topic("gone")
    client.produce("kept", [Record(b"%d" % n) for n in range(10)])
    client.delete_records("kept", before=4)
    client.delete_topic("gone")
    client.add_partitions("kept", 3)
    broker_process.end(signal.SIGKILL)
    broker_process.start()
    assert client.bounds("kept") == (4, 10)
    wait_until(lambda: client.partitions("kept") == 3, "the topic has its partitions")
    client.create_topic("gone")
    assert client.bounds("gone") == (0, 0)


def test_a_torn_end_is_cut_off(client: Client, broker_process: BrokerProcess) -> None:
    client.create_topic("torn")
    client.produce("torn", [Record(b"%d" % n) for n in range(10)])
    broker_process.end(signal.SIGKILL)
    [segment] = broker_process.log_directory.glob("topics/torn/0/*.log")
    whole = segment.read_bytes()
    segment.write_bytes(whole + whole[: len(whole) // 2])
    broker_process.start()
    assert client.bounds("torn") == (0, 10)
    assert segment.read_bytes() == whole
    assert client.produce("torn", [Record(b"next")]) == [10]
    assert len(client.fetch("torn", 11)) == 11


def test_a_batch_sent_again_after_the_restart_is_not_kept_again(client: Client, broker_process: BrokerProcess) -> None:
    """Every answer is lost until the broker is killed: the producer cannot know that its batch is in the log."""
    client.create_topic("once")
    producer = client.producer()
    outcomes = [client.send(producer, "once", Record(b"first"))]
    producer.flush(10)
    broker_process.set_faults('[{"fault": "cut", "api": "Produce", "after": true}]')
    outcomes += [client.send(producer, "once", Record(b"%d" % n)) for n in range(5)]
    wait_until(lambda: client.bounds("once") == (0, 6), "the batch is in the log")
    broker_process.end(signal.SIGKILL)
    broker_process.set_faults("[]")
    broker_process.start()
    producer.flush(30)
    assert [outcome for (outcome,) in outcomes] == [0, 1, 2, 3, 4, 5]
    assert client.bounds("once") == (0, 6)


def test_a_clean_stop_ends_with_status_0(broker_process: BrokerProcess) -> None:
    assert "not for production" in broker_process.announcement
    assert broker_process.bootstrap in broker_process.announcement
    assert broker_process.end(signal.SIGINT) == 0

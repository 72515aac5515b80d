"""Transactions: the same tests for the development broker and for Apache Kafka, with both client libraries."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import confluent_kafka
import pytest

from tests.integration.broker.clients import Client, Fetched, Isolation, Record, RefusedError
from tests.integration.broker.conftest import BrokerProcess
from tests.integration.conftest import ROOT, wait_until

FENCED_CODES = {47, 90, -144}  # INVALID_PRODUCER_EPOCH, PRODUCER_FENCED, and librdkafka's own _FENCED
BRIEFLY_S = 0.3

LEAVE_OPEN = """
import sys, time
from tests.integration.broker import clients
client = getattr(clients, sys.argv[1])(sys.argv[2])
producer = client.new_transactional(sys.argv[3], int(sys.argv[4]))
client.begin(producer)
sent = client.send(producer, sys.argv[3], clients.Record(b"left open"))
producer.flush()
client.send_offset(producer, sys.argv[3], sys.argv[3], 5, "left open")
print("open", flush=True)
time.sleep(600)
"""


@contextmanager
def transactional(client: Client, transactional_id: str) -> Iterator[Any]:
    producer = client.new_transactional(transactional_id)
    try:
        yield producer
    finally:
        with suppress(confluent_kafka.KafkaException):  # a fenced one says once more that it is
            producer.close()


def leave_open(client: Client, topic: str, timeout_ms: int = 60_000) -> None:
    """By a process that is killed with -9: a record of the topic and an offset of the group, both called like it."""
    arguments = [type(client).__name__, client.bootstrap, topic, str(timeout_ms)]
    process = subprocess.Popen([sys.executable, "-c", LEAVE_OPEN, *arguments], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"open\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def send(client: Client, producer: Any, topic: str, *values: bytes, partition: int = 0) -> None:
    """Returns when the records are in the log."""
    outcomes = [client.send(producer, topic, Record(value), partition) for value in values]
    producer.flush()
    assert all(isinstance(outcome, int) for (outcome,) in outcomes)


def values(fetched: list[Fetched]) -> list[bytes | None]:
    return [record.value for record in fetched]


def glance(
    client: Client, topic: str, partition: int = 0, isolation: Isolation = "read_committed"
) -> list[bytes | None]:
    """What is there to be read, without waiting for more."""
    found: list[bytes | None] = []
    with client.reader(topic, 0, partition, max_wait_ms=50, isolation=isolation) as reader:
        for _ in range(4):
            found += values(reader.poll(BRIEFLY_S))
    return found


def test_a_commit_shows_all_of_a_transaction_at_once_and_before_it_nothing(client: Client, topic: str) -> None:
    client.create_topic(topic, partitions=2)
    with transactional(client, topic) as producer:
        client.begin(producer)
        send(client, producer, topic, b"a", b"b")
        send(client, producer, topic, b"c", partition=1)
        assert [glance(client, topic, each) for each in (0, 1)] == [[], []]
        client.commit_transaction(producer)
        assert values(client.fetch(topic, 2)) == [b"a", b"b"]
        assert values(client.fetch(topic, 1, partition=1)) == [b"c"]


def test_what_is_aborted_is_never_seen_and_the_next_transaction_is(client: Client, topic: str) -> None:
    client.create_topic(topic)
    with transactional(client, topic) as producer:
        for number in range(4):
            client.begin(producer)
            send(client, producer, topic, b"%d" % number)
            if number % 2:
                client.commit_transaction(producer)
            else:
                client.abort_transaction(producer)
        assert values(client.fetch(topic, 2)) == [b"1", b"3"]
        assert values(client.fetch(topic, 4, isolation="read_uncommitted")) == [b"0", b"1", b"2", b"3"]


def test_transactions_that_overlap_are_told_apart(client: Client, topic: str) -> None:
    client.create_topic(topic)
    with transactional(client, topic + "-a") as first, transactional(client, topic + "-b") as second:
        client.begin(first)
        client.begin(second)
        for number in range(3):
            send(client, first, topic, b"a%d" % number)
            send(client, second, topic, b"b%d" % number)
        client.commit_transaction(second)
        assert glance(client, topic) == []
        client.abort_transaction(first)
        assert values(client.fetch(topic, 3)) == [b"b0", b"b1", b"b2"]


def test_an_open_transaction_holds_back_who_reads_what_is_committed_and_nobody_else(client: Client, topic: str) -> None:
    client.create_topic(topic)
    with transactional(client, topic) as producer:
        client.begin(producer)
        send(client, producer, topic, b"open")
        client.produce(topic, [Record(b"beside")])
        assert glance(client, topic) == []
        assert values(client.fetch(topic, 2, isolation="read_uncommitted")) == [b"open", b"beside"]
        assert client.bounds(topic) == (0, 0)
        assert client.bounds(topic, "read_uncommitted") == (0, 2)
        client.commit_transaction(producer)
        assert values(client.fetch(topic, 2)) == [b"open", b"beside"]
        wait_until(lambda: client.bounds(topic) == (0, 3), "the end of what is committed")


def test_offsets_count_when_their_transaction_commits(client: Client, topic: str) -> None:
    client.create_topic(topic)
    group = "group-" + topic
    client.commit(group, topic, 1, "before")
    with transactional(client, topic) as producer:
        for offset, ends, expected in (
            (5, client.abort_transaction, (1, "before")),
            (7, client.commit_transaction, (7, "größer")),
        ):
            client.begin(producer)
            send(client, producer, topic, b"x")
            client.send_offset(producer, group, topic, offset, "größer")
            assert client.committed(group, topic, "read_uncommitted") == (1, "before")
            ends(producer)
            assert client.committed(group, topic) == expected


def test_a_transaction_of_offsets_alone_commits(client: Client, topic: str) -> None:
    client.create_topic(topic)
    with transactional(client, topic) as producer:
        for offset in (3, 4):
            client.begin(producer)
            client.send_offset(producer, "group-" + topic, topic, offset, "")
            client.commit_transaction(producer)
            assert client.committed("group-" + topic, topic) == (offset, "")


def test_a_fenced_producer_is_refused_and_its_open_transaction_undone(client: Client, topic: str) -> None:
    client.create_topic(topic)
    with transactional(client, topic) as old:
        client.begin(old)
        send(client, old, topic, b"old")
        client.send_offset(old, "group-" + topic, topic, 3, "old")
        with transactional(client, topic) as new:
            client.begin(new)
            send(client, new, topic, b"new")
            with pytest.raises(RefusedError) as refused:
                client.commit_transaction(old)
            assert refused.value.code in FENCED_CODES
            client.commit_transaction(new)
    assert values(client.fetch(topic, 1)) == [b"new"]
    assert client.committed("group-" + topic, topic) is None


def test_a_fenced_producer_cannot_begin_again(client: Client, topic: str) -> None:
    client.create_topic(topic)
    with transactional(client, topic) as old, transactional(client, topic):
        client.begin(old)
        client.send(old, topic, Record(b"old"))
        with pytest.raises(RefusedError) as refused:
            client.commit_transaction(old)
        assert refused.value.code in FENCED_CODES
    assert glance(client, topic, isolation="read_uncommitted") == []


def test_what_a_killed_producer_left_open_is_undone_by_the_next_of_its_id(client: Client, topic: str) -> None:
    client.create_topic(topic)
    leave_open(client, topic)
    client.produce(topic, [Record(b"beside")])
    assert glance(client, topic) == []
    with transactional(client, topic):
        assert values(client.fetch(topic, 1)) == [b"beside"]
        assert client.committed(topic, topic) is None


def test_what_a_killed_producer_left_open_is_undone_in_time(client: Client, topic: str) -> None:
    client.create_topic(topic)
    leave_open(client, topic, timeout_ms=1_500)
    client.produce(topic, [Record(b"beside")])
    assert values(client.fetch(topic, 1)) == [b"beside"]
    assert client.committed(topic, topic) is None


@pytest.fixture
def kept(library: type[Client], broker_process: BrokerProcess) -> Iterator[Client]:
    with closing(library(broker_process.bootstrap)) as client:
        yield client


@pytest.mark.parametrize("commits", [True, False])
def test_a_transaction_goes_on_over_a_killed_broker(kept: Client, broker_process: BrokerProcess, commits: bool) -> None:
    kept.create_topic("over")
    with transactional(kept, "over") as producer:
        kept.begin(producer)
        send(kept, producer, "over", b"before")
        kept.send_offset(producer, "group", "over", 7, "")
        broker_process.end(signal.SIGKILL)
        broker_process.start()
        assert glance(kept, "over") == []
        (kept.commit_transaction if commits else kept.abort_transaction)(producer)
        kept.begin(producer)
        send(kept, producer, "over", b"behind")
        kept.commit_transaction(producer)
    assert values(kept.fetch("over", 1 + commits)) == [b"before", b"behind"][not commits :]
    assert kept.committed("group", "over") == ((7, "") if commits else None)


def test_what_was_committed_aborted_and_fenced_is_so_after_a_kill_too(
    kept: Client, broker_process: BrokerProcess
) -> None:
    kept.create_topic("kept")
    with transactional(kept, "kept") as old:
        for number, ends in enumerate((kept.abort_transaction, kept.commit_transaction)):
            kept.begin(old)
            send(kept, old, "kept", b"%d" % number)
            ends(old)
        with transactional(kept, "kept"):
            broker_process.end(signal.SIGKILL)
            broker_process.start()
            kept.begin(old)
            kept.send(old, "kept", Record(b"fenced"))
            with pytest.raises(RefusedError) as refused:
                kept.commit_transaction(old)
            assert refused.value.code in FENCED_CODES
    assert glance(kept, "kept") == [b"1"]

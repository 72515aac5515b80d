"""What Headrace needs of a broker: the same tests for the development broker and for Apache Kafka."""

import itertools
import random
import time
from contextlib import closing

import pytest

from tests.integration.broker.clients import Client, Fetched, Record, RefusedError
from tests.integration.broker.proxy import CuttingProxy
from tests.integration.conftest import wait_until

OFFSET_OUT_OF_RANGE = 1
UNKNOWN_TOPIC = 3
MESSAGE_TOO_LARGE = 10
TOPIC_EXISTS = 36
INVALID_PARTITIONS = 37
SEGMENT_BYTES = 2**20  # the smallest that Apache Kafka takes


def numbered(count: int) -> list[Record]:
    return [Record(b"%d" % number) for number in range(count)]


def values(fetched: list[Fetched]) -> list[bytes | None]:
    return [record.value for record in fetched]


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_what_is_produced_is_fetched(client: Client, topic: str, compression: str) -> None:
    sent = [
        Record(
            value=None if number % 6 == 0 else b"value %d" % number,
            key=None if number % 6 == 1 else b"key %d" % number,
            headers=[("a", b"%d" % number), ("a", b""), ("é", b"x")] if number % 3 == 0 else [],
        )
        for number in range(60)
    ]
    client.create_topic(topic)
    assert client.produce(topic, sent, compression=compression) == list(range(60))
    fetched = client.fetch(topic, 60)
    assert [(r.offset, r.value, r.key, r.headers) for r in fetched] == [
        (offset, r.value, r.key, r.headers) for offset, r in enumerate(sent)
    ]


def test_each_partition_is_a_log_of_its_own(client: Client, topic: str) -> None:
    client.create_topic(topic, partitions=3)
    for partition in range(3):
        client.produce(topic, [Record(b"of %d" % partition)], partition)
    assert [values(client.fetch(topic, 1, partition=partition)) for partition in range(3)] == [
        [b"of 0"],
        [b"of 1"],
        [b"of 2"],
    ]


def test_a_cut_connection_neither_loses_nor_repeats_nor_reorders(client: Client, topic: str) -> None:
    """Every fifth produce request is lost, every fifth answer too; the producer sends those batches again."""
    client.create_topic(topic)
    fate = {1: "before", 3: "after"}
    outcomes = []
    with (
        CuttingProxy(client.bootstrap, lambda number: fate.get(number % 5)) as proxy,
        closing(type(client)(proxy.bootstrap)) as through,
    ):
        producer = through.producer(in_small_batches=True)
        for burst in range(8):
            outcomes += [through.send(producer, topic, Record(b"%d" % (burst * 25 + n))) for n in range(25)]
            producer.flush(30)
    assert proxy.cuts >= 3
    assert [outcome for (outcome,) in outcomes] == list(range(200))
    assert values(client.fetch(topic, 200)) == values_of(numbered(200))
    assert client.bounds(topic) == (0, 200)


def values_of(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_reader_may_start_anywhere_in_a_batch(client: Client, topic: str, compression: str) -> None:
    client.create_topic(topic)
    client.produce(topic, numbered(30), compression=compression)
    for offset in (0, 1, 17, 29):
        assert values(client.fetch(topic, 30 - offset, offset)) == values_of(numbered(30))[offset:]


def test_an_offset_behind_the_end_is_out_of_range(client: Client, topic: str) -> None:
    client.create_topic(topic)
    client.produce(topic, numbered(3))
    with pytest.raises(RefusedError) as refused:
        client.fetch(topic, 1, offset=4)
    assert refused.value.code == OFFSET_OUT_OF_RANGE


def test_deleted_records_are_out_of_range_and_the_rest_stays(client: Client, topic: str) -> None:
    client.create_topic(topic)
    client.produce(topic, numbered(10))
    client.delete_records(topic, before=4)
    assert client.bounds(topic) == (4, 10)
    assert values(client.fetch(topic, 6, offset=4)) == values_of(numbered(10))[4:]
    with pytest.raises(RefusedError) as refused:
        client.fetch(topic, 1, offset=3)
    assert refused.value.code == OFFSET_OUT_OF_RANGE


def test_earliest_latest_and_by_append_time(client: Client, topic: str) -> None:
    client.create_topic(topic)
    client.produce(topic, numbered(5))
    [first, *_] = client.fetch(topic, 5)
    wait_until(lambda: time.time() * 1_000 > first.timestamp_ms + 5, "the clock moves on")
    client.produce(topic, numbered(5))
    [later, *_] = client.fetch(topic, 5, offset=5)
    assert client.bounds(topic) == (0, 10)
    assert client.offset_at(topic, 0) == 0
    assert client.offset_at(topic, first.timestamp_ms) == 0
    assert client.offset_at(topic, first.timestamp_ms + 1) == 5
    assert client.offset_at(topic, later.timestamp_ms) == 5
    assert client.offset_at(topic, later.timestamp_ms + 60_000) is None


def test_a_records_time_is_its_append_time(client: Client, topic: str) -> None:
    client.create_topic(topic)
    before_ms = int(time.time() * 1_000)
    client.produce(topic, [Record(b"old", timestamp_ms=1_000), Record(b"new")])
    after_ms = int(time.time() * 1_000)
    for record in client.fetch(topic, 2):
        assert record.by_append_time
        assert before_ms <= record.timestamp_ms <= after_ms


def test_a_topic_may_keep_the_producers_time(client: Client, topic: str) -> None:
    client.create_topic(topic, message_timestamp_type="CreateTime")
    now_ms = int(time.time() * 1_000)
    times_ms = [now_ms - 300, now_ms - 200, now_ms - 100]
    client.produce(topic, [Record(b"", timestamp_ms=time_ms) for time_ms in times_ms])
    fetched = client.fetch(topic, 3)
    assert [record.timestamp_ms for record in fetched] == times_ms
    assert not any(record.by_append_time for record in fetched)
    assert client.offset_at(topic, now_ms - 150) == 2


def test_a_group_without_members_keeps_offsets_and_metadata(client: Client, topic: str) -> None:
    client.create_topic(topic)
    client.produce(topic, numbered(10))
    assert client.committed("group-" + topic, topic) is None
    client.commit("group-" + topic, topic, 3, "first")
    client.commit("group-" + topic, topic, 7, "höher")
    assert client.committed("group-" + topic, topic) == (7, "höher")
    assert "group-" + topic in client.groups()
    assert client.group_offsets("group-" + topic) == {(topic, 0): 7}


def test_topics_are_created_grown_and_deleted(client: Client, topic: str) -> None:
    client.create_topic(topic, partitions=2, retention_ms=123_456)
    wait_until(lambda: client.partitions(topic) == 2, "the topic has its partitions")
    assert client.setting(topic, "retention.ms") == "123456"
    client.add_partitions(topic, 4)
    wait_until(lambda: client.partitions(topic) == 4, "the topic has grown")
    assert client.produce(topic, numbered(1), partition=3) == [0]
    client.delete_topic(topic)
    with pytest.raises(RefusedError) as refused:
        client.delete_topic(topic)
    assert refused.value.code == UNKNOWN_TOPIC


def test_a_topic_is_created_once_and_never_shrinks(client: Client, topic: str) -> None:
    client.create_topic(topic, partitions=2)
    with pytest.raises(RefusedError) as refused:
        client.create_topic(topic, partitions=2)
    assert refused.value.code == TOPIC_EXISTS
    with pytest.raises(RefusedError) as refused:
        client.add_partitions(topic, 1)
    assert refused.value.code == INVALID_PARTITIONS


def test_a_waiting_fetch_wakes_on_append(client: Client, topic: str) -> None:
    """The fetch may wait 10 s; each record is there in a fraction of that."""
    client.create_topic(topic)
    client.produce(topic, [Record(b"first")])
    latencies_s = []
    producer = client.producer(in_small_batches=True)
    with client.reader(topic, max_wait_ms=10_000) as reader:
        reader.take(1)
        for number in range(20):
            sent_s = time.monotonic()
            client.send(producer, topic, Record(b"%d" % number))
            assert values(reader.take(1)) == [b"%d" % number]
            latencies_s.append(time.monotonic() - sent_s)
            producer.flush(10)
    assert max(latencies_s) < 2


def test_a_message_may_have_8_mb(client: Client, topic: str) -> None:
    client.create_topic(topic, max_message_bytes=9 * 2**20)
    large = random.Random(0).randbytes(8 * 2**20)
    client.produce(topic, [Record(b"before"), Record(large), Record(b"behind")])
    assert values(client.fetch(topic, 3)) == [b"before", large, b"behind"]


def test_a_message_larger_than_the_topic_takes_is_refused(client: Client, topic: str) -> None:
    """By a client of its own: kafka-python's idempotent producer fails every batch behind a refused one."""
    client.create_topic(topic, max_message_bytes=10_000)
    with closing(type(client)(client.bootstrap)) as own, pytest.raises(RefusedError) as refused:
        own.produce(topic, [Record(bytes(20_000))])
    assert refused.value.code == MESSAGE_TOO_LARGE
    assert client.bounds(topic) == (0, 0)


def test_retention_by_size_drops_the_oldest_segments(client: Client, topic: str) -> None:
    """Ten records a segment: two segments hold less than the retention, so three stay."""
    client.create_topic(topic, retention_bytes=2 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES)
    for _ in range(10):
        client.produce(topic, [Record(bytes(100_000))] * 5)
    wait_until(lambda: client.bounds(topic) == (20, 50), "the oldest two segments are dropped")
    assert client.fetch(topic, 1, offset=20)[0].offset == 20


def test_retention_by_time_drops_old_records(client: Client, topic: str) -> None:
    client.create_topic(topic, retention_ms=1_000)
    client.produce(topic, numbered(10))
    wait_until(lambda: client.bounds(topic) == (10, 10), "all records are dropped")
    assert client.produce(topic, numbered(1)) == [10]


def test_producers_side_by_side_all_get_through(client: Client, topic: str) -> None:
    client.create_topic(topic)
    producers = [client.producer(compression, in_small_batches=True) for compression in ("none", "gzip", "lz4")]
    for number, (key, producer) in itertools.product(range(40), enumerate(producers)):
        client.send(producer, topic, Record(b"%d" % number, key=b"%d" % key))
    for producer in producers:
        producer.flush(30)
    fetched = client.fetch(topic, 120)
    for key in range(3):
        own = [record.value for record in fetched if record.key == b"%d" % key]
        assert own == values_of(numbered(40))

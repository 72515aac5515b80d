import threading
from typing import get_args

import pytest

from app.errors import BrokerError
from app.sources import (
    Admin,
    ClientName,
    Compression,
    Consumer,
    KafkaSettings,
    Producer,
    TopicPartition,
    open_producer,
)
from tests.integration.conftest import wait_until
from tests.integration.sources.conftest import Taken, numbers

Places = list[TopicPartition]
Delivery = tuple[BrokerError | None, int, int]


def test_each_delivery_tells_offset_and_append_time(consumer: Consumer, producer: Producer, places: Places) -> None:
    deliveries: list[Delivery] = []
    for value in range(500):
        producer.send(places[0].topic, b"%d" % value, partition=0, on_delivery=lambda *told: deliveries.append(told))
    assert producer.flush(20) == 0
    assert [(error, offset) for error, offset, _ in deliveries] == [(None, offset) for offset in range(500)]
    consumer.assign({places[0]: 0})
    times_ms: list[int] = []
    wait_until(
        lambda: [times_ms.extend(found.append_ms) for found in consumer.poll(1_000, 50)] and len(times_ms) == 500, "all"
    )
    assert [append_ms for _, _, append_ms in deliveries] == times_ms


def test_deliveries_are_told_in_the_thread_that_polls(producer: Producer, topic: str, places: Places) -> None:
    told: list[threading.Thread] = []
    producer.send(topic, b"x", on_delivery=lambda *_: told.append(threading.current_thread()))
    wait_until(lambda: producer.poll(50) or told, "the delivery", 20)
    assert told == [threading.current_thread()]


def test_order_is_kept_without_duplicates_while_several_threads_send(
    consumer: Consumer, producer: Producer, places: Places
) -> None:
    def send(place: TopicPartition) -> None:
        for value in range(3_000):
            producer.send(place.topic, b"%d" % value, partition=place.partition)

    threads = [threading.Thread(target=send, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert producer.flush(20) == 0
    consumer.assign(dict.fromkeys(places, 0))
    taken = Taken(consumer).until(9_000, max_records=1_000)
    assert taken.values == dict.fromkeys(places, numbers(range(3_000)))


def test_a_key_lands_on_the_same_partition_whichever_client_writes(
    settings: KafkaSettings, consumer: Consumer, places: Places
) -> None:
    keys = [b"", b"a", b"ab", b"abc", b"\xff\xfe\x00", *numbers(range(100, 400))]
    landed: dict[bytes, set[tuple[int, int]]] = {key: set() for key in keys}
    for client in get_args(ClientName):
        producer = open_producer(settings.model_copy(update={"client": client}))
        for key in keys:
            producer.send(places[0].topic, b"x", key=key)
        assert producer.flush(20) == 0
        producer.close()
    consumer.assign(dict.fromkeys(places, 0))
    count = 0
    while count < 2 * len(keys):
        for found in consumer.poll(1_000, 1_000):
            count += len(found)
            for key in found.keys:
                assert key is not None
                landed[key].add(found.partition)
    assert all(len(partitions) == 1 for partitions in landed.values())
    assert len(set.union(*landed.values())) == 3


def test_a_key_lands_where_java_puts_it(producer: Producer, consumer: Consumer, topic: str, admin: Admin) -> None:
    admin.ensure_topics({topic: 100})
    # (murmur2(key) & 0x7fffffff) % 100, with the values that Apache Kafka's own test of murmur2 expects.
    expected = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    places = {key: TopicPartition(topic, (value & 0x7FFFFFFF) % 100) for key, value in expected.items()}
    for key in expected:
        producer.send(topic, key, key=key)
    assert producer.flush(20) == 0
    consumer.assign(dict.fromkeys(places.values(), 0))
    assert Taken(consumer).until(3).values == {place: [key] for key, place in places.items()}


def test_records_without_key_reach_every_partition(settings: KafkaSettings, consumer: Consumer, places: Places) -> None:
    producer = open_producer(settings, linger_ms=0)
    ends = dict.fromkeys(places, 0)
    while not all(ends.values()):
        producer.send(places[0].topic, b"x")
        assert producer.flush(20) == 0
        ends = consumer.end_offsets(places)
        assert sum(ends.values()) < 500
    producer.close()


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4"])
def test_large_records_arrive_in_every_compression(
    settings: KafkaSettings, consumer: Consumer, admin: Admin, topic: str, compression: Compression
) -> None:
    admin.ensure_topics({topic: 1}, {"max.message.bytes": str(12 << 20)})
    producer = open_producer(settings, compression=compression)
    frame = bytes(range(256)) * (32 << 10)
    for size in (1, 1_000, len(frame), 2):
        producer.send(topic, frame[:size], partition=0)
    assert producer.flush(20) == 0
    producer.close()
    consumer.assign({TopicPartition(topic, 0): 0})
    assert [len(value or b"") for value in Taken(consumer).until(4).values[TopicPartition(topic, 0)]] == [
        1,
        1_000,
        8 << 20,
        2,
    ]


def test_a_topic_that_does_not_exist_is_refused_and_not_made(producer: Producer, admin: Admin, topic: str) -> None:
    with pytest.raises(BrokerError, match=rf"has no topic '{topic}'; create it, or correct its name"):
        producer.send(topic, b"x")
    assert topic not in admin.topics()


def test_a_record_that_the_broker_refuses_is_told(producer: Producer, admin: Admin, topic: str) -> None:
    admin.ensure_topics({topic: 1}, {"max.message.bytes": "2000"})
    told: list[Delivery] = []
    producer.send(topic, b"x" * 5_000, on_delivery=lambda *delivery: told.append(delivery))
    assert producer.flush(20) == 0
    [(error, offset, append_ms)] = told
    assert isinstance(error, BrokerError)
    assert (offset, append_ms) == (-1, -1)


def test_a_failure_that_nobody_is_told_is_raised(producer: Producer, admin: Admin, topic: str) -> None:
    admin.ensure_topics({topic: 1}, {"max.message.bytes": "2000"})
    producer.send(topic, b"x" * 5_000)
    with pytest.raises(BrokerError, match="was not delivered"):
        producer.flush(20)
    assert producer.flush(20) == 0


def test_a_record_larger_than_any_frame_is_refused_at_once(producer: Producer, places: Places) -> None:
    with pytest.raises(BrokerError, match="is refused"):
        producer.send(places[0].topic, b"x" * (17 << 20))

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import BrokerError
from app.sources import Admin, Consumer, KafkaSettings, Producer, TopicPartition, open_admin


def test_missing_topics_are_made_and_others_left_as_they_are(admin: Admin, topic: str) -> None:
    assert admin.ensure_topics({topic: 2}) == {topic: 2}
    assert admin.ensure_topics({topic: 5, f"{topic}-b": 3}) == {topic: 2, f"{topic}-b": 3}
    found = admin.topics()
    assert (found[topic], found[f"{topic}-b"]) == (2, 3)


def test_a_new_topic_can_be_used_at_once_and_has_the_brokers_time(
    admin: Admin, producer: Producer, consumer: Consumer, topic: str
) -> None:
    admin.ensure_topics({topic: 8}, {"retention.ms": "3600000"})
    told: list[tuple[object, int, int]] = []
    for number in range(8):
        producer.send(topic, b"x", partition=number, on_delivery=lambda *delivery: told.append(delivery))
    assert producer.flush(20) == 0
    assert [(error, offset) for error, offset, _ in told] == [(None, 0)] * 8
    places = [TopicPartition(topic, number) for number in range(8)]
    assert consumer.end_offsets(places) == dict.fromkeys(places, 1)


def test_several_processes_may_make_the_same_topics(settings: KafkaSettings, topic: str) -> None:
    admins = [open_admin(settings) for _ in range(4)]
    wanted = {f"{topic}-{number}": 2 for number in range(5)}
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda admin: admin.ensure_topics(wanted), admins))
    assert made == [wanted] * 4
    for admin in admins:
        admin.close()


def test_partitions_are_added_and_never_taken_away(admin: Admin, topic: str) -> None:
    admin.ensure_topics({topic: 2, f"{topic}-b": 3})
    assert admin.ensure_partitions({topic: 4, f"{topic}-b": 3}) == {topic: 4, f"{topic}-b": 3}
    assert admin.ensure_partitions({topic: 1}) == {topic: 4}
    assert admin.topics()[topic] == 4


def test_several_processes_may_add_the_same_partitions(settings: KafkaSettings, topic: str) -> None:
    admins = [open_admin(settings) for _ in range(4)]
    admins[0].ensure_topics({topic: 1})
    with ThreadPoolExecutor(4) as pool:
        grown = list(pool.map(lambda admin: admin.ensure_partitions({topic: 6}), admins))
    assert grown == [{topic: 6}] * 4
    for admin in admins:
        admin.close()


def test_partitions_of_a_topic_that_does_not_exist_are_an_error(admin: Admin, topic: str) -> None:
    with pytest.raises(BrokerError, match=f"has no topic '{topic}'"):
        admin.ensure_partitions({topic: 2})


def test_a_producer_finds_partitions_that_were_added_while_it_writes(
    admin: Admin, producer: Producer, consumer: Consumer, topic: str
) -> None:
    admin.ensure_topics({topic: 1})
    producer.send(topic, b"x", partition=0)
    assert producer.flush(20) == 0
    with pytest.raises(BrokerError, match=f"a record for '{topic}' is refused"):
        producer.send(topic, b"x", partition=1)
    admin.ensure_partitions({topic: 2})
    producer.send(topic, b"y", partition=1)
    assert producer.flush(20) == 0
    assert consumer.end_offsets([TopicPartition(topic, 1)]) == {TopicPartition(topic, 1): 1}


def test_deleted_topics_are_gone_on_return_and_missing_ones_no_error(admin: Admin, topic: str) -> None:
    admin.ensure_topics({topic: 1, f"{topic}-kept": 1})
    admin.delete_topics([topic, f"{topic}-missing"])
    assert topic not in admin.topics()
    assert f"{topic}-kept" in admin.topics()
    admin.delete_topics([])
    assert admin.ensure_topics({}) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda admin, topic: admin.ensure_topics({topic: 1}, {"no.such.setting": "1"}),
        lambda admin, topic: admin.ensure_topics({"not a topic": 1}),
        lambda admin, topic: admin.ensure_topics({topic: 0}),
    ],
)
def test_what_the_broker_refuses_is_an_error(admin: Admin, topic: str, make: Callable[[Admin, str], object]) -> None:
    with pytest.raises(BrokerError, match="refused"):
        make(admin, topic)

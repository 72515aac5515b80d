import time
from collections.abc import Callable

import pytest

from app.errors import BrokerError, ConfigError
from app.sources import (
    Admin,
    ClientName,
    CommittedOffset,
    Consumer,
    KafkaSettings,
    Producer,
    TopicPartition,
    open_admin,
    open_consumer,
    open_producer,
)
from tests.integration.conftest import wait_until
from tests.integration.sources.conftest import Taken, numbers, write

Places = list[TopicPartition]


def test_it_reads_from_the_given_positions(consumer: Consumer, producer: Producer, places: Places) -> None:
    for place in places:
        write(producer, place, range(10))
    consumer.assign({places[0]: 0, places[1]: 7, places[2]: 10})
    write(producer, places[2], range(10, 12))
    taken = Taken(consumer).until(15)
    assert taken.offsets == {places[0]: [*range(10)], places[1]: [7, 8, 9], places[2]: [10, 11]}
    assert taken.values[places[1]] == numbers(range(7, 10))


def test_a_record_comes_whole(consumer: Consumer, producer: Producer, places: Places) -> None:
    topic = places[0].topic
    before_ms = int(time.time() * 1_000) - 1_000
    producer.send(topic, b"value", key=b"key", partition=0, headers=[("a", b"1"), ("a", b"2"), ("b", b"")])
    producer.send(topic, None, key=b"gone", partition=0)
    assert producer.flush(20) == 0
    consumer.assign({places[0]: 0})
    found = []
    wait_until(lambda: found.extend(consumer.poll(10, 50)) or sum(map(len, found)) == 2, "two records", 20)
    assert [value for records in found for value in records.values] == [b"value", None]
    assert [key for records in found for key in records.keys] == [b"key", b"gone"]
    assert [headers for records in found for headers in records.headers()] == [
        [("a", b"1"), ("a", b"2"), ("b", b"")],
        [],
    ]
    assert all(before_ms < at < before_ms + 60_000 for records in found for at in records.append_ms)


def test_a_poll_returns_no_more_than_asked_for(consumer: Consumer, producer: Producer, places: Places) -> None:
    for place in places:
        write(producer, place, range(20))
    taken = Taken(consumer)
    consumer.assign(dict.fromkeys(places, 0))
    counts = []
    wait_until(lambda: counts.append(taken.poll(max_records=7)) or sum(counts) == 60, "60 records", 20)
    assert max(counts) <= 7
    assert list(taken.offsets.values()) == [[*range(20)]] * 3


def test_a_poll_without_records_ends_at_its_timeout(consumer: Consumer, places: Places) -> None:
    consumer.assign({places[0]: 0})
    started = time.monotonic()
    assert consumer.poll(10, 300) == []
    assert time.monotonic() - started >= 0.25


def test_partitions_come_and_go_and_the_others_go_on(consumer: Consumer, producer: Producer, places: Places) -> None:
    first, second, third = places
    for place in places:
        write(producer, place, range(10))
    taken = Taken(consumer)
    consumer.assign({first: 0})
    taken.until(5, max_records=5)
    consumer.assign({first: 0, second: 4})  # first goes on, wherever it is told to begin
    taken.until(16)
    consumer.assign({second: 0, third: 0})
    taken.until(26)
    write(producer, first, range(10, 12))
    write(producer, second, range(10, 12))
    taken.until(28)
    consumer.assign({first: 10, second: 0, third: 0})
    taken.until(30)
    assert taken.offsets == {first: [*range(12)], second: [*range(4, 12)], third: [*range(10)]}


def test_a_partition_moves_by_leaving_and_coming_back(consumer: Consumer, producer: Producer, places: Places) -> None:
    write(producer, places[0], range(10))
    taken = Taken(consumer)
    consumer.assign({places[0]: 8})
    taken.until(2)
    consumer.assign({})
    assert taken.poll() == 0
    consumer.assign({places[0]: 3})
    taken.until(9)
    assert taken.offsets[places[0]] == [8, 9, *range(3, 10)]


def test_what_is_paused_waits_and_nothing_is_lost(consumer: Consumer, producer: Producer, places: Places) -> None:
    held, other, _ = places
    taken = Taken(consumer)
    consumer.assign({held: 0, other: 0})
    for turn in range(4):
        write(producer, held, range(turn * 50, turn * 50 + 50))
        taken.until(turn * 100 + 10, max_records=10)
        consumer.pause([held])
        before = len(taken.offsets[held])
        write(producer, other, range(turn * 50, turn * 50 + 50))
        wait_until(
            lambda at=turn * 50: (taken.poll() and False) or len(taken.offsets.get(other, [])) == at + 50, "other"
        )
        assert len(taken.offsets[held]) == before
        consumer.resume([held])
        taken.until(turn * 100 + 100, max_records=10)
    assert taken.offsets == {held: [*range(200)], other: [*range(200)]}


def test_a_partition_that_was_paused_comes_back_running(consumer: Consumer, producer: Producer, places: Places) -> None:
    write(producer, places[0], range(3))
    consumer.assign(dict.fromkeys(places, 0))
    consumer.pause(places)
    consumer.assign({})
    consumer.assign({places[0]: 0})
    assert Taken(consumer).until(3).offsets == {places[0]: [0, 1, 2]}


def test_offsets_of_a_log(consumer: Consumer, producer: Producer, places: Places) -> None:
    times_ms: list[int] = []
    for value in range(3):
        producer.send(places[0].topic, b"%d" % value, partition=0, on_delivery=lambda e, o, at: times_ms.append(at))
        assert producer.flush(20) == 0
        wait_until(lambda: time.time() * 1_000 > times_ms[-1] + 2, "the next millisecond")
    assert consumer.beginning_offsets(places) == dict.fromkeys(places, 0)
    assert consumer.end_offsets(places) == {places[0]: 3, places[1]: 0, places[2]: 0}
    for offset, at in enumerate(times_ms):
        assert consumer.offsets_for_time(places, at) == {places[0]: offset, places[1]: 0, places[2]: 0}
        assert consumer.offsets_for_time(places[:1], at + 1) == {places[0]: offset + 1}
    assert consumer.partitions(places[0].topic) == [0, 1, 2]


def test_who_asks_for_no_partition_gets_none(consumer: Consumer) -> None:
    consumer.assign({})
    consumer.pause([])
    consumer.resume([])
    consumer.commit({})
    consumer.commit({}, wait=False)
    assert consumer.beginning_offsets([]) == {}
    assert consumer.end_offsets([]) == {}
    assert consumer.offsets_for_time([], 0) == {}
    assert consumer.committed([]) == {}
    assert consumer.poll(10, 10) == []
    assert consumer.last_error is None


@pytest.mark.parametrize("wait", [True, False])
def test_committed_offsets_come_back_with_their_text(consumer: Consumer, places: Places, wait: bool) -> None:
    assert consumer.committed(places) == dict.fromkeys(places)
    expected = {places[0]: CommittedOffset(7, "état 7"), places[1]: CommittedOffset(0), places[2]: None}
    consumer.commit({place: stored for place, stored in expected.items() if stored}, wait=wait)
    wait_until(lambda: consumer.committed(places) == expected, "the commit", 0 if wait else 20)


def test_commits_need_a_group(settings: KafkaSettings, places: Places) -> None:
    consumer = open_consumer(settings)
    with pytest.raises(ConfigError, match="no group"):
        consumer.commit({places[0]: CommittedOffset(1)})
    with pytest.raises(ConfigError, match="no group"):
        consumer.committed(places)
    consumer.close()


def test_a_position_that_is_not_in_the_log_is_an_error_until_it_is_taken_back(
    consumer: Consumer, producer: Producer, places: Places
) -> None:
    write(producer, places[0], range(5))
    write(producer, places[1], range(5))
    consumer.assign({places[0]: 6, places[1]: 0})
    taken = Taken(consumer)

    def fails() -> bool:
        try:
            taken.poll()
        except BrokerError as error:
            return str(error).startswith(f"{places[0]} has no offset 6: it holds 0 to 5 (")
        return False

    wait_until(fails, "the error", 20)
    for _ in range(3):
        with pytest.raises(BrokerError, match="has no offset 6"):
            wait_until(lambda: taken.poll() and False, "the error again", 20)
    consumer.assign({places[0]: 5, places[1]: 0})
    assert places[0] not in taken.offsets
    with pytest.raises(BrokerError, match="has no offset 6"):
        wait_until(lambda: taken.poll() and False, "it keeps its position", 20)
    consumer.assign({places[1]: 0})
    consumer.assign({places[0]: 5, places[1]: 0})
    write(producer, places[0], range(5, 7))
    taken.until(7)
    assert taken.offsets == {places[0]: [5, 6], places[1]: [*range(5)]}


@pytest.mark.parametrize("number", [0, 3])
def test_what_does_not_exist_cannot_be_assigned_and_is_not_made(
    consumer: Consumer, producer: Producer, admin: Admin, places: Places, topic: str, number: int
) -> None:
    write(producer, places[0], range(2))
    consumer.assign({places[0]: 0})
    missing = TopicPartition(topic if number else f"{topic}-missing", number)
    with pytest.raises(BrokerError, match="has no partition 3, only 0 to 2" if number else "has no topic"):
        consumer.assign({missing: 0})
    assert f"{topic}-missing" not in admin.topics()
    assert Taken(consumer).until(2).offsets == {places[0]: [0, 1]}


@pytest.mark.parametrize("open_client", [open_consumer, open_producer, open_admin])
def test_a_cluster_that_does_not_answer_is_an_error_at_start(
    client: ClientName, open_client: Callable[[KafkaSettings], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sources.confluent.link.REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr("app.sources.kafka_python.link.REQUEST_TIMEOUT_MS", 300)
    with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:1 is out of reach"):
        open_client(KafkaSettings(bootstrap="127.0.0.1:1", client=client))


def test_an_unknown_option_is_an_error_at_start(settings: KafkaSettings) -> None:
    with pytest.raises(ConfigError, match="no_such_option"):
        open_consumer(settings.model_copy(update={"extra": {"no_such_option": 1}}))


def test_a_topic_deleted_under_a_reader_shows_and_is_not_made_again(
    consumer: Consumer, producer: Producer, admin: Admin, places: Places, topic: str
) -> None:
    write(producer, places[0], range(2))
    consumer.assign({places[0]: 0})
    taken = Taken(consumer).until(2)
    admin.delete_topics([topic])

    def shows() -> bool:
        try:
            taken.poll()
        except BrokerError:
            return True
        return consumer.last_error is not None

    wait_until(shows, "the deletion", 20)
    until = time.monotonic() + 1  # time to ask for it again
    while time.monotonic() < until:
        shows()
    assert topic not in admin.topics()

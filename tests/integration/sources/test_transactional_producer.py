import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from app.errors import BrokerError, FencedError, RefusedRecordError
from app.log.tail import read_to_end
from app.sources import (
    Admin,
    ClientName,
    CommittedOffset,
    Consumer,
    KafkaSettings,
    TopicPartition,
    TransactionalProducer,
    open_admin,
    open_consumer,
    open_transactional_producer,
)
from tests.integration.conftest import wait_until
from tests.integration.sources.conftest import BrokerProcess, Taken, dev_command, numbers

Places = list[TopicPartition]
GROUP = "group"
Open = Callable[[], TransactionalProducer]


@pytest.fixture
def open_one(settings: KafkaSettings, topic: str) -> Iterator[Open]:
    """Opens another one with the test's transactional id."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(contextlib.closing(open_transactional_producer(settings, topic)))


@pytest.fixture
def producer(open_one: Open) -> TransactionalProducer:
    return open_one()


@pytest.fixture
def group(settings: KafkaSettings, topic: str) -> Iterator[Consumer]:
    """The group called like the topic. Who asks for its offsets waits for what is being committed."""
    with contextlib.closing(open_consumer(settings, topic)) as consumer:
        yield consumer


def send(producer: TransactionalProducer, place: TopicPartition, *values: bytes) -> None:
    for value in values:
        producer.send(place.topic, value, partition=place.partition)


def read(consumer: Consumer, place: TopicPartition, count: int) -> list[bytes | None]:
    consumer.assign({})
    consumer.assign({place: 0})
    return Taken(consumer).until(count).values[place]


def test_records_and_offsets_are_there_together_when_it_commits(
    consumer: Consumer, producer: TransactionalProducer, group: Consumer, places: Places, topic: str
) -> None:
    source, target = places[0], places[1]
    send(producer, target, b"a", b"b")
    assert producer.flush(20) == 0
    assert consumer.end_offsets([target]) == {target: 0}
    producer.commit(topic, {source: CommittedOffset(7, '{"größer":1}')})
    assert group.committed([source]) == {source: CommittedOffset(7, '{"größer":1}')}
    assert read(consumer, target, 2) == [b"a", b"b"]


def test_a_log_that_ends_in_the_markers_of_transactions_is_read_to_its_end(
    settings: KafkaSettings, open_one: Open, places: Places, topic: str
) -> None:
    producer = open_one()
    for value in (b"0", b"1"):
        send(producer, places[0], value)
        producer.commit(topic, {})
    send(producer, places[0], b"undone")
    producer.flush(10)
    open_one()  # undoes what was open
    with contextlib.closing(open_consumer(settings)) as consumer:
        wait_until(lambda: consumer.end_offsets([places[0]])[places[0]] >= 6, "the markers")
        for start, expected in ((0, [b"0", b"1"]), (2, [b"1"]), (4, [])):
            found = [value for records in read_to_end(consumer, places[0], start) for value in records.values]
            assert found == expected


def test_many_transactions_follow_one_another_in_order(
    consumer: Consumer, producer: TransactionalProducer, group: Consumer, places: Places, topic: str
) -> None:
    for number in range(30):
        send(producer, places[1], b"%d" % (2 * number), b"%d" % (2 * number + 1))
        producer.commit(topic, {places[0]: CommittedOffset(number)})
    assert read(consumer, places[1], 60) == numbers(range(60))
    assert group.committed(places[:1]) == {places[0]: CommittedOffset(29)}


def test_a_transaction_of_many_requests_is_seen_whole_and_in_order(
    consumer: Consumer, producer: TransactionalProducer, places: Places, topic: str
) -> None:
    send(producer, places[1], *(b"%d" % number for number in range(20_000)))
    producer.commit(topic, {places[0]: CommittedOffset(1)})
    assert read(consumer, places[1], 20_000) == numbers(range(20_000))


def test_offsets_alone_are_a_transaction_too(
    producer: TransactionalProducer, group: Consumer, places: Places, topic: str
) -> None:
    producer.commit(topic, {places[0]: CommittedOffset(3)})
    assert group.committed(places[:1]) == {places[0]: CommittedOffset(3)}


def test_what_was_open_when_another_one_is_opened_is_never_seen(
    consumer: Consumer, producer: TransactionalProducer, open_one: Open, places: Places, topic: str
) -> None:
    send(producer, places[1], b"undone")
    assert producer.flush(20) == 0
    producer = open_one()
    send(producer, places[1], b"kept")
    producer.commit(topic, {places[0]: CommittedOffset(1)})
    assert read(consumer, places[1], 1) == [b"kept"]


@pytest.mark.parametrize("flushed", [True, False])
def test_a_record_that_is_refused_for_good_is_told_apart_and_the_next_producer_goes_on(
    consumer: Consumer, producer: TransactionalProducer, open_one: Open, admin: Admin, topic: str, flushed: bool
) -> None:
    admin.ensure_topics({topic: 1}, {"max.message.bytes": "2000"})
    place = TopicPartition(topic, 0)
    send(producer, place, b"x" * 5_000)
    with pytest.raises(RefusedRecordError):
        producer.flush(20) if flushed else producer.commit(topic, {place: CommittedOffset(1)})
    producer = open_one()
    send(producer, place, b"small")
    producer.commit(topic, {place: CommittedOffset(2)})
    assert read(consumer, place, 1) == [b"small"]


def test_a_record_larger_than_any_frame_is_refused_for_good(producer: TransactionalProducer, places: Places) -> None:
    with pytest.raises(RefusedRecordError, match="is refused"):
        send(producer, places[0], b"x" * (17 << 20))


def test_of_two_with_one_id_the_older_is_fenced_and_its_open_transaction_undone(
    consumer: Consumer, producer: TransactionalProducer, open_one: Open, group: Consumer, places: Places, topic: str
) -> None:
    source, target = places[0], places[1]
    send(producer, target, b"old")
    assert producer.flush(20) == 0
    newer = open_one()
    with pytest.raises(FencedError, match="another one with its transactional id has taken over"):
        producer.commit(topic, {source: CommittedOffset(1)})
    send(newer, target, b"new")
    newer.commit(topic, {source: CommittedOffset(2)})
    assert read(consumer, target, 1) == [b"new"]
    assert group.committed([source]) == {source: CommittedOffset(2)}


def test_one_that_is_fenced_between_two_transactions_is_told_so(
    producer: TransactionalProducer, open_one: Open, places: Places, topic: str
) -> None:
    producer.commit(topic, {places[0]: CommittedOffset(1)})
    open_one()
    send(producer, places[1], b"old")
    with pytest.raises(FencedError):
        producer.commit(topic, {places[0]: CommittedOffset(1)})


@pytest.mark.parametrize("portion", [3, 9_000])
def test_one_that_learns_while_it_sends_is_told_so(
    producer: TransactionalProducer, open_one: Open, places: Places, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sources.confluent.transactional_producer.PORTION_RECORDS", portion)
    open_one()
    with pytest.raises(FencedError):
        wait_until(lambda: send(producer, places[1], b"old"), "it to be told", 20)


def test_who_reads_the_uncommitted_waits_for_no_transaction(
    settings: KafkaSettings, producer: TransactionalProducer, places: Places, topic: str
) -> None:
    """Such as one that was killed between sending its offsets and committing them."""
    producer.commit(topic, {places[0]: CommittedOffset(1)})
    send(producer, places[1], b"open")
    assert producer.flush(20) == 0
    with contextlib.closing(open_consumer(settings, topic, read_uncommitted=True)) as consumer:
        assert read(consumer, places[1], 1) == [b"open"]
        wait_until(lambda: consumer.committed(places[:1]) == {places[0]: CommittedOffset(1)}, "the first commit")


def test_a_topic_that_does_not_exist_is_refused_and_not_made(producer: TransactionalProducer, topic: str) -> None:
    with pytest.raises(BrokerError, match=rf"has no topic '{topic}'; create it, or correct its name"):
        producer.send(topic, b"x")


def test_transactions_of_several_threads_run_side_by_side(
    settings: KafkaSettings, consumer: Consumer, group: Consumer, places: Places, topic: str
) -> None:
    def run(place: TopicPartition) -> None:
        with contextlib.closing(open_transactional_producer(settings, f"{topic}/{place.partition}")) as producer:
            for number in range(20):
                send(producer, place, b"%d" % number)
                producer.commit(topic, {place: CommittedOffset(number)})

    threads = [threading.Thread(target=run, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    consumer.assign(dict.fromkeys(places, 0))
    assert Taken(consumer).until(60).values == dict.fromkeys(places, numbers(range(20)))
    assert group.committed(places) == dict.fromkeys(places, CommittedOffset(19))


@pytest.mark.parametrize("broker", [dev_command], indirect=True)
@pytest.mark.timeout(90)
def test_over_a_killed_broker_every_record_is_there_once(broker: BrokerProcess, client: ClientName) -> None:
    """Behind an error, what the group has says whether the commit went through. (Apache Kafka without replicas may not
    know, see docs/decisions/0011; tests/integration/actions has it.)"""
    settings = KafkaSettings(bootstrap=broker.bootstrap, client=client)
    with contextlib.closing(open_admin(settings)) as admin:
        admin.ensure_topics({"over": 2})
    source, target = TopicPartition("over", 0), TopicPartition("over", 1)
    producer: TransactionalProducer | None = None
    restart = threading.Thread(target=lambda: (broker.kill(), broker.start()))
    number = 0
    with contextlib.closing(open_consumer(settings, GROUP)) as group:
        while number < 40:
            if number == 10 and not restart.ident:
                restart.start()
            try:
                if producer is None:
                    producer = open_transactional_producer(settings, "over/0")
                    stored = group.committed([source])[source]
                    number = stored.offset if stored else 0
                send(producer, target, b"%d" % number)
                producer.commit(GROUP, {source: CommittedOffset(number + 1)})
                number += 1
            except BrokerError:
                if producer is not None:
                    producer.close()
                producer = None
        restart.join()
    assert producer is not None
    producer.close()
    with contextlib.closing(open_consumer(settings)) as consumer:
        assert read(consumer, target, 40) == numbers(range(40))
        assert consumer.end_offsets([target])[target] >= 40

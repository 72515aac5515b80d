"""A broker that is killed in the middle and comes back: nothing lost, nothing twice, and nothing raised."""

import contextlib

import pytest

from app.errors import BrokerError
from app.sources import ClientName, KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from tests.integration.conftest import wait_until
from tests.integration.sources.conftest import BrokerProcess, Taken, apache_command, dev_command, numbers


@pytest.mark.parametrize(
    ("broker", "client"),
    [(dev_command, "kafka-python"), pytest.param(apache_command, "confluent-kafka", marks=pytest.mark.kafka)],
    indirect=["broker"],
)
def test_nothing_is_lost_or_doubled_when_the_broker_is_killed(
    broker: BrokerProcess, client: ClientName, topic: str
) -> None:
    settings = KafkaSettings(bootstrap=broker.bootstrap, client=client)
    with contextlib.closing(open_admin(settings)) as admin:
        admin.ensure_topics({topic: 2})
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    offsets: list[int] = []
    with (
        contextlib.closing(open_producer(settings)) as producer,
        contextlib.closing(open_consumer(settings)) as consumer,
    ):
        consumer.assign(dict.fromkeys(places, 0))
        taken = Taken(consumer)

        def send(values: range) -> None:
            for value in values:
                producer.send(
                    topic,
                    b"%d" % (value // 2),
                    partition=value % 2,
                    on_delivery=lambda error, offset, _: offsets.append(-1 if error else offset),
                )
                producer.poll()

        send(range(2_000))
        taken.until(1_000)
        send(range(2_000, 3_000))
        broker.kill()
        send(range(3_000, 4_000))
        wait_until(lambda: (taken.poll() and False) or consumer.last_error, "the outage shows", 20)
        wait_until(lambda: producer.poll(50) or producer.last_error, "the outage shows to the producer", 20)
        broker.start()
        send(range(4_000, 5_000))
        taken.until(5_000)
        assert producer.flush(60) == 0
        wait_until(lambda: taken.poll() == 0 and consumer.last_error is None, "the end of the outage shows", 20)
        wait_until(lambda: producer.poll(50) or producer.last_error is None, "its end shows to the producer", 20)
    assert sorted(offsets) == sorted([*range(2_500)] * 2)
    assert taken.offsets == {place: [*range(2_500)] for place in places}
    assert taken.values == {place: numbers(range(2_500)) for place in places}


@pytest.mark.parametrize("broker", [dev_command], indirect=True)
def test_what_cannot_be_sent_is_given_up_at_close_and_told(
    broker: BrokerProcess, client: ClientName, topic: str
) -> None:
    settings = KafkaSettings(bootstrap=broker.bootstrap, client=client)
    with contextlib.closing(open_admin(settings)) as admin:
        admin.ensure_topics({topic: 1})
    producer = open_producer(settings)
    producer.send(topic, b"first", partition=0)
    assert producer.flush(20) == 0
    broker.kill()
    told: list[BrokerError | None] = []
    for _ in range(3):
        producer.send(topic, b"x", partition=0, on_delivery=lambda error, *_: told.append(error))
    assert producer.flush(0.2) == 3
    with pytest.raises(BrokerError, match="3 records are given up"):
        producer.close(timeout_s=0.2)
    assert [type(error) for error in told] == [BrokerError] * 3

"""Changed features on real brokers: the source is read back over the network, a part of it is deleted already."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient

from app.errors import CheckpointError
from app.event import Event
from app.features import Features, count
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.opener import Opened, TaskOpener
from app.runtime.task import Slice, TaskSettings
from app.sources import Consumer, KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer

START_MS = 1_600_000_000_000


class Payment(Event, frozen=True):
    card: str


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")


class CardLately(Features, of=Payment, by="card"):
    lately = count(last="10m")


class CardLife(Features, of=Payment, by="card"):
    orders = count()


@pytest.fixture
def consumer(bootstrap: str) -> Iterator[Consumer]:
    with contextlib.closing(open_consumer(KafkaSettings(bootstrap=bootstrap))) as consumer:
        yield consumer


@pytest.fixture
def source(bootstrap: str) -> TopicPartition:
    """300 payments of one card, one a minute; and an empty decision log."""
    settings, topic = KafkaSettings(bootstrap=bootstrap), f"payments-{uuid4().hex[:8]}"
    with contextlib.closing(open_admin(settings)) as admin:
        admin.ensure_topics({topic: 1, f"{topic}.decisions": 1})
    with contextlib.closing(open_producer(settings, linger_ms=1)) as producer:
        for minute in range(300):
            event = {"id": str(minute), "time": START_MS + minute * 60_000, "card": "c"}
            producer.send(topic, msgspec.json.encode(event), key=b"c")
    return TopicPartition(topic, 0)


def test_changed_features_are_rebuilt_from_what_retention_has_left_or_refused_by_name(
    bootstrap: str, source: TopicPartition, consumer: Consumer, tmp_path: Path
) -> None:
    store = CheckpointStore(str(tmp_path), "fraud")

    def opened(*features: type[Features]) -> Opened[Payment]:
        settings = TaskSettings("fraud", source.topic)
        pipeline = Pipeline(source=Payment, features=features)
        return TaskOpener(pipeline, settings, f"{source.topic}.decisions", store, "earliest", consumer).open(0)

    def go_on(task: Opened[Payment], most: int) -> Iterator[Slice[Payment]]:
        consumer.assign({source: task.task.next_offset})
        while task.task.next_offset < 300 and most > 0:
            for records in consumer.poll(min(10, most), 100):
                most -= len(records)
                part = task.task.admit(records)
                assert part is not None
                yield part
        consumer.assign({})

    before = opened(CardHistory)
    for _ in go_on(before, 200):
        store.save(before.task.snapshot(0))
    admin = AdminClient({"bootstrap.servers": bootstrap})
    [deleted] = admin.delete_records([At(source.topic, 0, 100)]).values()
    deleted.result()
    assert consumer.beginning_offsets([source]) == {source: 100}

    with pytest.raises(
        CheckpointError, match=r"the state of CardLife, which changed, cannot be rebuilt: records 0\.\.99"
    ):
        opened(CardHistory, CardLife)
    after = opened(CardHistory, CardLately)
    features = [part.features for part in go_on(after, 100)]
    assert [each for part in features for each in part["lately"]] == [10.0] * 100
    assert [each for part in features for each in part["payments"]] == [60.0] * 100

"""Partitions added to a source on real brokers: the logs follow, and a worker's clients reach the new ones at once."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from app.config import Topics
from app.event import Event
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.growth import SourcePartitions
from app.runtime.opener import TaskOpener
from app.runtime.task import TaskSettings
from app.sources import ClientName, KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from tests.integration.conftest import wait_until


class Reading(Event, frozen=True):
    machine: str


@pytest.mark.parametrize("client", get_args(ClientName))
def test_a_partition_that_is_added_gets_its_logs_and_is_read_from_its_first_record_on(
    bootstrap: str, client: ClientName, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap=bootstrap, client=client)
    own = {each: f"growing-{client}-{each}" for each in ("decisions", "dead_letters", "late")}
    topics = Topics(source=f"growing-{client}", **own)
    names = (topics.source, *topics.logs)
    new = TopicPartition(topics.source, 2)
    with (
        closing(open_admin(kafka)) as admin,
        closing(open_consumer(kafka)) as consumer,
        closing(open_consumer(kafka)) as source,
        closing(open_producer(kafka)) as log,
    ):
        admin.ensure_topics(dict.fromkeys(names, 2))
        opener = TaskOpener(
            Pipeline(source=Reading),
            TaskSettings("growing", topics.source),
            topics.decisions,
            CheckpointStore(str(tmp_path), "growing"),
            "latest",
            consumer,
        )
        partitions = SourcePartitions(topics, opener, consumer, partial(open_admin, kafka))
        source.assign({TopicPartition(topics.source, 0): 0})
        log.send(topics.decisions, b"frame", partition=0)
        assert partitions.look() == [0, 1]
        admin.ensure_partitions({topics.source: 3})
        with closing(open_producer(kafka)) as sender:
            sender.send(topics.source, b"{}", partition=2)
        assert partitions.look() == [0, 1, 2]
        found = admin.topics()
        assert [found[name] for name in names] == [3] * 4
        source.assign({TopicPartition(topics.source, 0): 0, new: opener.open(2).task.next_offset})
        read: list[bytes | None] = []
        wait_until(lambda: [read.extend(records.values) for records in source.poll(10, 50)] and read, "the record", 20)
        assert read == [b"{}"]
        log.send(topics.decisions, b"frame", partition=2)
        assert log.flush(20) == 0

"""Messages of a library become Records: one of each partition, nothing lost, in order."""

from collections import defaultdict
from typing import NamedTuple

import confluent_kafka as ck
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord
from kafka.structs import TopicPartition as KafkaPartition

from app.sources import Records, TopicPartition
from app.sources.confluent.consumer import group_by_partition
from app.sources.kafka_python.consumer import to_records


class Sent(NamedTuple):
    place: TopicPartition
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


bodies = st.none() | st.binary(max_size=3)
sent_records = st.lists(
    st.builds(
        Sent,
        place=st.builds(TopicPartition, st.sampled_from(["a", "b"]), st.integers(0, 2)),
        offset=st.integers(0, 2**60),
        append_ms=st.integers(-1, 2**43),
        key=bodies,
        value=bodies,
        headers=st.lists(st.tuples(st.text("xyz", min_size=1), bodies), max_size=2),
    ),
    max_size=30,
)


def to_message(sent: Sent) -> ck.Message:
    return ck.Message(
        topic=sent.place.topic,
        partition=sent.place.partition,
        offset=sent.offset,
        timestamp=(ck.TIMESTAMP_LOG_APPEND_TIME, sent.append_ms),
        key=sent.key,
        value=sent.value,
        headers=sent.headers or None,
    )


def to_consumer_record(sent: Sent) -> ConsumerRecord:
    fields = dict.fromkeys(ConsumerRecord._fields)
    fields |= {"offset": sent.offset, "timestamp": sent.append_ms, "key": sent.key, "value": sent.value}
    return ConsumerRecord(**{**fields, "headers": sent.headers})


def read_back(found: Records) -> list[Sent]:
    columns = zip(found.offsets, found.append_ms, found.keys, found.values, found.headers(), strict=True)
    return [Sent(TopicPartition(found.topic, found.partition), *row) for row in columns]


def by_place(sent: list[Sent]) -> dict[TopicPartition, list[Sent]]:
    expected: dict[TopicPartition, list[Sent]] = defaultdict(list)
    for one in sent:
        expected[one.place].append(one)
    return expected


@given(sent_records)
def test_messages_of_confluent_kafka_are_grouped_by_partition_in_their_order(sent: list[Sent]) -> None:
    found = group_by_partition([to_message(one) for one in sent])
    expected = by_place(sent)
    assert {TopicPartition(one.topic, one.partition): read_back(one) for one in found} == expected
    assert len(found) == len(expected)
    assert sum(map(len, found)) == len(sent)


@given(sent_records)
def test_records_of_kafka_python_keep_their_order(sent: list[Sent]) -> None:
    for place, expected in by_place(sent).items():
        found = to_records(KafkaPartition(*place), [to_consumer_record(one) for one in expected])
        assert read_back(found) == expected

"""Topics as a reader of committed records finds them."""

from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition


def read_topic(bootstrap: str, topic: str, starts: Mapping[int, int] | None = None) -> Iterator[Any]:
    """Every committed record of a topic up to its end, partition by partition, from the beginning or where a partition
    `starts`. The end may be a transaction's."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed", fetch_max_wait_ms=50
    )
    for number in sorted(consumer.partitions_for_topic(topic) or ()):
        partition = TopicPartition(topic, number)
        consumer.assign([partition])
        if starts and number in starts:
            consumer.seek(partition, starts[number])
        else:
            consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        while consumer.position(partition) < end:
            for records in consumer.poll(100).values():
                yield from (record for record in records if record.offset < end)
    consumer.close()

"""Topics as a plain consumer reads them: none of Headrace's own readers is asked."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from app.log.frame import decode_frame, decode_header
from benchmarks.chaos.oracle import FEATURES
from benchmarks.chaos.verdict import Outcome


class TopicReader:
    """Reads a topic on from where it last ended; only what is committed."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._next: dict[int, int] = defaultdict(int)

    def read(self) -> Iterator[Any]:
        """The records up to the topic's present end, partition by partition; none while the topic is not there."""
        consumer = KafkaConsumer(
            bootstrap_servers=self._bootstrap, enable_auto_commit=False, isolation_level="read_committed"
        )
        with closing(consumer):
            for number in sorted(consumer.partitions_for_topic(self._topic) or ()):
                yield from self._read(consumer, TopicPartition(self._topic, number))

    def _read(self, consumer: KafkaConsumer, partition: TopicPartition) -> Iterator[Any]:
        end = consumer.end_offsets([partition])[partition]
        consumer.assign([partition])
        consumer.seek(partition, self._next[partition.partition])
        while consumer.position(partition) < end:
            for records in consumer.poll(1_000).values():
                yield from (record for record in records if record.offset < end)
        self._next[partition.partition] = end


class DecisionLog:
    """The outcomes in the decision log, the first copy of each: what every reader of the log goes by."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._reader = TopicReader(bootstrap, topic)
        self._applied: dict[int, int] = defaultdict(lambda: -1)

    def read(self) -> list[Outcome]:
        """Those that have come since the last call."""
        return [outcome for record in self._reader.read() for outcome in self._outcomes(record)]

    def _outcomes(self, record: Any) -> Iterator[Outcome]:
        header = decode_header(record.headers)
        frame, applied = decode_frame(header, record.value), self._applied[header.partition]
        self._applied[header.partition] = max(applied, header.last)
        decided = frame.decided
        rows = zip(*(decided.features[name].tolist() for name in FEATURES), strict=True)
        for offset, name, features, actions in zip(
            decided.offsets.tolist(), decided.event["id"], rows, decided.actions, strict=True
        ):
            if offset > applied:
                holds = len(json.loads(actions)) if actions else 0
                yield Outcome(header.partition, offset, record.timestamp, True, name, features, holds)
        for letter in frame.rejected:
            if letter.offset > applied:
                yield Outcome(header.partition, letter.offset, record.timestamp, False)

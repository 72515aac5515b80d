"""All that a broker knows; the request handlers work on it."""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

from kafka.errors import UnknownTopicOrPartitionError, for_code

from app.broker.faults import Faults, Refuse
from app.broker.groups import Groups
from app.broker.partition import Partition
from app.broker.topics import Topic, Topics

NODE_ID = 1
CLUSTER_ID = "headrace-development"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def first_producer_id() -> int:
    """Counted from the time of the start in µs: an id of an earlier run, kept in a log, never comes again."""
    return time.time_ns() // 1_000


@dataclass
class BrokerState:
    """One broker, which is the whole cluster, the controller and every group's coordinator."""

    host: str
    port: int
    topics: Topics
    groups: Groups
    faults: Faults
    producer_ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(first_producer_id()))

    @classmethod
    def open(cls, host: str, directory: Path | None, faults: Faults) -> "BrokerState":
        """With a directory: all that an earlier broker kept in it; otherwise empty, and in memory."""
        topics = Topics(directory / "topics" if directory else None)
        groups = Groups(directory / "groups.jsonl" if directory else None)
        return cls(host, 0, topics, groups, faults)

    def find_partition(self, api: str, topic: str, index: int) -> tuple[Topic, Partition]:
        """Raises UnknownTopicOrPartitionError, or the error that a fault wants here."""
        refusal = self.faults.take(Refuse, api, topic, index)
        if refusal:
            raise for_code(refusal.error_code)("a fault on command")
        found = self.topics.find(topic)
        if not 0 <= index < len(found.partitions):
            raise UnknownTopicOrPartitionError(f"{topic} has partitions 0 to {len(found.partitions) - 1}")
        return found, found.partitions[index]

    def drop_expired(self) -> None:
        for topic in self.topics:
            topic.drop_expired(now_ms())

    def close(self) -> None:
        """Puts everything on the medium and closes it."""
        for topic in self.topics:
            topic.flush()
            topic.close()
        self.groups.flush()
        self.groups.close()

"""All that a broker knows; the request handlers work on it."""

import time
from dataclasses import dataclass
from pathlib import Path

from kafka.errors import UnknownTopicOrPartitionError, for_code

from app.broker.faults import Faults, Refuse
from app.broker.groups import CommittedOffset, Groups
from app.broker.partition import Partition
from app.broker.topics import Topic, Topics
from app.broker.transactions import Transactions

NODE_ID = 1
CLUSTER_ID = "headrace-development"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class TransactionEffects:
    """See app.broker.transactions.Effects. A topic that was deleted meanwhile has nothing to be seen."""

    def __init__(self, topics: Topics, groups: Groups) -> None:
        self._topics = topics
        self._groups = groups

    def end_transaction(self, topic: str, index: int, producer_id: int, epoch: int, *, commits: bool) -> None:
        found = self._topics.find(topic) if topic in self._topics else None
        if found is not None and index < len(found.partitions):
            found.partitions[index].end_transaction(producer_id, epoch, found.config, now_ms(), commits=commits)

    def commit_offset(self, group: str, topic: str, index: int, committed: CommittedOffset) -> None:
        if topic in self._topics:
            self._groups.commit(group, topic, index, committed)


@dataclass
class BrokerState:
    """One broker, which is the whole cluster, the controller and every group's and transaction's coordinator."""

    host: str
    port: int
    topics: Topics
    groups: Groups
    transactions: Transactions
    faults: Faults

    @classmethod
    def open(cls, host: str, directory: Path | None, faults: Faults) -> "BrokerState":
        """With a directory: all that an earlier broker kept in it; otherwise empty, and in memory."""
        topics = Topics(directory / "topics" if directory else None)
        groups = Groups(directory / "groups.jsonl" if directory else None)
        kept = directory / "transactions.jsonl" if directory else None
        transactions = Transactions(kept, TransactionEffects(topics, groups))
        return cls(host, 0, topics, groups, transactions, faults)

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

    def abort_expired(self) -> None:
        self.transactions.abort_expired(now_ms())

    def close(self) -> None:
        """Puts everything on the medium and closes it."""
        for topic in self.topics:
            topic.flush()
            topic.close()
        for kept in (self.groups, self.transactions):
            kept.flush()
            kept.close()

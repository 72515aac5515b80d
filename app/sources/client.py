"""What Headrace asks of a Kafka client: consume from positions, produce once and in order, make topics.

Two libraries stand behind it with the same promises: the packages confluent and kafka_python.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from app.errors import BrokerError

Header = tuple[str, bytes | None]
OnDelivery = Callable[[BrokerError | None, int, int], None]

# How long a request, or the first contact with a cluster, may take before it is an error.
REQUEST_TIMEOUT_S = 10.0
# How long a transaction may be open before the broker aborts it and fences its producer. Readers of what is committed
# wait for it: with Kafka's default of 60 s, they would for so long behind a worker that was killed.
TRANSACTION_TIMEOUT_S = 10.0
# How long topics may take to get a leader for each partition, or to vanish.
TOPIC_TIMEOUT_S = 30.0
# How long send() waits for room in a full buffer.
SEND_TIMEOUT_S = 60.0
# Room for one frame of the logs; a broker refuses more than its topic's max.message.bytes (1 MB by default).
MAX_RECORD_BYTES = 16 << 20
# A broker answers a fetch at once when there is data. This bounds the wait of a partition that is assigned or
# resumed while a fetch for others is under way: with the clients' default of 500 ms it was seen to wait 511 ms.
FETCH_WAIT_MS = 50
# How long a broker lets an unhurried consumer wait, unless so many bytes are there before.
UNHURRIED_WAIT_MS, UNHURRIED_BYTES = 500, 1 << 20


class TopicPartition(NamedTuple):
    """One log."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class CommittedOffset(NamedTuple):
    """What a consumer group has stored of a partition: the next offset to read, and a free text."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """What one poll gave of one partition, in offset order; offsets may have gaps (compaction, transactions).

    append_ms are the records' timestamps: the broker's append time where the topic has LogAppendTime, as all of
    Headrace's own have, otherwise the time that the producer wrote down.
    """

    topic: str
    partition: int
    offsets: npt.NDArray[np.int64]
    append_ms: npt.NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: Callable[[], list[list[Header]]]
    """Decodes the header list of each record when called; before, they cost nothing."""

    def __len__(self) -> int:
        return len(self.values)


class Consumer(Protocol):
    """Reads partitions from given positions. Joins no group: what is assigned is all it reads.

    One thread uses it, from open to close. Records arrive each once and in offset order, whatever the broker
    does meanwhile: after a lost connection it goes on behind the last record that `poll` returned.
    """

    @property
    def last_error(self) -> BrokerError | None:
        """Why a broker is out of reach, as of the latest poll; None when none is, at most a second late."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Reads from now on exactly these partitions, the new ones from the given offset on.

        A partition that was assigned before goes on where it is, whatever offset is given, and keeps what is
        fetched of it: partitions can come and go one by one. To move one, assign without it, then with it; a new
        one is not paused.

        Raises BrokerError, and changes nothing, when the topic or partition of a new one does not exist.
        """

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        """Returns what has been fetched, at most max_records, or waits up to timeout_ms for the first, then [].

        Fetching goes on in the background, within the buffer. A broker that is away, or a topic that is deleted,
        raises nothing; last_error tells. Raises BrokerError when a position is not in the log (no policy ever
        moves it) or may not be read, at every call until that partition is assigned no more; what was fetched
        before is returned first.
        """

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Returns nothing of these until `resume`, and fetches the others.

        What is fetched of them may be thrown away and fetched again. So to hold back everything, do not pause:
        do not poll; the buffer is bounded, and no group expects a sign of life.
        """

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        """Goes on behind the last record that `poll` returned."""

    def passed(self, partition: TopicPartition) -> int:
        """Up to which offset nothing is left that `poll` could return: behind the last record that it did, or behind
        the markers of transactions that follow it. Only a consumer without a group learns of these.
        """

    def partitions(self, topic: str) -> list[int]:
        """Asks the cluster. Raises BrokerError when the topic does not exist; never makes it."""

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each log still holds. Raises BrokerError."""

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset that each log's next record will get; before open transactions. Raises BrokerError."""

    def offsets_for_time(self, partitions: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        """The first offset whose timestamp is time_ms or later, else the end offset. Raises BrokerError."""

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        """Stores offsets in the group that the consumer was opened with, so that Kafka's tools show the lag.

        With wait, all are stored on return, or BrokerError is raised. Without, they are on their way, and a
        failure shows only as last_error: for reports of progress, which the next one replaces.
        """

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        """What the group has stored; None for a partition without. Raises BrokerError."""

    def close(self) -> None:
        """Ends the connections; commits nothing. From the polling thread only: from another one it can hang."""


class OpenConsumer(Protocol):
    """Opens a consumer of a group, with settings and the rest filled in: see app.sources.open_consumer."""

    def __call__(self, group: str | None, *, hurried: bool = True, read_uncommitted: bool = False) -> Consumer: ...


class Producer(Protocol):
    """Writes records each once and, in each partition, in the order of `send`, through lost connections and
    restarts of brokers: idempotent, acknowledged by all replicas, tried again without end.

    Any thread may call any method. The first record that fails for good (too large, not allowed, topic deleted)
    ends the order: who needs it closes the producer and starts again behind the last record delivered.
    """

    @property
    def last_error(self) -> BrokerError | None:
        """Why a broker is out of reach, as of the latest poll; None when none is, at most a second late."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[Header] = (),
        on_delivery: OnDelivery | None = None,
    ) -> None:
        """Puts a record into the buffer, which leaves at most linger_ms later.

        The key chooses the partition as with Java's default partitioner, the same one whichever client writes;
        without key and partition, batches go to one partition after the other. `poll` and `flush`, and a `send`
        that waits, call on_delivery(error, offset, append_ms) in their own thread (offset and time -1 with an
        error). Without on_delivery, the next `send` or `flush` raises the error.

        Waits while the buffer is full: that is the back-pressure. Raises BrokerError after SEND_TIMEOUT_S of it,
        and when topic or partition does not exist (a topic is never made, a partition that was added is found); then
        the record is not sent.
        """

    def poll(self, timeout_ms: int = 0) -> None:
        """Calls on_delivery for what has been delivered; waits up to timeout_ms for the first."""

    def flush(self, timeout_s: float) -> int:
        """Sends at once what lingers and serves deliveries until all are in, or timeout_s is over.

        Returns how many are not. Raises BrokerError for a failure that no on_delivery was told.
        """

    def close(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Flushes. What is unsent after timeout_s is given up: on_delivery is told, and BrokerError raised."""


class TransactionalProducer(Protocol):
    """Writes records, and a group's offsets, in transactions: all of one is seen at its commit, in order, or nothing.

    Opening it takes over from every other one with the same transactional id: what that one had open is undone, what
    it had begun to commit is finished, and what it tries from then on raises FencedError and changes nothing. One
    thread uses it. Behind any BrokerError it is of no more use: close it, open another one, which undoes what was open,
    and read what the group has, as a commit may have gone through although its answer did not.
    """

    @property
    def last_error(self) -> BrokerError | None:
        """Why a broker is out of reach, as of the latest call; None when none is, at most a second late."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        """Puts a record into the open transaction, and begins one if none is. It leaves with the commit at the latest.

        Waits while the buffer is full, or a request of records is on its way. Raises BrokerError as Producer.send does,
        and for a record sent before.
        """

    def flush(self, timeout_s: float) -> int:
        """Returns how many records are not in the log, to be seen at the commit, when all are or timeout_s is over.

        Raises RefusedRecordError when the broker will not have one of them.
        """

    def commit(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Makes the records of the transaction visible, and the offsets the group's, all at once.

        Raises RefusedRecordError as `flush` does, and BrokerError when the outcome is unknown after
        REQUEST_TIMEOUT_S.
        """

    def close(self) -> None:
        """Ends the connections. What is open is undone after TRANSACTION_TIMEOUT_S, or by the next producer."""


class Admin(Protocol):
    """Makes and lists topics."""

    def ensure_topics(
        self, partitions_by_topic: Mapping[str, int], config: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        """Makes the missing ones, with LogAppendTime, the broker's replication and this topic configuration.

        Waits until each partition has a leader. Leaves those that exist as they are, and returns how many
        partitions each one has. Several processes may call it at the same time. Raises BrokerError.
        """

    def ensure_partitions(self, partitions_by_topic: Mapping[str, int]) -> dict[str, int]:
        """Adds partitions to the topics that have fewer, and returns how many partitions each one has then.

        Waits until each partition has a leader; takes none away. Several processes may call it at the same time.
        Raises BrokerError, also for a topic that does not exist.
        """

    def topics(self) -> dict[str, int]:
        """The number of partitions of every topic. Raises BrokerError."""

    def delete_topics(self, names: Collection[str]) -> None:
        """Deletes topics and waits until they are gone; one that is missing is no error. Raises BrokerError."""

    def close(self) -> None:
        """Ends the connections."""

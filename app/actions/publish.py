"""Publish: a record per action, or per decision, to a Kafka topic."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial

from app.actions.action import Sink
from app.actions.message import KEY_HEADER, SINK_HEADER, Message, identity_headers
from app.actions.position import BEGINNING, Mark, Position, Saved
from app.actions.writer import Batch, D, Outcome, SinkWriter
from app.config import LogName, Settings
from app.errors import BrokerError, RetryableActionError
from app.log.tail import read_to_end
from app.sources import Consumer, Producer, Records, TopicPartition

FLUSH_TIMEOUT_S = 5.0


class Publish(Sink, frozen=True):
    """A record for each action: the fields as JSON, keyed by the event's key, with the idempotency key as a header.

    Exactly once over crashes of the worker: what a killed one published is found in the topic, and not published
    again. Until it is fenced by transactions, a worker that was thought dead and still writes can repeat records,
    each with the same idempotency key.
    """


class PublishSettings(Settings):
    """topic: where the records go; the sink's name if not given. "off" does not run the sink."""

    topic: LogName


class Publisher(SinkWriter[D]):
    """Publishes what each source partition gives to one partition of the target: the one of the same number, or
    where there are fewer, modulo their number. So a key's records stay in order, and the records that a crash left
    unaccounted for are in the tail of one partition, behind the mark kept with the cursor.
    """

    def __init__(
        self,
        sink: str,
        topic: str,
        message: Callable[[D], Message],
        open_reader: Callable[[], Consumer],
        open_producer: Callable[[], Producer],
    ) -> None:
        self._sink = sink
        self._topic = topic
        self._message = message
        self._open_reader = open_reader
        self._open_producer = open_producer
        self._producer: Producer | None = None
        self._targets: list[int] = []
        self._marks: dict[int, Mark] = {}
        self._ends: dict[int, int] = {}
        self._published: dict[int, set[str]] = {}

    def resume(self, saved: Mapping[int, Saved | None]) -> dict[int, Position]:
        self._renew_producer()
        positions: dict[int, Position] = {}
        with closing(self._open_reader()) as reader:
            self._targets = reader.partitions(self._topic)
            for partition, each in saved.items():
                positions[partition], mark = each or Saved(BEGINNING)
                self._published[partition] = self._read_back(reader, partition, positions[partition], mark)
        return positions

    def _renew_producer(self) -> None:
        """A send that is still under way would land behind the tail that is about to be read: wait for it."""
        if self._producer is not None:
            self._flush(self._producer)
            self._producer.close()
            self._producer = None
        self._producer = self._open_producer()

    def _read_back(self, reader: Consumer, partition: int, position: Position, mark: Mark | None) -> set[str]:
        """The idempotency keys beyond the position that are in the topic already."""
        target = self._target(partition)
        starts = {target: 0}  # a topic that has grown has another target than the mark: read both
        if mark is not None:
            starts[mark.partition] = mark.offset
        self._marks[partition] = Mark(target, starts[target])
        published: set[str] = set()
        for each, start in starts.items():
            place = TopicPartition(self._topic, each)
            self._ends[each] = max(self._ends.get(each, 0), reader.end_offsets([place])[place])
            for records in read_to_end(reader, place, start):
                published |= self._keys_beyond(records, partition, position)
        return published

    def _keys_beyond(self, records: Records, partition: int, position: Position) -> set[str]:
        found = set()
        for headers in records.headers():
            of = {name: (value or b"").decode() for name, value in headers}
            ours = of.get(SINK_HEADER) == self._sink and of.get("source-partition") == str(partition)
            if ours and (position.applied is None or int(of["source-offset"]) > position.applied):
                found.add(of[KEY_HEADER])
        return found

    def write(self, batches: Sequence[Batch[D]]) -> list[Outcome]:
        """All or nothing: either every record is acknowledged by all replicas on return, or the error is raised."""
        producer = self._producer
        if producer is None:
            raise RetryableActionError(f"the producer for {self._topic!r} is closed")
        ends: dict[int, int] = {}
        errors: list[BrokerError] = []
        for batch in batches:
            target = self._target(batch.partition)
            answer = partial(_note, target, ends, errors)
            for delivery in batch.deliveries:
                if delivery.key not in self._published[batch.partition]:
                    self._send(producer, target, delivery, answer)
        self._flush(producer)
        if errors:
            raise errors[0]
        self._ends |= ends
        for batch in batches:
            self._published[batch.partition].difference_update(each.key for each in batch.deliveries)
        return [Outcome(batch.end) for batch in batches]

    def _send(
        self,
        producer: Producer,
        target: int,
        delivery: D,
        answer: Callable[[BrokerError | None, int, int], None],
    ) -> None:
        message = self._message(delivery)
        producer.send(
            self._topic,
            message.value,
            key=message.key,
            partition=target,
            headers=[*identity_headers(self._sink, delivery), *message.headers],
            on_delivery=answer,
        )

    def _flush(self, producer: Producer) -> None:
        left = producer.flush(FLUSH_TIMEOUT_S)
        if left:
            raise RetryableActionError(
                f"{left} records for {self._topic!r} are not acknowledged after {FLUSH_TIMEOUT_S:g} s "
                f"({producer.last_error or 'no error is known'})"
            )

    def mark(self, partition: int) -> Mark | None:
        """Moves up only when all that was found in the tail is behind the cursor."""
        if not self._published[partition]:
            target = self._target(partition)
            self._marks[partition] = Mark(target, self._ends[target])
        return self._marks[partition]

    def _target(self, partition: int) -> int:
        return self._targets[partition % len(self._targets)]

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close()


def _note(
    target: int, ends: dict[int, int], errors: list[BrokerError], error: BrokerError | None, offset: int, _: int
) -> None:
    if error is not None:
        errors.append(error)
    else:
        ends[target] = max(ends.get(target, 0), offset + 1)

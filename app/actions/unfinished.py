"""Transactions that Kafka does not finish: what they have left in the target is found out, and ended.

Without replicas, Apache Kafka 4.3 may take a transaction for complete whose markers it never wrote, to the target, to
the group's offsets, or to both, when a broker is killed close to a commit (docs/decisions/0011). The target's readers
are who the promise is made to, so that what they see is what counts.
"""

import time
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from app.actions.kafka import Kafka
from app.actions.message import KEY_HEADER, SINK_HEADER, Message
from app.actions.position import Position
from app.errors import RetryableActionError
from app.log.tail import read_to_end
from app.sources import Consumer, Records, TopicPartition

CLOCK_SLACK_MS = 60_000
"""By so much the clocks of decision log and target may differ, where the target has its producers' times."""
PATIENCE_S = 5.0
LOOK_S = 0.02


class Published(NamedTuple):
    """A record in the target, and which source offset it is about."""

    offset: int
    source_offset: int
    message: Message


class Trail:
    """The records that a sink has published of one source partition, all of them to one partition of its target."""

    def __init__(self, kafka: Kafka, pipeline: str, sink: str, partition: int, target: TopicPartition) -> None:
        self._kafka = kafka
        self._prefix = f"{pipeline}/{partition}/".encode()
        self._sink = sink.encode()
        self.target = target

    def find_hidden(self, committed: Consumer) -> list[Published]:
        """Those that `committed`, or whoever else reads what is committed, cannot see: an open transaction hides all
        that is behind it."""
        stable_end = committed.end_offsets([self.target])[self.target]
        with closing(self._kafka.open_consumer(None, read_uncommitted=True)) as consumer:
            return self._own(read_to_end(consumer, self.target, stable_end))

    def find_seen(self, hidden: Iterable[Published], log: TopicPartition, log_offset: int) -> list[Published]:
        """Those that can be seen, from the first one on that may be about a decision at `log_offset` or behind it; and
        from the first one on that was hidden. Raises RetryableActionError while other transactions hide them."""
        last = max((each.offset for each in hidden), default=-1)
        with closing(self._kafka.open_consumer(None)) as consumer:
            self._wait_until_seen(consumer, last)
            starts = [self._find_start(consumer, log, log_offset), *(each.offset for each in hidden)]
            return self._own(read_to_end(consumer, self.target, min(starts)))

    def _wait_until_seen(self, consumer: Consumer, offset: int) -> None:
        give_up_s = time.monotonic() + PATIENCE_S
        while consumer.end_offsets([self.target])[self.target] <= offset:
            if time.monotonic() > give_up_s:
                raise RetryableActionError(
                    f"{self.target} cannot be read beyond a transaction of another producer, which is open"
                )
            time.sleep(LOOK_S)

    def _find_start(self, consumer: Consumer, log: TopicPartition, log_offset: int) -> int:
        """No record about a decision is older than the decision."""
        end = consumer.end_offsets([self.target])[self.target]
        decided = next(read_to_end(consumer, log, log_offset), None)
        if decided is None:
            return end
        time_ms = int(decided.append_ms[0]) - CLOCK_SLACK_MS
        return consumer.offsets_for_time([self.target], time_ms)[self.target]

    def _own(self, read: Iterable[Records]) -> list[Published]:
        found = []
        for records in read:
            for row, headers in enumerate(records.headers()):
                named = dict(headers)
                key = named.get(KEY_HEADER) or b""
                if key.startswith(self._prefix) and named.get(SINK_HEADER) == self._sink:
                    own = [(name, value or b"") for name, value in headers]
                    message = Message(records.keys[row], records.values[row], own)
                    source_offset = int(key.removeprefix(self._prefix).partition(b"/")[0])
                    found.append(Published(int(records.offsets[row]), source_offset, message))
        return found


def agree(cursor: Position, seen: Iterable[Published]) -> Position:
    """The cursor that goes with what the target shows: what it shows is not to be sent again."""
    shown = max((each.source_offset for each in seen), default=-1)
    return cursor if shown <= _last_applied(cursor) else Position(shown, cursor.log_offset)


def find_lost(cursor: Position, hidden: Iterable[Published], seen: Iterable[Published]) -> list[Published]:
    """What was hidden, is not to be seen now, and would not be sent again."""
    shown = {each.offset for each in seen}
    through = _last_applied(cursor)
    return [each for each in hidden if each.offset not in shown and each.source_offset <= through]


def _last_applied(cursor: Position) -> int:
    return -1 if cursor.applied is None else cursor.applied

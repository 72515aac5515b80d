"""See app.sources.client.Consumer."""

import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import confluent_kafka as ck
import numpy as np

from app.errors import BrokerError
from app.sources.client import (
    FETCH_WAIT_MS,
    REQUEST_TIMEOUT_S,
    UNHURRIED_BYTES,
    UNHURRIED_WAIT_MS,
    CommittedOffset,
    Header,
    Records,
    TopicPartition,
)
from app.sources.confluent.link import BEGINNING, END, NO_GROUP, PASSING, Link, common_options, raise_first_error
from app.sources.failures import check_that_they_exist, no_such_topic, out_of_range, require_group
from app.sources.settings import KafkaSettings

MOST_RECORDS_OF_A_CALL = 1_000_000
LEADERLESS = (ck.KafkaError.NOT_LEADER_FOR_PARTITION, ck.KafkaError.LEADER_NOT_AVAILABLE)
RETRY_S = 0.05


def consumer_options(
    settings: KafkaSettings,
    group: str | None,
    buffer_bytes: int,
    *,
    hurried: bool = True,
    read_uncommitted: bool = False,
) -> dict[str, Any]:
    return {
        "fetch.wait.max.ms": FETCH_WAIT_MS if hurried else UNHURRIED_WAIT_MS,
        "fetch.min.bytes": 1 if hurried else UNHURRIED_BYTES,
        # How long it stops fetching when the buffer is full: a loop took 143k records/s with the default of
        # 1,000 ms, 403k with 5.
        "fetch.queue.backoff.ms": 5,
        "queued.max.messages.kbytes": max(1, buffer_bytes >> 10),
        "isolation.level": "read_uncommitted" if read_uncommitted else "read_committed",
        # Without membership this only bounds how long a commit waits for the group's coordinator to be known; behind a
        # broker that goes away it was seen to wait for its return, over 80 s.
        "session.timeout.ms": int(REQUEST_TIMEOUT_S * 1_000),
        # How long a topic must be unknown before it is said to be deleted; the default is 30 s.
        "topic.metadata.propagation.max.ms": 5_000,
        **common_options(settings),
        # Tells where a partition ends, markers included; each time, which would wake a stream's loop for nothing.
        "enable.partition.eof": group is None,
        "group.id": group or NO_GROUP,
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
    }


class ConfluentConsumer:
    def __init__(
        self,
        settings: KafkaSettings,
        group: str | None,
        buffer_bytes: int,
        *,
        hurried: bool = True,
        read_uncommitted: bool = False,
    ) -> None:
        self._link = Link(settings, lambda: self._assigned)
        self._group = group
        self._assigned: set[TopicPartition] = set()
        self._failures: dict[TopicPartition, BrokerError] = {}
        self._passed: dict[TopicPartition, int] = {}
        options = consumer_options(settings, group, buffer_bytes, hurried=hurried, read_uncommitted=read_uncommitted)
        self._client = self._link.open(ck.Consumer, {**options, "on_commit": self._note_commit})

    @property
    def last_error(self) -> BrokerError | None:
        return self._link.last_error

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        new = positions.keys() - self._assigned
        gone = self._assigned - positions.keys()
        check_that_they_exist(self._link.bootstrap, new, self.partitions)
        with self._link.request():
            if gone:
                self._client.resume(to_client(gone))  # or it would be paused when it comes back
                self._client.incremental_unassign(to_client(gone))
            if new:
                self._client.incremental_assign([ck.TopicPartition(*place, positions[place]) for place in new])
        self._assigned = set(positions)
        self._failures = {place: error for place, error in self._failures.items() if place not in gone}
        self._passed = {place: self._passed.get(place, offset) for place, offset in positions.items()}

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        self._raise_failure()
        # consume(n, t) alone would wait the whole t unless n arrive.
        first = self._client.poll(timeout_ms / 1_000)
        if first is None:
            return []
        messages = [first]
        if max_records > 1:
            messages += self._client.consume(min(max_records - 1, MOST_RECORDS_OF_A_CALL), 0)
        ends: dict[TopicPartition, int] = {}
        if any(map(ck.Message.error, messages)):
            messages = self._set_errors_aside(messages, ends)
        if not messages:
            self._raise_failure()
        polled = group_by_partition(messages)
        for records in polled:
            self._passed[TopicPartition(records.topic, records.partition)] = int(records.offsets[-1]) + 1
        self._passed |= ends
        return polled

    def _raise_failure(self) -> None:
        if self._failures:
            raise next(iter(self._failures.values())).with_traceback(None)

    def _set_errors_aside(self, messages: list[Any], ends: dict[TopicPartition, int]) -> list[Any]:
        """Returns the messages that are records, and keeps what the others say for the next poll; in `ends`, where a
        partition was found to end."""
        for message in messages:
            error = message.error()
            if error is None:
                continue
            if error.code() == ck.KafkaError._PARTITION_EOF:
                ends[TopicPartition(message.topic(), message.partition())] = message.offset()
            elif error.code() in PASSING:
                self._link.note(error)
            else:
                place = TopicPartition(message.topic(), message.partition())
                self._failures[place] = self._explain(place, message.offset(), error)
        return [message for message in messages if message.error() is None]

    def _explain(self, place: TopicPartition, wanted: int, error: Any) -> BrokerError:
        if error.code() == ck.KafkaError._AUTO_OFFSET_RESET:
            beginning = self.beginning_offsets([place])[place]
            return out_of_range(place, wanted, beginning, self.end_offsets([place])[place])
        return BrokerError(f"{place} at {self._link.bootstrap} cannot be read: {error.str()}")

    def passed(self, partition: TopicPartition) -> int:
        return self._passed[partition]

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._client.pause(to_client(partitions))

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._client.resume(to_client(partitions))

    def partitions(self, topic: str) -> list[int]:
        with self._link.request():
            found = self._client.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic]
            if found.error is not None and found.error.code() != ck.KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise ck.KafkaException(found.error)
        if not found.partitions:
            raise no_such_topic(self._link.bootstrap, topic)
        return sorted(found.partitions)

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return self._list_offsets(partitions, BEGINNING)

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return self._list_offsets(partitions, END)

    def offsets_for_time(self, partitions: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        found = self._list_offsets(partitions, time_ms)
        none_later = [place for place, offset in found.items() if offset < 0]
        return found | self.end_offsets(none_later)

    def _list_offsets(self, partitions: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        wanted = [ck.TopicPartition(*place, time_ms) for place in partitions]
        deadline_s = time.monotonic() + REQUEST_TIMEOUT_S
        with self._link.request():
            while (found := self._ask_for_offsets(wanted, deadline_s)) is None:
                time.sleep(RETRY_S)
        return {TopicPartition(one.topic, one.partition): one.offset for one in found}

    def _ask_for_offsets(self, wanted: list[Any], deadline_s: float) -> list[Any] | None:
        """None when a partition's leader is just being made, as behind the creation of its topic, or is moving."""
        try:
            found: list[Any] = self._client.offsets_for_times(wanted, timeout=REQUEST_TIMEOUT_S)
            raise_first_error(found)
        except ck.KafkaException as error:
            if error.args[0].code() in LEADERLESS and time.monotonic() < deadline_s:
                return None
            raise
        return found

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        require_group(self._group)
        if not offsets:
            return
        wanted = [ck.TopicPartition(*place, *stored) for place, stored in offsets.items()]
        if wait:
            with self._link.request():
                raise_first_error(self._client.commit(offsets=wanted, asynchronous=False))
        else:
            self._client.commit(offsets=wanted, asynchronous=True)

    def _note_commit(self, error: Any, _: Any) -> None:
        if error is not None:
            self._link.note(error)

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        require_group(self._group)
        with self._link.request():
            found = self._client.committed(to_client(partitions), timeout=REQUEST_TIMEOUT_S)
            raise_first_error(found)
        return {TopicPartition(one.topic, one.partition): to_committed(one) for one in found}

    def close(self) -> None:
        self._client.close()
        self._link.close()


def to_client(partitions: Collection[TopicPartition]) -> list[Any]:
    return [ck.TopicPartition(*place) for place in partitions]


def to_committed(found: Any) -> CommittedOffset | None:
    return CommittedOffset(found.offset, found.metadata or "") if found.offset >= 0 else None


def group_by_partition(messages: list[Any]) -> list[Records]:
    """One Records a partition. Each step is a C function mapped over all messages: no Python a record."""
    groups: dict[TopicPartition, list[Any]] = defaultdict(list)
    for topic, of_topic in groupby(messages, ck.Message.topic):
        for partition, run in groupby(of_topic, ck.Message.partition):
            groups[TopicPartition(topic, partition)].extend(run)
    return [to_records(place, group) for place, group in groups.items()]


def to_records(place: TopicPartition, messages: list[Any]) -> Records:
    count = len(messages)
    return Records(
        topic=place.topic,
        partition=place.partition,
        offsets=np.fromiter(map(ck.Message.offset, messages), np.int64, count),
        append_ms=np.fromiter(map(itemgetter(1), map(ck.Message.timestamp, messages)), np.int64, count),
        keys=list(map(ck.Message.key, messages)),
        values=list(map(ck.Message.value, messages)),
        headers=partial(read_headers, messages),
    )


def read_headers(messages: list[Any]) -> list[list[Header]]:
    return [message.headers() or [] for message in messages]

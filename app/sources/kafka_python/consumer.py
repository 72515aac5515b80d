"""See app.sources.client.Consumer."""

from collections.abc import Collection, Mapping
from functools import partial
from operator import attrgetter
from typing import Any

import kafka
import numpy as np
from kafka import errors
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

from app.errors import BrokerError
from app.sources.client import (
    FETCH_WAIT_MS,
    UNHURRIED_BYTES,
    UNHURRIED_WAIT_MS,
    CommittedOffset,
    Header,
    Records,
    TopicPartition,
)
from app.sources.failures import check_that_they_exist, no_such_topic, out_of_range, require_group
from app.sources.kafka_python.link import REQUEST_TIMEOUT_MS, Link, common_options, to_client
from app.sources.settings import KafkaSettings


def consumer_options(
    settings: KafkaSettings,
    group: str | None,
    buffer_bytes: int,
    *,
    hurried: bool = True,
    read_uncommitted: bool = False,
) -> dict[str, Any]:
    return {
        "fetch_max_wait_ms": FETCH_WAIT_MS if hurried else UNHURRIED_WAIT_MS,
        "fetch_min_bytes": 1 if hurried else UNHURRIED_BYTES,
        "fetch_max_bytes": buffer_bytes,
        "isolation_level": "read_uncommitted" if read_uncommitted else "read_committed",
        "metrics_enabled": False,
        **common_options(settings, kafka.KafkaConsumer),
        "group_id": group,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
    }


class KafkaPythonConsumer:
    """Pauses by assignment: 3.0.12's own pause() was seen to keep what is fetched of a partition for good when
    another one is drained meanwhile, so that resume() never gets it going again."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str | None,
        buffer_bytes: int,
        *,
        hurried: bool = True,
        read_uncommitted: bool = False,
    ) -> None:
        self._link = Link(settings)
        self._group = group
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self.last_error: BrokerError | None = None
        options = consumer_options(settings, group, buffer_bytes, hurried=hurried, read_uncommitted=read_uncommitted)
        self._client = self._link.open(kafka.KafkaConsumer, options)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        check_that_they_exist(self._link.bootstrap, positions.keys() - self._positions.keys(), self.partitions)
        self._positions = {place: self._positions.get(place, offset) for place, offset in positions.items()}
        self._paused &= positions.keys()
        self._assign_what_runs()

    def _assign_what_runs(self) -> None:
        before = self._client.assignment()
        running = to_client(self._positions.keys() - self._paused)
        self._client.assign(running)
        for place in running:
            if place not in before:
                self._client.seek(place, self._positions[TopicPartition(*place)])

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        try:
            polled = self._client.poll(timeout_ms=timeout_ms, max_records=max_records)
        except errors.OffsetOutOfRangeError as error:
            raise self._explain(error.args[0]) from error
        except errors.KafkaError as error:
            raise BrokerError(f"Kafka at {self._link.bootstrap} cannot be read: {error}") from error
        found = [to_records(place, records) for place, records in polled.items()]
        for records in found:
            self._positions[TopicPartition(records.topic, records.partition)] = int(records.offsets[-1]) + 1
        self.last_error = None if found else self._link.outage(self._positions)
        return found

    def _explain(self, wanted: Mapping[Any, int]) -> BrokerError:
        found, offset = next(iter(wanted.items()))
        place = TopicPartition(*found)
        beginning = self.beginning_offsets([place])[place]
        return out_of_range(place, offset, beginning, self.end_offsets([place])[place])

    def passed(self, partition: TopicPartition) -> int:
        return max(self._positions[partition], self._client.position(to_client([partition])[0]) or 0)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused |= self._positions.keys() & partitions
        self._assign_what_runs()

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused -= set(partitions)
        self._assign_what_runs()

    def partitions(self, topic: str) -> list[int]:
        with self._link.request():
            known = self._client.topics()  # asks the cluster anew
        if topic not in known:
            raise no_such_topic(self._link.bootstrap, topic)
        return sorted(self._client.partitions_for_topic(topic))

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._link.request():
            found = self._client.beginning_offsets(to_client(partitions), timeout_ms=REQUEST_TIMEOUT_MS)
        return {TopicPartition(*place): offset for place, offset in found.items()}

    def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        with self._link.request():
            found = self._client.end_offsets(to_client(partitions), timeout_ms=REQUEST_TIMEOUT_MS)
        return {TopicPartition(*place): offset for place, offset in found.items()}

    def offsets_for_time(self, partitions: Collection[TopicPartition], time_ms: int) -> dict[TopicPartition, int]:
        times = dict.fromkeys(to_client(partitions), time_ms)
        with self._link.request():
            found = self._client.offsets_for_times(times, timeout_ms=REQUEST_TIMEOUT_MS)
        later = {TopicPartition(*place): at.offset for place, at in found.items() if at is not None}
        none_later = [place for place in partitions if place not in later]
        return later | self.end_offsets(none_later)

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], *, wait: bool = True) -> None:
        require_group(self._group)
        wanted = {KafkaPartition(*place): OffsetAndMetadata(*stored) for place, stored in offsets.items()}
        if wait:
            with self._link.request():
                self._client.commit(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
        else:
            self._client.commit_async(wanted, callback=self._note_commit)

    def _note_commit(self, _: Any, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            self.last_error = BrokerError(f"Kafka at {self._link.bootstrap} took no commit: {outcome}")

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        require_group(self._group)
        return {place: self._committed(place) for place in partitions}

    def _committed(self, place: TopicPartition) -> CommittedOffset | None:
        with self._link.request():
            found = self._client.committed(KafkaPartition(*place), metadata=True, timeout_ms=REQUEST_TIMEOUT_MS)
        return None if found is None else CommittedOffset(found.offset, found.metadata)

    def close(self) -> None:
        self._client.close(autocommit=False, timeout_ms=REQUEST_TIMEOUT_MS)


def to_records(place: Any, records: list[Any]) -> Records:
    count = len(records)
    return Records(
        topic=place.topic,
        partition=place.partition,
        offsets=np.fromiter(map(attrgetter("offset"), records), np.int64, count),
        append_ms=np.fromiter(map(attrgetter("timestamp"), records), np.int64, count),
        keys=list(map(attrgetter("key"), records)),
        values=list(map(attrgetter("value"), records)),
        headers=partial(read_headers, records),
    )


def read_headers(records: list[Any]) -> list[list[Header]]:
    return [list(record.headers) for record in records]

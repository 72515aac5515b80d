"""Reads the source for a stream worker, with another client when one falls silent."""

import logging
from collections.abc import Callable, Collection, Mapping

from app.errors import BrokerError
from app.runtime.silence import Silence
from app.sources import CommittedOffset, Consumer, Records, TopicPartition

logger = logging.getLogger("ray.serve")


class SourceReader:
    """Polls partitions of one topic; a client that reads nothing more, though the log goes on, is replaced in place."""

    def __init__(self, topic: str, open_client: Callable[[], Consumer]) -> None:
        self._topic = topic
        self._open_client = open_client
        self._client = open_client()
        self._assigned: frozenset[int] = frozenset()
        self._silences: dict[int, Silence] = {}

    def assign(self, positions: Mapping[int, int]) -> None:
        """These partitions, and no others, are read from now on; what is read already goes on where it is."""
        if positions.keys() == self._assigned:
            return
        self._client.assign({TopicPartition(self._topic, each): offset for each, offset in positions.items()})
        self._assigned = frozenset(positions)
        self._silences = {each: self._silences.get(each, Silence()) for each in positions}
        for silence in self._silences.values():
            silence.reset()

    def rewind(self) -> None:
        """Whatever is assigned next is read from its position on, whether it was read before or not."""
        self._client.assign({})
        self._assigned = frozenset()

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        polled = self._client.poll(max_records, timeout_ms)
        drained = sum(map(len, polled)) < max_records
        read = {records.partition for records in polled}
        for partition in self._assigned:
            if partition in read or not drained:
                self._silences[partition].reset()
            else:
                self._silences[partition].note_poll()
        return polled

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Shows others where the reader is; nothing here depends on it, and it is not waited for."""
        places = {TopicPartition(self._topic, each): CommittedOffset(offset) for each, offset in offsets.items()}
        self._client.commit(places, wait=False)

    def note_ends(self, positions: Mapping[int, int], ends: Mapping[int, int], now_ms: float) -> None:
        """Takes where the log ends, as another client sees it, and begins anew when a partition has been silent for too
        long. Without an end its broker is away, and silence is no wonder."""
        for partition in self._assigned:
            if partition in ends:
                self._silences[partition].note_end(positions[partition], ends[partition], now_ms)
            else:
                self._silences[partition].reset()
        silent = [each for each in self._assigned if self._silences[each].is_too_long(now_ms)]
        if silent:
            self._renew(silent, positions, ends)

    def _renew(self, silent: Collection[int], positions: Mapping[int, int], ends: Mapping[int, int]) -> None:
        try:
            client = self._open_client()
        except BrokerError as error:
            logger.warning("%s", error)
            return
        for partition in silent:
            logger.warning(
                "partition %d: nothing is read from offset %d on, though the log goes on to %d; a new client reads on",
                partition,
                positions[partition],
                ends[partition],
            )
            self._silences[partition].ask(positions[partition], ends[partition])
        self._client.close()
        self._client, self._assigned = client, frozenset()

    def close(self) -> None:
        self._client.close()

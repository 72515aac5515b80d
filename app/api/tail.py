"""Follows a log for the API, in a thread of its own."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from app.errors import HeadraceError
from app.sources import Consumer, Records, TopicPartition

logger = logging.getLogger("ray.serve")

TAIL_RECORDS = 2_000
"""How far before its end the log of a partition is read at start."""
RETRY_S = 2.0


class Recent(Protocol):
    """The end of a log in memory."""

    def add(self, records: Records) -> None: ...
    def restart(self) -> None: ...


class LogTail:
    """Feeds the end of a log, and what is appended to it, into `recent`. Its thread opens, uses and closes the
    consumer.

    While Kafka is away it tries again every 2 s, from the log's end; `last_error` says why.
    """

    def __init__(self, open_consumer: Callable[[], Consumer], topic: str, recent: Recent) -> None:
        self.last_error: str | None = f"the log {topic} is not read yet"
        self._open_consumer = open_consumer
        self._topic = topic
        self._recent = recent
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tail-{topic}", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, or after 2 s: it may be waiting for Kafka, and has nothing to lose."""
        self._stopping.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except HeadraceError as error:
                self.last_error = str(error)
                logger.warning("the log %s cannot be followed: %s", self._topic, error)
                self._stopping.wait(RETRY_S)

    def _follow(self) -> None:
        consumer = self._open_consumer()
        try:
            self._recent.restart()
            consumer.assign(self._starts(consumer))
            self.last_error = None
            while not self._stopping.is_set():
                for records in consumer.poll(1_000, 100):
                    self._recent.add(records)
        finally:
            consumer.close()

    def _starts(self, consumer: Consumer) -> dict[TopicPartition, int]:
        partitions = [TopicPartition(self._topic, each) for each in consumer.partitions(self._topic)]
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        return {each: max(begins[each], ends[each] - TAIL_RECORDS) for each in partitions}

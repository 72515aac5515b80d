"""Partitions that the source gets while the pipeline runs, or while it is down."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import Any

from app.config import Topics
from app.runtime.opener import TaskOpener
from app.sources import Admin, Consumer

INTERVAL_S = 10.0
"""A look is one request for metadata; Kafka's own clients look every 5 minutes."""
logger = logging.getLogger("ray.serve")


class SourcePartitions:
    """Says which partitions of the source there are to work on: those that have a decision log.

    The logs get the partitions that they lack. Every worker may look at the same time and be killed at any point: where
    a new partition begins is pinned before it has a log, and comes out the same whoever does it.
    """

    def __init__(
        self, topics: Topics, opener: TaskOpener[Any], consumer: Consumer, open_admin: Callable[[], Admin]
    ) -> None:
        self._topics = topics
        self._opener = opener
        self._consumer = consumer
        self._open_admin = open_admin
        self._logged: int | None = None
        self._unread = 0

    def look(self) -> list[int]:
        """Asks the cluster. A partition that the source has and the logs have not is new, and begins at its first
        record, also where `start` is the latest. Raises BrokerError."""
        found = self._consumer.partitions(self._topics.source)
        if self._logged is None or len(found) > self._logged:
            self._logged = self._catch_up(found)
        return found[: self._logged]

    def _catch_up(self, found: Sequence[int]) -> int:
        """Returns how many partitions have logs."""
        logged = self._logged or self._count_logged()
        new = found[logged:]
        for partition in new:
            self._opener.pin(partition)
        if new and self._topics.create:
            self._add_to_logs(len(found))
        if new:
            logged = self._count_logged()
            self._tell(len(found), len(new), logged)
        return logged

    def _tell(self, found: int, new: int, logged: int) -> None:
        topics = self._topics
        if logged >= found:
            logger.warning(
                "%s has %d partitions now, %d of them new: a key that its producers send to another partition than "
                "before starts there without its past, for Kafka moves no records",
                topics.source,
                found,
                new,
            )
        elif found != self._unread:
            self._unread = found
            logger.error(
                "%s has %d partitions, and nobody reads those beyond %d, for they have no logs: add partitions to %s, "
                "or set topics.create",
                topics.source,
                found,
                logged - 1,
                ", ".join(topics.logs),
            )

    def _add_to_logs(self, partitions: int) -> None:
        """The decision log last: who finds its partitions may write to those of the others."""
        with closing(self._open_admin()) as admin:
            for log in self._topics.logs:
                admin.ensure_partitions({log: partitions})

    def _count_logged(self) -> int:
        return min(len(self._consumer.partitions(log)) for log in self._topics.logs)


async def keep_looking(executor: Executor, look: Callable[[], list[int]], tell: Callable[[list[int]], None]) -> None:
    """Until cancelled: looks in the executor's thread, and tells what is there. What cannot be seen changes nothing."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        try:
            tell(await asyncio.wrap_future(executor.submit(look)))
        except Exception as error:  # noqa: BLE001 - the loop's edge: whatever it was, the next look tries again
            logger.warning("cannot see whether there are new partitions: %s", error)

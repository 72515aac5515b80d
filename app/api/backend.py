"""What the routes answer from: the pipeline, its status, its decision log, its source topic."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from app.actions.build import switched_off
from app.api.decision import Sinks
from app.api.intake import Intake
from app.api.lane import SourceWriter, SynchronousLane
from app.api.letters import RecentLetters
from app.api.recent import RecentDecisions
from app.api.search import Found, search_log
from app.api.status import StatusCache, StatusDocument
from app.api.tail import LogTail
from app.config import PipelineArgs
from app.errors import BrokerError
from app.pipeline import Pipeline
from app.sources import Consumer, KafkaSettings, Producer, open_admin, open_consumer, open_producer

logger = logging.getLogger("ray.serve")

SEARCHES = 2
"""How many requests at once may look through the whole log; the next ones wait."""


@dataclass(frozen=True)
class Backend:
    """Everything behind the API of one pipeline. `start` and `stop` belong to the application's life.

    `off` are the names of the sinks that the YAML switches off.
    """

    name: str
    pipeline: Pipeline[Any]
    off: Collection[str]
    status: StatusCache
    recent: RecentDecisions
    tail: LogTail
    letters: RecentLetters
    letters_tail: LogTail
    intake: Intake
    lane: SynchronousLane
    search: Callable[[str], Found]
    searching: asyncio.Semaphore

    async def find(self, event_id: str) -> Found:
        """The newest decision on an event, from memory or else from the log. Raises BrokerError."""
        row = await asyncio.to_thread(self.recent.find, event_id)
        if row is not None:
            return Found(row, everywhere=False)
        async with self.searching:
            return await asyncio.to_thread(self.search, event_id)

    async def sinks(self) -> Sinks:
        """Where the sinks stand; unknown while the coordinator does not answer."""
        return Sinks(self.pipeline.actions, self.off, await self.status.get_if_available())

    @property
    def alive(self) -> bool:
        """Whether what follows the logs lives."""
        return self.tail.alive and self.letters_tail.alive

    def start(self) -> None:
        self.tail.start()
        self.letters_tail.start()

    async def stop(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(each.stop) for each in (self.tail, self.letters_tail)))
        try:
            await asyncio.to_thread(self.lane.close)
        except BrokerError as error:
            logger.warning("%s", error)


def connect(
    args: PipelineArgs, pipeline: Pipeline[Any], fetch_status: Callable[[], Awaitable[StatusDocument]]
) -> Backend:
    """Wires a backend to Kafka. Nothing is connected yet: an API without Kafka is up, and says what is wrong."""
    topics, recent, letters = args.topics, RecentDecisions(), RecentLetters(args.name)

    def open_reader() -> Consumer:
        return open_consumer(args.kafka, buffer_bytes=8 << 20)

    def open_letters() -> Consumer:
        return open_consumer(args.kafka, buffer_bytes=8 << 20, hurried=False)

    def search(event_id: str) -> Found:
        consumer = open_reader()
        try:
            return search_log(consumer, topics.decisions, event_id)
        finally:
            consumer.close()

    writer = SourceWriter(lambda: _open_source(args.kafka, topics.source), topics.source)
    return Backend(
        name=args.name,
        pipeline=pipeline,
        off=switched_off(pipeline, args.sinks),
        status=StatusCache(fetch_status),
        recent=recent,
        tail=LogTail(open_reader, topics.decisions, recent),
        letters=letters,
        letters_tail=LogTail(open_letters, topics.dead_letters, letters),
        intake=Intake(pipeline, args.max_ahead_ms),
        lane=SynchronousLane(writer, recent),
        search=search,
        searching=asyncio.Semaphore(SEARCHES),
    )


def _open_source(kafka: KafkaSettings, topic: str) -> tuple[Producer, int]:
    admin = open_admin(kafka)
    partitions = admin.topics().get(topic)
    admin.close()
    if partitions is None:
        raise BrokerError(f"Kafka at {kafka.bootstrap} has no topic {topic!r}; create it, or correct its name")
    return open_producer(kafka, linger_ms=1), partitions

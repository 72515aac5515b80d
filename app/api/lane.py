"""The synchronous lane: events in, their decisions out.

It is no second path: an event is appended to the source topic like any other, and its decision is read from the
decision log.
"""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from kafka.partitioner import murmur2

from app.api.intake import Posted
from app.api.recent import RecentDecisions, Row
from app.errors import BrokerError
from app.log.frame import DeadLetter
from app.sources import OnDelivery, Producer

logger = logging.getLogger("ray.serve")

ACKNOWLEDGED_S = 5.0
"""How long a request waits for Kafka's acknowledgement of its events, before it waits for their decisions."""


class Place(NamedTuple):
    """Where an event lies in the source topic."""

    partition: int
    offset: int


class Duplicate(NamedTuple):
    """A copy of an event before it, with the decision on that one; None when there is none in memory."""

    first: Row | None


Result = Row | DeadLetter | Duplicate
"""What the stream made of an event."""


class Outcome(NamedTuple):
    """What became of a posted event; `result` is None when it was not decided in time."""

    event_id: str
    place: Place
    result: Result | None


class SourceWriter:
    """Appends events to the source topic and says where they went.

    Connects at the first event; after a failed delivery, connects anew at the next one. `connect` gives a producer
    and the number of the topic's partitions. A thread of its own serves deliveries.
    """

    def __init__(self, connect: Callable[[], tuple[Producer, int]], topic: str) -> None:
        self._connect = connect
        self._topic = topic
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._partitions = 0
        self._turn = itertools.count()

    def append(self, events: Sequence[Posted]) -> "list[Future[Place]]":
        """Sends the events, in order. Blocks while Kafka is being connected to. Raises BrokerError."""
        producer = self._connected()
        return [self._send(producer, event) for event in events]

    def close(self) -> None:
        """Sends what is under way, for up to 10 s."""
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _connected(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer, self._partitions = self._connect()
                threading.Thread(
                    target=self._serve_deliveries, args=[self._producer], name="source-writer", daemon=True
                ).start()
            return self._producer

    def _serve_deliveries(self, producer: Producer) -> None:
        while self._producer is producer:
            producer.poll(100)

    def _send(self, producer: Producer, event: Posted) -> "Future[Place]":
        place: Future[Place] = Future()
        partition = self._partition(event.key)
        producer.send(
            self._topic,
            event.value,
            key=event.key,
            partition=partition,
            on_delivery=self._resolver(producer, partition, place),
        )
        return place

    def _partition(self, key: bytes | None) -> int:
        """The one that Kafka's own clients choose: a delivery says the offset alone, and the decision's place is
        needed whole."""
        chosen = next(self._turn) if key is None else murmur2(key) & 0x7FFFFFFF
        return int(chosen % self._partitions)

    def _resolver(self, producer: Producer, partition: int, place: "Future[Place]") -> OnDelivery:
        def resolve(error: BrokerError | None, offset: int, append_ms: int) -> None:
            if error is not None:
                self._drop(producer)
            if not place.set_running_or_notify_cancel():
                return
            if error is not None:
                place.set_exception(error)
            else:
                place.set_result(Place(partition, offset))

        return resolve

    def _drop(self, producer: Producer) -> None:
        with self._lock:
            if self._producer is producer:
                self._producer = None


class SynchronousLane:
    """Appends events and waits for what the stream decides about them."""

    def __init__(self, writer: SourceWriter, recent: RecentDecisions) -> None:
        self._writer = writer
        self._recent = recent

    async def post(self, events: Sequence[Posted], wait_s: float) -> list[Outcome]:
        """Returns one outcome per event, in order, after `wait_s` at the latest.

        Raises BrokerError when Kafka does not acknowledge an event; all, some or none are then in the log.
        """
        sent = await asyncio.to_thread(self._writer.append, events)
        places = await self._acknowledged(sent)
        results = await asyncio.gather(
            *(self._result(event.event_id, place, wait_s) for event, place in zip(events, places, strict=True))
        )
        return [
            Outcome(event.event_id, place, result) for event, place, result in zip(events, places, results, strict=True)
        ]

    async def _acknowledged(self, sent: "Sequence[Future[Place]]") -> list[Place]:
        try:
            return await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, sent)), ACKNOWLEDGED_S)
        except TimeoutError as error:
            raise BrokerError(
                f"Kafka has not acknowledged the events within {ACKNOWLEDGED_S:g} s; they may still be appended: "
                "look for their ids before you send them again"
            ) from error

    async def _result(self, event_id: str, place: Place, wait_s: float) -> Result | None:
        waiting = self._recent.when_decided(*place)
        try:
            logged = await asyncio.wait_for(asyncio.wrap_future(waiting), wait_s)
        except TimeoutError:
            return None
        if logged.is_duplicate(place.offset):
            return Duplicate(await asyncio.to_thread(self._recent.find, event_id, place.partition))
        return logged.outcome(place.offset)

    def close(self) -> None:
        """Blocks for up to 10 s."""
        self._writer.close()

"""Sinks in simulated time: the real loops and writers, and what they deliver to."""

import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Any, NamedTuple

import httpx
import msgspec

from app.actions.action import Decision
from app.actions.attempts import Attempts
from app.actions.build import LATE_EVENTS
from app.actions.dead_letters import DeadLetters
from app.actions.kafka import Kafka
from app.actions.letters import REJECTS
from app.actions.loop import SinkLoop
from app.actions.message import KEY_HEADER, action_message, reject_message
from app.actions.post import Post, Poster, PostSettings
from app.actions.publish import Publish, Publisher
from app.actions.selection import EveryDecision, EveryReject, OneAction, Selection
from app.actions.sqlite import Sqlite
from app.actions.table import Table, table_of
from app.actions.upsert import Upsert, Upserter
from app.actions.writer import SinkWriter
from app.errors import BrokerError, DeclarationError, SinkAwayError
from app.pipeline import Pipeline, model_class
from app.sources import CommittedOffset, OpenConsumer, TopicPartition
from app.testing.kafka import (
    AWAY,
    Crash,
    MemoryKafka,
    MemoryProducer,
    MemoryTransactionalProducer,
    Stored,
)
from app.testing.process import InlineExecutor

_databases = count()
ATTEMPTS = 20


class Effect(NamedTuple):
    """What a sink has carried out: an action's fields as the sink got them. `key` is the idempotency key, `latency_ms`
    the time since the event was appended to the source."""

    key: str
    partition: int
    offset: int
    fields: dict[str, Any]
    at_ms: float
    latency_ms: float


class Receivers:
    """Everything that sinks deliver to. It outlives the workers, and keeps the first effect of each key.

    `repeats` counts, by sink, deliveries of a key that was there already; for a webhook these are no fault. With
    `crash_beyond`, the next action worker that moves a cursor after more effects than these dies in its place.
    """

    def __init__(self, kafka: MemoryKafka, source: str) -> None:
        self.kafka = kafka
        self._source = source
        self.effects: dict[str, list[Effect]] = defaultdict(list)
        self.repeats: Counter[str] = Counter()
        self.away_until_ms: dict[str, float] = defaultdict(float)
        self.count = 0
        self.crash_beyond: int | None = None
        self._keys: set[tuple[str, str]] = set()
        self._anchors: list[sqlite3.Connection] = []

    def is_away(self, sink: str) -> bool:
        return self.kafka.clock.now_ms < self.away_until_ms[sink]

    @property
    def is_doomed(self) -> bool:
        return self.crash_beyond is not None and self.count > self.crash_beyond

    def die_if_doomed(self) -> None:
        if self.is_doomed:
            self.crash_beyond = None
            raise Crash

    def carry_out(self, sink: str, key: str, fields: dict[str, Any]) -> None:
        self.count += 1
        if (sink, key) in self._keys:
            self.repeats[sink] += 1
            return
        self._keys.add((sink, key))
        partition, offset = map(int, key.split("/")[1:3])
        event = self.kafka.logs[TopicPartition(self._source, partition)][offset]
        now_ms = self.kafka.clock.now_ms
        self.effects[sink].append(Effect(key, partition, offset, fields, now_ms, now_ms - event.append_ms))

    def take_record(self, sink: str, stored: Stored) -> None:
        """A record that was published: its value as the fields where it is an action, as bytes where it is not."""
        headers = {name: (value or b"").decode() for name, value in stored.headers}
        value = stored.value or b"{}"
        is_letter = sink in (REJECTS, LATE_EVENTS)
        fields = {"reason": headers["reason"], "value": stored.value} if is_letter else msgspec.json.decode(value)
        self.carry_out(sink, headers[KEY_HEADER], fields)

    def open_database(self, sink: str) -> str:
        """The name of a database in memory, which is there until `close`."""
        name = f"file:headrace-{next(_databases)}-{sink}?mode=memory&cache=shared"
        self._anchors.append(sqlite3.connect(name, uri=True))
        return name

    def close(self) -> None:
        for connection in self._anchors:
            connection.close()


class Webhook:
    """A receiver of requests, as httpx's transport sees it."""

    def __init__(self, sink: str, receivers: Receivers) -> None:
        self._sink = sink
        self._receivers = receivers

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self._receivers.kafka.survive()
        if self._receivers.is_away(self._sink):
            raise httpx.ConnectError("the receiver is away")
        key = request.headers["Idempotency-Key"]
        self._receivers.carry_out(self._sink, key, msgspec.json.decode(request.content))
        self._receivers.kafka.survive()
        return httpx.Response(200)


class MemorySqlite(Sqlite):
    """A database in memory; an effect is what was committed."""

    def __init__(self, name: str, sink: str, table: Table, receivers: Receivers) -> None:
        super().__init__(name)
        self._sink = sink
        self._columns = [column.name for column in table.columns]
        self._receivers = receivers
        self._uncommitted: list[dict[str, Any]] = []

    def connect(self) -> Any:
        return sqlite3.connect(self._path, isolation_level=None, uri=True)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        self._check()
        answer = super().execute(sql, parameters)
        if sql == "COMMIT":
            for row in self._uncommitted:
                self._receivers.carry_out(self._sink, row.pop("idempotency_key"), row)
        if sql in ("COMMIT", "ROLLBACK"):
            self._uncommitted = []
        self._receivers.kafka.survive()
        return answer

    def write(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._check()
        super().write(sql, rows)
        self._uncommitted += [dict(zip(self._columns, row, strict=True)) for row in rows]

    def _check(self) -> None:
        self._receivers.kafka.survive()
        if self._receivers.is_away(self._sink):
            self.close()
            raise SinkAwayError("the database says: it is away")


class TopicProducer(MemoryTransactionalProducer):
    """A producer of a sink, which may be cut off from its topic."""

    def __init__(self, sink: str, receivers: Receivers, transactional_id: str) -> None:
        super().__init__(receivers.kafka, transactional_id)
        self._sink = sink
        self._receivers = receivers

    def commit(self, group: str, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        super().commit(group, offsets)
        self._receivers.die_if_doomed()

    def operate(self) -> None:
        if self._receivers.is_away(self._sink):
            raise BrokerError(AWAY)
        super().operate()


@dataclass(frozen=True)
class Host:
    """What a process lends the loops of its sinks. A database is closed by `on_death` at the latest."""

    open_consumer: OpenConsumer
    random: Random
    on_death: Callable[[Callable[[], None]], None]


OpenWriter = Callable[[Host, threading.Event], SinkWriter[Any]]


class SimulatedSinks:
    """The sinks of a pipeline: their receivers, and how a process opens the loop of each."""

    def __init__(self, name: str, pipeline: Pipeline[Any], decisions: str, receivers: Receivers) -> None:
        self._name = name
        self._pipeline = pipeline
        self._decisions = decisions
        self._dead_letters = f"{name}.dead-letters"
        self._late = f"{name}.late"
        self._receivers = receivers
        self._writers: dict[str, tuple[Selection[Any], OpenWriter]] = {}
        self.topics: dict[str, str] = {}
        for action, sink in pipeline.sinks.values():
            every = action is Decision
            selection = EveryDecision(name, pipeline.by) if every else OneAction(name, action, pipeline.by)
            self._writers[sink.name] = (selection, self._open_writer(action, sink))
        rejects = self._publisher(REJECTS, self._dead_letters, partial(reject_message, REJECTS), ahead=False)
        late = self._publisher(LATE_EVENTS, self._late, partial(reject_message, LATE_EVENTS), ahead=False)
        self._writers[REJECTS] = (EveryReject(name), rejects)
        self._writers[LATE_EVENTS] = (EveryReject(name, late=True), late)

    @property
    def names(self) -> list[str]:
        return list(self._writers)

    def open(self, sink: str, host: Host) -> SinkLoop[Any]:
        selection, open_writer = self._writers[sink]
        halt = threading.Event()
        return SinkLoop(
            pipeline=self._name,
            sink=sink,
            log_topic=self._decisions,
            open_consumer=lambda: host.open_consumer(f"{self._name}.{sink}"),
            selection=selection,
            writer=open_writer(host, halt),
            halt=halt,
            clock=self._now_s,
            jitter=host.random,
        )

    def _open_writer(self, action: type[Any], sink: Any) -> OpenWriter:
        kinds: Mapping[type[Any], Callable[[type[Any], Any], OpenWriter]] = {
            Publish: lambda action, sink: self._publisher(
                sink.name, sink.name, partial(action_message, sink.name), ahead=True
            ),
            Post: self._poster,
            Upsert: self._upserter,
        }
        if type(sink) not in kinds:
            known = ", ".join(each.__name__ for each in kinds)
            raise DeclarationError(f"the sink {sink.name!r} is a {type(sink).__name__}; only {known} are simulated")
        return kinds[type(sink)](action, sink)

    def _publisher(self, sink: str, topic: str, message: Callable[[Any], Any], *, ahead: bool) -> OpenWriter:
        self.topics[topic] = sink

        def open_writer(host: Host, halt: threading.Event) -> SinkWriter[Any]:
            memory = self._receivers.kafka
            kafka = Kafka(
                decisions=self._decisions,
                dead_letters=self._dead_letters,
                late=self._late,
                open_consumer=host.open_consumer,
                open_producer=lambda: MemoryProducer(memory),
                open_transactional_producer=lambda each: TopicProducer(sink, self._receivers, each),
            )
            return Publisher(
                pipeline=self._name,
                sink=sink,
                topic=topic,
                message=message,
                kafka=kafka,
                ahead=ahead,
                clock=self._now_s,
                threads=InlineExecutor(),
            )

        return open_writer

    def _poster(self, action: type[Any], sink: Post) -> OpenWriter:
        settings = PostSettings.model_validate({"url": f"http://{sink.name}"})
        transport = httpx.MockTransport(Webhook(sink.name, self._receivers))
        return lambda host, halt: Poster(
            settings, self._letters(sink.name), halt, self._now_s, transport, InlineExecutor()
        )

    def _upserter(self, action: type[Any], sink: Upsert) -> OpenWriter:
        scores = [score for model in self._pipeline.models.values() for score in model_class(model).outputs]
        table = table_of(action, sink.name.replace("-", "_"), sink.key, scores)
        path = self._receivers.open_database(sink.name)

        def open_writer(host: Host, halt: threading.Event) -> SinkWriter[Any]:
            database = MemorySqlite(path, sink.name, table, self._receivers)
            host.on_death(database.close)
            attempts = Attempts(ATTEMPTS, self._letters(sink.name))
            return Upserter(f"{self._name}.{sink.name}", database, table, attempts)

        return open_writer

    def _letters(self, sink: str) -> DeadLetters:
        return DeadLetters(sink, self._dead_letters, lambda: MemoryProducer(self._receivers.kafka))

    def _now_s(self) -> float:
        return self._receivers.kafka.clock.now_ms / 1000

    def note_append(self, log: TopicPartition, stored: Stored) -> None:
        """To be told of every record that is appended: those of the sinks' topics are effects."""
        if log.topic in self.topics:
            self._receivers.take_record(self.topics[log.topic], stored)

"""From the sinks that a pipeline declares, and what the YAML says of them, to loops that can run."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.actions.action import Action, Decision, Sink, group_of
from app.actions.attempts import Attempts
from app.actions.dead_letters import DeadLetters
from app.actions.kafka import Kafka
from app.actions.letters import REJECTS
from app.actions.loop import SinkLoop
from app.actions.message import Message, action_message, reject_message
from app.actions.post import Post, Poster, PostSettings
from app.actions.publish import Publish, Publisher, PublishSettings
from app.actions.redis import HashWriter, Redis, RedisSettings, check_key
from app.actions.selection import EveryDecision, EveryReject, OneAction, Selection
from app.actions.table import table_of
from app.actions.upsert import Upsert, Upserter, UpsertSettings, database_of
from app.actions.writer import SinkWriter
from app.config import OFF, Settings, explain, join_path, unknown_key
from app.errors import ConfigError, DeclarationError
from app.pipeline import Pipeline, model_class

LATE_EVENTS = "late"
"""The sink that copies late events to the topic of late events."""


@dataclass(frozen=True)
class RunnableSink:
    """A sink with valid settings. `open` connects to Kafka; the sink itself is connected to in the first step.

    `topic` is the one that it publishes to, if it does. A sink that is not `hurried` is one that nobody waits for: it
    reads up to half a second late, and its delay is no part of the pipeline's latency. `open_writer` gives what carries
    out a single delivery.
    """

    name: str
    group: str
    topic: str | None
    hurried: bool
    open: Callable[[Kafka], SinkLoop[Any]]
    open_writer: "OpenWriter"


def build_sinks(name: str, pipeline: Pipeline[Any], settings: Mapping[str, Mapping[str, Any]]) -> list[RunnableSink]:
    """The sinks of the pipeline called `name` that are not off, and those for rejected records and for late events.

    Connects to nothing.

    `settings` are what the YAML has under `sinks:`. Raises ConfigError with a line for each value that is missing,
    unknown or wrong, and DeclarationError for a sink that cannot carry out its action.
    """
    declared = pipeline.sinks
    for own, what in ((REJECTS, "rejected records"), (LATE_EVENTS, "late events")):
        if own in declared:
            raise DeclarationError(f"a sink is called {own!r}, as the one for {what} is; rename it")
    problems = [unknown_key("sinks", each, declared) for each in settings if each not in declared]
    sinks: list[RunnableSink] = []
    for action, sink in declared.values():
        try:
            sinks += _build(_Place(name, pipeline, action, sink), settings.get(sink.name, {}))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    rejects = _copies(name, REJECTS, EveryReject(name), lambda kafka: kafka.dead_letters)
    late = _copies(name, LATE_EVENTS, EveryReject(name, late=True), lambda kafka: kafka.late)
    return [*sinks, rejects, late]


def switched_off(pipeline: Pipeline[Any], settings: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The names of the sinks that the YAML switches off."""
    return frozenset(sink.name for _, sink in pipeline.sinks.values() if _is_off(sink, settings.get(sink.name, {})))


def _is_off(sink: Sink, values: Mapping[str, Any]) -> bool:
    return values.get(KINDS[type(sink)].address) in OFF


class _Place(NamedTuple):
    """Where in a pipeline a sink stands."""

    name: str
    pipeline: Pipeline[Any]
    action: type[Action]
    sink: Any

    @property
    def group(self) -> str:
        return group_of(self.name, self.sink.name)


OpenWriter = Callable[[Kafka, threading.Event], SinkWriter[Any]]


class _Kind(NamedTuple):
    """How sinks of one class are made. `defaults` are the settings that follow from the sink's name."""

    settings: type[Settings]
    address: str
    defaults: Callable[[str], dict[str, str]]
    writer: Callable[[_Place, Any], OpenWriter]


def _build(place: _Place, values: Mapping[str, Any]) -> list[RunnableSink]:
    sink, kind = place.sink, KINDS.get(type(place.sink))
    if kind is None:
        known = ", ".join(each.__name__ for each in KINDS)
        raise DeclarationError(f"the sink {sink.name!r} is a {type(sink).__name__}; declare one of {known}")
    if _is_off(sink, values):
        return []
    settings = _load(kind.settings, {**kind.defaults(sink.name), **values}, join_path("sinks", sink.name))
    by = place.pipeline.by
    every = place.action is Decision
    selection = EveryDecision(place.name, by) if every else OneAction(place.name, place.action, by)
    topic = settings.topic if isinstance(settings, PublishSettings) else None
    return [_runnable(place.name, sink.name, topic, selection, kind.writer(place, settings))]


def _load(model: type[Settings], values: Mapping[str, Any], path: str) -> Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, values, path))) from error


def _copies(name: str, sink: str, selection: EveryReject, topic_of: Callable[[Kafka], str]) -> RunnableSink:
    """A sink that copies records as they came to a topic of the pipeline's own."""

    def writer(kafka: Kafka, halt: threading.Event) -> SinkWriter[Any]:
        return _open_publisher(name, sink, topic_of(kafka), partial(reject_message, sink), kafka, ahead=False)

    return _runnable(name, sink, None, selection, writer, hurried=False)


def _runnable(
    pipeline: str,
    sink: str,
    topic: str | None,
    selection: Selection[Any],
    open_writer: OpenWriter,
    *,
    hurried: bool = True,
) -> RunnableSink:
    group = group_of(pipeline, sink)

    def open_loop(kafka: Kafka) -> SinkLoop[Any]:
        halt = threading.Event()
        return SinkLoop(
            pipeline=pipeline,
            sink=sink,
            log_topic=kafka.decisions,
            # The log is not written in transactions. The group's offsets may be: a worker that was killed within one
            # must not hold up the next until it has timed out.
            open_consumer=partial(kafka.open_consumer, group, hurried=hurried, read_uncommitted=True),
            selection=selection,
            writer=open_writer(kafka, halt),
            halt=halt,
        )

    return RunnableSink(sink, group, topic, hurried, open_loop, open_writer)


def _publisher(place: _Place, settings: PublishSettings) -> OpenWriter:
    return lambda kafka, halt: _open_publisher(
        place.name, place.sink.name, settings.topic, partial(action_message, place.sink.name), kafka, ahead=True
    )


def _open_publisher(
    pipeline: str, sink: str, topic: str, message: Callable[[Any], Message], kafka: Kafka, *, ahead: bool
) -> Publisher[Any]:
    return Publisher(
        pipeline=pipeline,
        sink=sink,
        topic=topic,
        message=message,
        kafka=kafka,
        ahead=ahead,
    )


def _poster(place: _Place, settings: PostSettings) -> OpenWriter:
    return lambda kafka, halt: Poster(settings, _dead_letters(place, kafka), halt)


def _upserter(place: _Place, settings: UpsertSettings) -> OpenWriter:
    scores = [score for model in place.pipeline.models.values() for score in model_class(model).outputs]
    table = table_of(place.action, settings.table, place.sink.key, scores)
    return lambda kafka, halt: Upserter(
        place.group, database_of(settings.dsn), table, Attempts(settings.attempts, _dead_letters(place, kafka))
    )


def _hash_writer(place: _Place, settings: RedisSettings) -> OpenWriter:
    check_key(place.action, place.sink)
    return lambda kafka, halt: HashWriter(
        place.group, place.sink.key, settings, Attempts(settings.attempts, _dead_letters(place, kafka))
    )


def _dead_letters(place: _Place, kafka: Kafka) -> DeadLetters:
    return DeadLetters(place.sink.name, kafka.dead_letters, kafka.open_producer)


KINDS: Mapping[type[Sink], _Kind] = {
    Publish: _Kind(PublishSettings, "topic", lambda name: {"topic": name}, _publisher),
    Post: _Kind(PostSettings, "url", lambda name: {}, _poster),
    Redis: _Kind(RedisSettings, "url", lambda name: {"prefix": f"{name}:"}, _hash_writer),
    Upsert: _Kind(UpsertSettings, "dsn", lambda name: {"table": name.replace("-", "_")}, _upserter),
}

"""Actions: what a decision asks for, and the place each is carried out at."""

from typing import Any, NamedTuple

import msgspec


class Action(msgspec.Struct, frozen=True, gc=False):
    """Something to be done about an event. Subclasses add the fields that the sinks send on.

    Fields are str, int, float, bool, None, or lists and dicts of these: an action is logged as JSON.
    """


class Decision(Action, frozen=True, gc=False):
    """Stands for every decision itself, action or not.

    `actions={Decision: [Publish("scores")]}` sends one record an event.
    """


class Sink(msgspec.Struct, frozen=True):
    """Where actions of one type go: the frozen declaration. Its address, and how to get in, stand in the YAML
    under `sinks:` and the sink's name."""

    name: str


class Delivery(NamedTuple):
    """One action of one event, on its way to one sink.

    `key` is the idempotency key `pipeline/partition/offset/action-index`: the same whenever and by whomever the same
    action is delivered again. `topic`, `partition` and `offset` are the event's place in the source, and `append_ms` is
    when it was appended there. `fields` are the action's own, plus `type`; of a Decision: type, id, time, each score by
    its name, reason.
    """

    key: str
    topic: str
    partition: int
    offset: int
    append_ms: int
    event_key: str | None
    fields: dict[str, Any]


def idempotency_key(pipeline: str, partition: int, offset: int, index: int | str) -> str:
    """`index` counts the actions of an event, or says what else of it is delivered: `decision`, `rejected`."""
    return f"{pipeline}/{partition}/{offset}/{index}"


def group_of(pipeline: str, sink: str) -> str:
    """The consumer group of a sink; its transactional ids begin with it."""
    return f"{pipeline}.{sink}"


def is_later(key: str, *, than: str) -> bool:
    """Whether an idempotency key is that of a later action in the same partition. Between two partitions, and with a
    text that is no such key, there is no order."""
    (log, place), (other_log, other_place) = _place(key), _place(than)
    return log == other_log and place > other_place


def _place(key: str) -> tuple[str, tuple[int, int]]:
    before, _, index = key.rpartition("/")
    log, _, offset = before.rpartition("/")
    return log, (int(offset) if offset.isdecimal() else -1, int(index) if index.isdecimal() else -1)

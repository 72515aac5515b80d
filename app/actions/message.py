"""Messages: deliveries as Kafka records. Their headers say whose they are and where they come from."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from app.actions.action import Delivery
from app.actions.selection import Reject
from app.actions.writer import Placed

KEY_HEADER = "idempotency-key"
SINK_HEADER = "sink"


class Message(NamedTuple):
    """A record on its way to a topic."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def action_message(delivery: Delivery) -> Message:
    """The fields as JSON, keyed by the event's key."""
    key = None if delivery.event_key is None else delivery.event_key.encode()
    return Message(key, msgspec.json.encode(delivery.fields))


def failure_message(message: Message, reason: str, attempts: int) -> Message:
    """What becomes of a message that its sink refused for good."""
    failure = [("reason", reason.encode()), ("attempts", b"%d" % attempts)]
    return Message(message.key, message.value, [*message.headers, *failure])


def reject_message(reject: Reject) -> Message:
    """A record that became no decision: as it came, and why."""
    letter = reject.letter
    headers = [("reason", letter.reason.encode()), ("append-ms", b"%d" % letter.append_ms)]
    return Message(letter.key, letter.value, headers)


def identity_headers(sink: str, delivered: Placed) -> list[tuple[str, bytes]]:
    """What every record says of itself: the idempotency key, the sink, and its event's place in the source."""
    return [
        (KEY_HEADER, delivered.key.encode()),
        (SINK_HEADER, sink.encode()),
        ("source-topic", delivered.topic.encode()),
        ("source-partition", b"%d" % delivered.partition),
        ("source-offset", b"%d" % delivered.offset),
    ]

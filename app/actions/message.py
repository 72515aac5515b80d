"""Messages: deliveries as Kafka records. Their headers say whose they are and where they come from."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from app.actions.action import Delivery
from app.actions.selection import Reject
from app.actions.writer import Placed
from app.sources import Header

KEY_HEADER = "idempotency-key"
SINK_HEADER = "sink"
HEADERS_HEADER = "source-headers"


class Message(NamedTuple):
    """A record on its way to a topic."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def action_message(sink: str, delivery: Delivery) -> Message:
    """The fields as JSON, keyed by the event's key."""
    key = None if delivery.event_key is None else delivery.event_key.encode()
    return Message(key, msgspec.json.encode(delivery.fields), identity_headers(sink, delivery))


def failure_message(delivered: Placed, message: Message, reason: str, attempts: int) -> Message:
    """What becomes of a message that its sink refused for good."""
    failure = [
        *place_headers(delivered),
        ("reason", reason.encode()),
        ("attempts", b"%d" % attempts),
        ("cause", b"sink"),
        ("append-ms", b"%d" % delivered.append_ms),
    ]
    return Message(message.key, message.value, [*message.headers, *failure])


def reject_message(sink: str, reject: Reject) -> Message:
    """A record that became no decision: as it came, and why. Its own headers travel in one, as JSON."""
    letter = reject.letter
    headers = [
        *identity_headers(sink, reject),
        *place_headers(reject),
        ("reason", letter.reason.encode(errors="replace")),
        ("append-ms", b"%d" % letter.append_ms),
        ("cause", letter.cause.encode()),
        ("attempts", b"%d" % letter.attempts),
    ]
    if letter.headers:
        headers.append((HEADERS_HEADER, msgspec.json.encode(letter.headers)))
    if letter.stack is not None:
        headers.append(("stack", letter.stack.encode(errors="replace")))
    return Message(letter.key, letter.value, headers)


def decode_source_headers(encoded: bytes | None) -> tuple[Header, ...]:
    """The headers that a rejected record had. Raises msgspec.DecodeError."""
    return msgspec.json.decode(encoded, type=tuple[Header, ...]) if encoded else ()


def identity_headers(sink: str, delivered: Placed) -> list[tuple[str, bytes]]:
    """What every record says of itself: its idempotency key, and who sent it."""
    return [(KEY_HEADER, delivered.key.encode()), (SINK_HEADER, sink.encode())]


def place_headers(delivered: Placed) -> list[tuple[str, bytes]]:
    """What dead letters and late events say beside: where in the source their event is."""
    return [
        ("source-topic", delivered.topic.encode()),
        ("source-partition", b"%d" % delivered.partition),
        ("source-offset", b"%d" % delivered.offset),
    ]

"""From the body of a request to records of the source topic, by the stream's own rules."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from app.errors import HeadraceError
from app.event import EventDecoder, Rejected
from app.pipeline import Pipeline

MAX_EVENTS = 1_000
MAX_BODY_BYTES = 1 << 20


class Posted(NamedTuple):
    """An event as it goes into the source topic."""

    event_id: str
    key: bytes | None
    value: bytes


class UnacceptableError(HeadraceError):
    """Some events of a request do not validate, so none of it is appended. `rejected` says which, and why."""

    def __init__(self, rejected: Sequence[Rejected]) -> None:
        super().__init__("nothing was appended: " + "; ".join(f"event {at}: {why}" for at, why, _ in rejected))
        self.rejected = rejected


class Intake:
    """Validates events and gives them their keys."""

    def __init__(self, pipeline: Pipeline[Any], max_ahead_ms: int) -> None:
        self._by = pipeline.by
        self._decoder = EventDecoder(pipeline.source, max_ahead_ms=max_ahead_ms)

    def read(self, body: bytes, now_ms: int) -> list[Posted]:
        """Reads one event, or a list of up to 1,000.

        Raises UnacceptableError, with the reasons that the stream itself would give.
        """
        values = _split(body)
        append_ms = np.full(len(values), now_ms, dtype=np.int64)
        decoded = self._decoder.decode(values, [None] * len(values), append_ms)
        if decoded.rejected:
            raise UnacceptableError(decoded.rejected)
        keys = [str(key).encode() for key in decoded.columns[self._by]] if self._by else [None] * len(values)
        return [Posted(event.id, key, value) for event, key, value in zip(decoded.events, keys, values, strict=True)]


def _split(body: bytes) -> list[bytes]:
    if not is_list(body):
        return [body]
    try:
        values = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise UnacceptableError([Rejected(0, str(error))]) from error
    if len(values) > MAX_EVENTS:
        reason = f"a request holds at most {MAX_EVENTS:,} events, this one {len(values):,}"
        raise UnacceptableError([Rejected(MAX_EVENTS, reason)])
    return [bytes(value) for value in values]


def is_list(body: bytes) -> bool:
    """Whether the body holds a list of events, not just one."""
    return body.lstrip().startswith(b"[")

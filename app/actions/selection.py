"""Selections: what of a frame concerns a sink. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, Generic, NamedTuple

import msgspec

from app.actions.action import Action, Delivery, idempotency_key
from app.actions.writer import D
from app.log.frame import LATE, REASONS, Cursor, DeadLetter, Frame, FrameHeader

_decode_actions = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Selection(ABC, Generic[D]):
    """What a sink is to carry out."""

    @abstractmethod
    def wants(self, header: FrameHeader) -> bool:
        """Whether the frame could hold something of ours. If not, it need not be opened."""

    @abstractmethod
    def pick(self, frame: Frame, cursor: Cursor) -> Iterator[D]:
        """What is new in the frame and ours, in source order."""


class OneAction(Selection[Delivery]):
    """The actions of one type. `by` is the field that events are keyed by."""

    def __init__(self, pipeline: str, action: type[Action], by: str | None) -> None:
        self._pipeline = pipeline
        self._type = action.__name__
        self._by = by

    def wants(self, header: FrameHeader) -> bool:
        return header.actions > 0

    def pick(self, frame: Frame, cursor: Cursor) -> Iterator[Delivery]:
        header, decided, rows = frame.header, frame.decided, cursor.new_rows(frame)
        for row in range(rows.start, rows.stop):
            encoded = decided.actions[row]
            for index, fields in enumerate(_decode_actions(encoded) if encoded else ()):
                if fields["type"] == self._type:
                    offset = int(decided.offsets[row])
                    yield Delivery(
                        idempotency_key(self._pipeline, header.partition, offset, index),
                        header.topic,
                        header.partition,
                        offset,
                        int(decided.append_ms[row]),
                        _event_key(frame, self._by, row),
                        fields,
                    )


class EveryDecision(Selection[Delivery]):
    """Each decision itself, as one delivery: id and time of the event, the scores, the reason."""

    def __init__(self, pipeline: str, by: str | None) -> None:
        self._pipeline = pipeline
        self._by = by

    def wants(self, header: FrameHeader) -> bool:
        return header.decided > 0

    def pick(self, frame: Frame, cursor: Cursor) -> Iterator[Delivery]:
        header, decided, rows = frame.header, frame.decided, cursor.new_rows(frame)
        columns = {"id": decided.event["id"], "time": decided.event["time"], **decided.scores}
        names = ("type", *columns, "reason")
        # Lists, as a number that is taken out of an array by itself costs five times as much.
        offsets, append_ms = decided.offsets[rows].tolist(), decided.append_ms[rows].tolist()
        keys: Iterable[str | None]
        keys = repeat(None, len(offsets)) if self._by is None else map(str, decided.event[self._by][rows].tolist())
        reasons = (REASONS[reason] for reason in decided.reasons[rows].tolist())
        values = zip(*(column[rows].tolist() for column in columns.values()), strict=True)
        for offset, appended_ms, key, reason, of_row in zip(offsets, append_ms, keys, reasons, values, strict=True):
            yield Delivery(
                idempotency_key(self._pipeline, header.partition, offset, "decision"),
                header.topic,
                header.partition,
                offset,
                appended_ms,
                key,
                dict(zip(names, ("Decision", *of_row, reason), strict=True)),
            )


class Reject(NamedTuple):
    """A rejected record on its way to the dead letters, or to the late events."""

    key: str
    topic: str
    partition: int
    offset: int
    letter: DeadLetter

    @property
    def append_ms(self) -> int:
        return self.letter.append_ms


class EveryReject(Selection[Reject]):
    """The records that became no decision: those that were late, or all others."""

    def __init__(self, pipeline: str, *, late: bool = False) -> None:
        self._pipeline = pipeline
        self._late = late

    def wants(self, header: FrameHeader) -> bool:
        return (header.late if self._late else header.rejected - header.late) > 0

    def pick(self, frame: Frame, cursor: Cursor) -> Iterator[Reject]:
        header = frame.header
        for letter in cursor.new_dead_letters(frame):
            if (letter.cause == LATE) is not self._late:
                continue
            key = idempotency_key(self._pipeline, header.partition, letter.offset, "rejected")
            yield Reject(key, header.topic, header.partition, letter.offset, letter)


def _event_key(frame: Frame, by: str | None, row: int) -> str | None:
    return None if by is None else str(frame.decided.event[by][row])

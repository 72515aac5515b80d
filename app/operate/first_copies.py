"""Reading the decision log as every reader does: the first copy of each decision counts, a later one never."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from app.actions.action import idempotency_key
from app.event import Columns
from app.latency import STAGES
from app.log.frame import REASONS, Cursor, DeadLetter, Frame, FrameHeader, decode_frame, decode_header
from app.log.tail import read_to_end
from app.sources import Consumer, TopicPartition


class Fresh(NamedTuple):
    """What one frame adds to those before it. `logged_ms` is when the broker appended the frame."""

    frame: Frame
    rows: slice
    dead_letters: Sequence[DeadLetter]
    duplicates: Sequence[int]
    logged_ms: int


def first_copies(consumer: Consumer, log: TopicPartition, start: int, cursor: Cursor) -> Iterator[Fresh]:
    """The frames of one partition of the decision log, from `start` to its present end, that hold anything new.

    Leaves `cursor` behind the last of them. Raises LogError when frames are missing in between.
    """
    for records in read_to_end(consumer, log, start):
        for headers, value, append_ms in zip(records.headers(), records.values, records.append_ms, strict=True):
            header = decode_header(headers)
            if cursor.admit(header):
                frame = decode_frame(header, value or b"")
                letters, duplicates = list(cursor.new_dead_letters(frame)), list(cursor.new_duplicates(frame))
                yield Fresh(frame, cursor.new_rows(frame), letters, duplicates, int(append_ms))
                cursor.advance(header)


def describe_decisions(fresh: Fresh) -> Iterator[dict[str, Any]]:
    """All that the log holds of each new decision, named as the API's `/decisions/{event id}` names it."""
    header, decided, rows = fresh.frame.header, fresh.frame.decided, fresh.rows
    times_ms = dict(zip(STAGES, msgspec.structs.astuple(fresh.frame.stages), strict=False))
    events, features, scores = (_rows(each, rows) for each in (decided.event, decided.features, decided.scores))
    for row, event, features_, scores_ in zip(range(rows.start, rows.stop), events, features, scores, strict=True):
        offset = int(decided.offsets[row])
        yield {
            "event_id": event["id"],
            "time_ms": event["time"],
            "topic": header.topic,
            "partition": header.partition,
            "offset": offset,
            "event": event,
            "features": features_,
            "scores": scores_,
            "versions": dict(decided.versions),
            "reason": REASONS[decided.reasons[row]],
            "actions": _actions(header, offset, decided.actions[row]),
            "times_ms": {
                "appended": int(decided.append_ms[row]),
                **times_ms,
                "logged": fresh.logged_ms,
            },
        }


def _rows(columns: Columns, rows: slice) -> Iterator[dict[str, Any]]:
    lists = [column[rows].tolist() for column in columns.values()]
    if not lists:
        return repeat({}, rows.stop - rows.start)
    return (dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True))


def _actions(header: FrameHeader, offset: int, encoded: bytes | None) -> list[dict[str, Any]]:
    """`fields` are the action's own; `key` is the idempotency key that every sink gets."""
    actions: list[dict[str, Any]] = msgspec.json.decode(encoded) if encoded else []
    return [
        {
            "type": fields.pop("type"),
            "key": idempotency_key(header.pipeline, header.partition, offset, index),
            "fields": fields,
        }
        for index, fields in enumerate(actions)
    ]

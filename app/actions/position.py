"""Positions: how far a sink is in a partition of the decision log, and how a consumer group keeps that."""

from typing import NamedTuple

import msgspec

from app.errors import LogError
from app.sources import CommittedOffset


class Position(NamedTuple):
    """`applied` is the last source offset that is carried out, None before the first; `log_offset` is the next record
    of the decision log to read. It may lie behind `applied`: what is read again is dropped by its source offsets."""

    applied: int | None
    log_offset: int


BEGINNING = Position(None, 0)


class _Memo(msgspec.Struct, omit_defaults=True):
    applied: int | None = None


def to_committed(position: Position) -> CommittedOffset:
    """The offset is what Kafka's own tools compute the lag from; the rest goes into its text."""
    return CommittedOffset(position.log_offset, msgspec.json.encode(_Memo(position.applied)).decode())


def from_committed(committed: CommittedOffset | None) -> Position | None:
    """An offset without text was set by hand (`kafka-consumer-groups --reset-offsets`): the sink goes on there.

    Raises LogError when the text is not one of ours.
    """
    if committed is None:
        return None
    try:
        memo = msgspec.json.decode(committed.metadata or b"{}", type=_Memo)
    except msgspec.DecodeError as error:
        raise LogError(
            f"the committed offset {committed.offset} has the text {committed.metadata!r}, which is no cursor "
            f"({error}); is another program committing to this sink's group?"
        ) from error
    return Position(memo.applied, committed.offset)

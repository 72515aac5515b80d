"""Frames: one Kafka record carries the outcome of a micro-batch, as columns.

A frame says in its header which contiguous range `[first, last]` of source offsets it covers. Writers write frames in
source order and without gaps; a `Cursor` drops what it has seen. So the first copy of a decision in the log wins, and
a replay, a retry or a writer that was thought dead changes nothing (docs/guarantees).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from app.errors import LogError
from app.event import Columns

HEADER = "headrace"
MOST_FRAME_BYTES = 900_000
"""A topic takes 1,048,588 bytes unless it is configured otherwise."""
Reason = Literal[
    "rules",
    "model",
    "fallback-failed",
    "fallback-late",
    "fallback-shed",
    "fallback-open",
    "fallback-overdue",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""What decided an event: `decide` alone, `decide` with every model's answer, or the fallback: because a model failed,
had not answered when the deadline was near, turned the call away, had failed so often that its breaker was open, or
because the event was past its deadline when it was read."""
FALLBACKS: Mapping[str, Reason] = {
    reason.removeprefix("fallback-"): reason for reason in REASONS if reason.startswith("fallback-")
}
"""Of each cause for which the fallback decides, the reason that its decisions give."""
LATE = "late"
CAUSES = ("parse", "value", "key", "time", LATE, "decide", "model", "crash", "sink", "other")
"""The classes of reasons for a dead letter. Stable: people filter and count by them.

parse: no event; value: a number that no column holds; key: not keyed as declared; time: ahead of the clock; late:
behind the watermark; decide, model: user code failed on it; crash: it killed who read it; sink: refused by the sink.
"""


class FrameHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a reader can know of a frame without opening it. It travels as one header of the Kafka record."""

    pipeline: str
    topic: str
    partition: int
    first: int
    last: int
    decided: int
    rejected: int
    actions: int
    """How many actions the frame holds, of all types."""
    oldest_ms: int = 0
    newest_ms: int = 0
    """The first and the last append time of the decided events; 0 when there are none."""
    duplicates: int = 0
    """How many records were copies of an event that counted already: they have no other outcome."""
    late: int = 0
    """How many of the rejected were events before the watermark."""


class Stages(msgspec.Struct, frozen=True, gc=False):
    """When a micro-batch reached each stage, wall clock in ms. The append times are each event's own."""

    fetched_ms: float
    featured_ms: float
    queued_ms: float
    scored_ms: float
    decided_ms: float


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A record that could not become a decision: its place, the reason in words and as one of CAUSES, and all that is
    needed to send it again. `stack` is that of the exception, where one was the reason."""

    offset: int
    append_ms: int
    reason: str
    key: bytes | None
    value: bytes | None
    cause: str = "other"
    headers: tuple[tuple[str, bytes | None], ...] = ()
    attempts: int = 1
    """How often the record has come, this time included: more than once when dead letters were replayed."""
    stack: str | None = None


def count_late(letters: Sequence[DeadLetter]) -> int:
    return sum(each.cause == LATE for each in letters)


class Decided(msgspec.Struct, frozen=True, gc=False):
    """The decided rows of a frame as columns: row i of each belongs to `offsets[i]`; offsets increase.

    `reasons[i]` indexes REASONS: what decided the row. `actions[i]` holds the row's actions as JSON
    (`[{"type": …}, …]`), None where there are none.
    """

    offsets: npt.NDArray[np.int64]
    append_ms: npt.NDArray[np.int64]
    event: Columns
    features: Columns
    scores: Columns
    reasons: npt.NDArray[np.int8]
    actions: Sequence[bytes | None]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Frame:
    """One micro-batch of one source partition.

    Every offset of its range is decided, rejected, stands in `duplicates` (in increasing order), or was no record.
    """

    header: FrameHeader
    stages: Stages
    decided: Decided
    rejected: Sequence[DeadLetter] = field(default=())
    duplicates: Sequence[int] = field(default=())


class _Body(msgspec.Struct, array_like=True, gc=False):
    decided: bytes
    rejected: Sequence[DeadLetter]
    duplicates: Sequence[int] = ()


class _Meta(msgspec.Struct, gc=False):
    stages: Stages
    versions: dict[str, str]


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(FrameHeader).decode
_decode_body = msgspec.msgpack.Decoder(_Body).decode
_decode_meta = msgspec.json.Decoder(_Meta).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
PLACES = ("event", "features", "scores")
NOT_A_FRAME = (msgspec.DecodeError, pa.ArrowException, OSError, StopIteration, KeyError, TypeError)


def encode_frame(frame: Frame) -> tuple[tuple[str, bytes], bytes]:
    """The Kafka header and the value of a frame."""
    body = _Body(_encode_columns(frame), frame.rejected, frame.duplicates)
    return (HEADER, _encode(frame.header)), _encode(body)


class Encoded(NamedTuple):
    """A frame as a Kafka record: `field` is the record's header that carries `header`."""

    header: FrameHeader
    field: tuple[str, bytes]
    value: bytes


def encode_within(frame: Frame, most_bytes: int = MOST_FRAME_BYTES) -> Iterator[Encoded]:
    """The frame; or, when its value is larger than most_bytes, several that together say the same, in source order.

    What is one record's alone is never split, however large.
    """
    field, value = encode_frame(frame)
    outcomes = frame.header.decided + frame.header.rejected
    if len(value) <= most_bytes or outcomes < 2:
        yield Encoded(frame.header, field, value)
        return
    offsets = sorted([*frame.decided.offsets.tolist(), *(each.offset for each in frame.rejected)])
    middle = offsets[outcomes // 2]
    yield from encode_within(_cut(frame, frame.header.first, middle - 1), most_bytes)
    yield from encode_within(_cut(frame, middle, frame.header.last), most_bytes)


def _cut(frame: Frame, first: int, last: int) -> Frame:
    """What the frame says of the source offsets first..last."""
    decided = frame.decided
    rows = slice(*np.searchsorted(decided.offsets, (first, last + 1)).tolist())
    append_ms, actions = decided.append_ms[rows], decided.actions[rows]
    rejected = [each for each in frame.rejected if first <= each.offset <= last]
    duplicates = [offset for offset in frame.duplicates if first <= offset <= last]
    header = msgspec.structs.replace(
        frame.header,
        first=first,
        last=last,
        decided=len(append_ms),
        rejected=len(rejected),
        duplicates=len(duplicates),
        late=count_late(rejected),
        actions=sum(len(_decode_list(each)) for each in actions if each),
        oldest_ms=int(append_ms.min()) if len(append_ms) else 0,
        newest_ms=int(append_ms.max()) if len(append_ms) else 0,
    )
    columns = {place: {name: column[rows] for name, column in getattr(decided, place).items()} for place in PLACES}
    own = Decided(
        offsets=decided.offsets[rows],
        append_ms=append_ms,
        reasons=decided.reasons[rows],
        actions=actions,
        versions=decided.versions,
        **columns,
    )
    return Frame(header, frame.stages, own, rejected, duplicates)


def _encode_columns(frame: Frame) -> bytes:
    rows = frame.decided
    arrays: dict[str, Any] = {
        "offset": pa.array(rows.offsets),
        "append_ms": pa.array(rows.append_ms),
        "reason": pa.array(rows.reasons),
        "actions": pa.array(rows.actions, pa.binary()),
    }
    for place in PLACES:
        for name, column in getattr(rows, place).items():
            arrays[f"{place}.{name}"] = _to_arrow(column)
    meta = _Meta(frame.stages, dict(rows.versions))
    batch = pa.record_batch(list(arrays.values()), names=list(arrays))
    batch = batch.replace_schema_metadata({"headrace": msgspec.json.encode(meta)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _to_arrow(column: npt.NDArray[Any]) -> Any:
    if column.ndim == 2:
        flat = pa.array(column.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
    if column.dtype == object:
        return pa.array(column, pa.string())
    return pa.array(column)


def decode_header(headers: Sequence[tuple[str, bytes | None]] | None) -> FrameHeader:
    """Raises LogError when the record is no frame."""
    for name, value in headers or ():
        if name == HEADER and value is not None:
            try:
                return _decode_header(value)
            except msgspec.DecodeError as error:
                raise LogError(f"a record of the decision log has a {HEADER!r} header of no frame: {error}") from error
    raise LogError(f"a record of the decision log has no {HEADER!r} header; was something else written to this topic?")


def decode_frame(header: FrameHeader, value: bytes) -> Frame:
    """Opens a frame; numeric columns are read-only views of `value`, nothing is copied."""
    try:
        body = _decode_body(value)
        table = pa.ipc.open_stream(pa.py_buffer(body.decided))
        batch = table.read_next_batch()
        meta = _decode_meta(table.schema.metadata[b"headrace"])
    except NOT_A_FRAME as error:
        raise LogError(
            f"the frame of {header.topic}[{header.partition}] {header.first}..{header.last} cannot be read: {error!r}"
        ) from error
    places: dict[str, Columns] = {place: {} for place in PLACES}
    for name in batch.schema.names:
        place, dot, column = name.partition(".")
        if dot:
            places[place][column] = _to_numpy(batch.column(name))
    decided = Decided(
        offsets=batch.column("offset").to_numpy(),
        append_ms=batch.column("append_ms").to_numpy(),
        actions=batch.column("actions").to_pylist() if header.actions else [None] * batch.num_rows,
        reasons=batch.column("reason").to_numpy(),
        versions=meta.versions,
        **places,
    )
    return Frame(header, meta.stages, decided, body.rejected, body.duplicates)


def _to_numpy(array: Any) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(array), array.type.list_size)  # type: ignore[no-any-return]
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


class Cursor:
    """How far one reader has applied the frames of one source partition.

    `applied` is the last source offset applied, None before the first frame: then the log starts wherever its first
    frame starts.
    """

    def __init__(self, applied: int | None = None) -> None:
        self.applied = applied

    def admit(self, header: FrameHeader) -> bool:
        """Whether the frame holds anything new. Raises LogError when offsets are missing before it."""
        if self.applied is None:
            return True
        if header.first > self.applied + 1:
            raise LogError(
                f"{header.topic}[{header.partition}]: offsets {self.applied + 1}..{header.first - 1} are in no "
                "frame of the decision log; frames were lost, or the cursor is of another log"
            )
        return header.last > self.applied

    def advance(self, header: FrameHeader) -> None:
        self.applied = header.last if self.applied is None else max(self.applied, header.last)

    def new_rows(self, frame: Frame) -> slice:
        """The decided rows that no earlier frame decided."""
        offsets = frame.decided.offsets
        start = 0 if self.applied is None else int(np.searchsorted(offsets, self.applied, side="right"))
        return slice(start, len(offsets))

    def new_dead_letters(self, frame: Frame) -> Iterator[DeadLetter]:
        """The rejected records that no earlier frame rejected or decided."""
        return (each for each in frame.rejected if self.applied is None or each.offset > self.applied)

    def new_duplicates(self, frame: Frame) -> Iterator[int]:
        """The offsets of duplicates that no earlier frame covered."""
        return (offset for offset in frame.duplicates if self.applied is None or offset > self.applied)

"""Readings: what one poll of the decision log brought a sink of one partition."""

from typing import Generic, NamedTuple

import numpy as np
import numpy.typing as npt

from app.actions.position import Position
from app.actions.selection import Selection
from app.actions.writer import Batch, D
from app.errors import LogError
from app.log.frame import Cursor, FrameHeader, decode_frame, decode_header
from app.sources import Records


class Passed(NamedTuple):
    """The new decided events of some frames, an entry each.

    append_ms: when the event was appended to the source; of a frame that was not opened, evenly spread between its
    oldest and its newest. logged_ms: when its decision was appended to the log.
    """

    offsets: npt.NDArray[np.int64]
    append_ms: npt.NDArray[np.float64]
    logged_ms: npt.NDArray[np.float64]


class Reading(Generic[D]):
    """Takes the records of one partition from `start` on: the first copy of each decision, and of these what the sink
    wants. A record that cannot be applied ends the reading with an `error`; what stands before it is kept."""

    def __init__(self, pipeline: str, partition: int, start: Position, selection: Selection[D]) -> None:
        self._pipeline = pipeline
        self._partition = partition
        self.start = start
        self._selection = selection
        self._cursor = Cursor(start.applied)
        self._log_offset = start.log_offset
        self._passed: list[Passed] = []
        self.deliveries: list[D] = []
        self.error: LogError | None = None

    def take(self, records: Records) -> None:
        headers = records.headers()
        for row in range(len(records)):
            if self.error is not None:
                return
            try:
                header = decode_header([(name, value or b"") for name, value in headers[row]])
                self._take_frame(header, records.values[row] or b"", float(records.append_ms[row]))
            except LogError as error:
                self.error = error
            else:
                self._log_offset = int(records.offsets[row]) + 1

    def _take_frame(self, header: FrameHeader, value: bytes, logged_ms: float) -> None:
        if (header.pipeline, header.partition) != (self._pipeline, self._partition):
            raise LogError(
                f"partition {self._partition} of the decision log of {self._pipeline!r} has a frame of "
                f"{header.pipeline!r}, partition {header.partition}; give each pipeline a decision log of its own"
            )
        cursor = self._cursor
        if not cursor.admit(header):
            return
        all_new = cursor.applied is None or cursor.applied < header.first
        if all_new and not self._selection.wants(header):
            self._pass_unopened(header, logged_ms)
        else:
            frame = decode_frame(header, value)
            rows, decided = cursor.new_rows(frame), frame.decided
            self.deliveries += self._selection.pick(frame, cursor)
            logged = np.full(rows.stop - rows.start, logged_ms)
            self._passed.append(Passed(decided.offsets[rows], decided.append_ms[rows].astype(np.float64), logged))
        cursor.advance(header)

    def _pass_unopened(self, header: FrameHeader, logged_ms: float) -> None:
        shape = header.decided
        append_ms = np.linspace(header.oldest_ms, header.newest_ms, shape)
        self._passed.append(Passed(np.full(shape, header.last), append_ms, np.full(shape, logged_ms)))

    @property
    def end(self) -> Position:
        return Position(self._cursor.applied, self._log_offset)

    @property
    def batch(self) -> Batch[D]:
        return Batch(self._partition, self.start, self.end, self.deliveries)

    def passed(self, after: int, through: int) -> list[Passed]:
        """The events whose offsets are greater than `after` and at most `through`."""
        known = [(each.offsets > after) & (each.offsets <= through) for each in self._passed]
        return [
            Passed(each.offsets[rows], each.append_ms[rows], each.logged_ms[rows])
            for each, rows in zip(self._passed, known, strict=True)
        ]

"""The task of one source partition: from records to frames. Pure: no Ray, no Kafka, no clock.

A task sees its records in offset order and exactly once; its state, its watermark and every frame's content but the
scores are a function of the log's prefix, however the log is cut into polls.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from app.errors import LogError
from app.event import Columns, Event, EventDecoder
from app.features import Features, KeyedState
from app.log.frame import REASONS, DeadLetter, Decided, Frame, FrameHeader, Stages
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint, Position
from app.runtime.history import Milestone, extended
from app.sources import Records

E = TypeVar("E", bound=Event)
LONG_AGO = np.iinfo(np.int64).min // 2


@dataclass(frozen=True)
class TaskSettings:
    """What the tasks of a deployment have in common. Durations in ms of event time."""

    pipeline: str
    topic: str
    allowed_lateness_ms: int = 3_600_000
    max_ahead_ms: int = 3_600_000


@dataclass(frozen=True)
class Slice(Generic[E]):
    """One partition's part of a micro-batch: rows that wait for their decision, and records that get none.

    It covers the source offsets `first..last`, all of them; `events`, `columns` and `features` have one row for each
    of `rows`, the positions in `records`.
    """

    partition: int
    first: int
    last: int
    records: Records
    rows: npt.NDArray[np.int64]
    events: Sequence[E]
    columns: Columns
    features: Columns
    rejected: Sequence[DeadLetter] = field(default=())

    @property
    def append_ms(self) -> npt.NDArray[np.int64]:
        return self.records.append_ms[self.rows]

    @property
    def inputs(self) -> Columns:
        return self.columns | self.features


class Task(Generic[E]):
    """Keeps the keyed state of one partition.

    `next_offset` is the source offset that comes next. Offsets up to `decided_through` stand in the decision log, or
    in a slice that is on its way there; while `next_offset` lies below, records only rebuild state.
    """

    def __init__(
        self,
        pipeline: Pipeline[E],
        settings: TaskSettings,
        partition: int,
        *,
        next_offset: int,
        decided_through: int,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.partition = partition
        self.next_offset = next_offset
        self.decided_through = decided_through
        self._pipeline = pipeline
        self._settings = settings
        self._decoder = EventDecoder(pipeline.source, by=pipeline.by, max_ahead_ms=settings.max_ahead_ms)
        self._max_time_ms = LONG_AGO
        stored = checkpoint.state if checkpoint else {}
        self._states = [_restore(features, settings.allowed_lateness_ms, stored) for features in pipeline.features]
        self._history = checkpoint.position.history if checkpoint else (Milestone(next_offset, None),)
        if checkpoint and checkpoint.position.max_time_ms is not None:
            self._max_time_ms = checkpoint.position.max_time_ms

    @property
    def watermark_ms(self) -> int | None:
        """Max event time seen − allowed lateness; None before the first event."""
        if self._max_time_ms == LONG_AGO:
            return None
        return self._max_time_ms - self._settings.allowed_lateness_ms

    @property
    def keys(self) -> int:
        return sum(state.keys for state in self._states)

    @property
    def state_bytes(self) -> int:
        return sum(state.state_bytes for state in self._states)

    def admit(self, records: Records) -> Slice[E] | None:
        """Takes the next records of the partition into the state; None when all of them are decided already.

        Raises LogError when the records do not continue where the last ones ended.
        """
        offsets = records.offsets
        if not len(offsets):
            return None
        if offsets[0] < self.next_offset:
            raise LogError(
                f"{records.topic}[{self.partition}]: offset {offsets[0]} came again, {self.next_offset} was next"
            )
        decoded = self._decoder.decode(records.values, records.keys, records.append_ms)
        columns, watermark_ms = decoded.columns, self._watermarks(decoded.columns["time"])
        late = columns["time"] < watermark_ms
        reasons = [
            *decoded.rejected,
            *(
                (int(decoded.rows[at]), self._lateness(columns, watermark_ms, at))
                for at in np.flatnonzero(late).tolist()
            ),
        ]
        events, rows = decoded.events, decoded.rows
        if late.any():
            kept = np.flatnonzero(~late)
            events, rows, watermark_ms = [events[at] for at in kept], rows[kept], watermark_ms[kept]
            columns = take(columns, kept)
        features = self._update(columns, watermark_ms)
        self.next_offset = int(offsets[-1]) + 1
        if self.next_offset - 1 <= self.decided_through:
            return None
        first, self.decided_through = self.decided_through + 1, self.next_offset - 1
        start = int(np.searchsorted(offsets[rows], first))
        return Slice(
            partition=self.partition,
            first=first,
            last=self.decided_through,
            records=records,
            rows=rows[start:],
            events=events[start:],
            columns=_from(columns, start),
            features=_from(features, start),
            rejected=[_dead_letter(records, row, reason) for row, reason in sorted(reasons) if offsets[row] >= first],
        )

    def _watermarks(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if not len(times):
            return times
        highest = np.maximum.accumulate(np.maximum(times, self._max_time_ms))
        self._max_time_ms = int(highest[-1])
        return highest - self._settings.allowed_lateness_ms

    def _lateness(self, columns: Columns, watermark_ms: npt.NDArray[np.int64], at: int) -> str:
        return f"late: its time {columns['time'][at]} lies before the watermark {watermark_ms[at]}"

    def _update(self, columns: Columns, watermark_ms: npt.NDArray[np.int64]) -> Columns:
        features: Columns = {}
        for state in self._states:
            features |= state.update(columns, watermark_ms)
            if self.watermark_ms is not None:
                state.expire(self.watermark_ms)  # frees the memory of some keys that no event can reach any more
        return features

    def snapshot(self, log_offset: int) -> Checkpoint:
        """A copy of the state with the offset it reflects; the task may go on at once."""
        state: dict[str, npt.NDArray[Any]] = {}
        for features, keyed in zip(self._pipeline.features, self._states, strict=True):
            for name, array in keyed.snapshot().items():
                state[f"{features.__name__}/{name}"] = array
        max_time_ms = None if self._max_time_ms == LONG_AGO else self._max_time_ms
        self._history = extended(self._history, self.next_offset, max_time_ms)
        position = Position(
            pipeline=self._settings.pipeline,
            topic=self._settings.topic,
            partition=self.partition,
            offset=self.next_offset,
            log_offset=log_offset,
            max_time_ms=max_time_ms,
            history=self._history,
        )
        return Checkpoint(position, state)


def warm_up(pipeline: Pipeline[Any]) -> None:
    """Compiles the feature kernels, or loads them from numba's cache: up to 15 s that no event should wait for."""
    blank: dict[type, Any] = {str: "", int: 0, float: 0.0, bool: False}
    columns: Columns = {
        name: np.array([blank[kind]], object if kind is str else kind) for name, kind in pipeline.fields.items()
    }
    for features in pipeline.features:
        state = KeyedState(features, 0)
        state.update(columns, columns["time"])
        state.expire(0)
        KeyedState.restore(features, 0, state.snapshot())


@dataclass(frozen=True)
class Outcome:
    """What was found out about a slice: the scores (empty for the fallback) and how they came about.

    `reason` is one of `frame.REASONS`; `versions` names the version of each model that answered.
    """

    scores: Columns
    versions: Mapping[str, str]
    reason: str


def decide(pipeline: Pipeline[E], settings: TaskSettings, part: Slice[E], outcome: Outcome, stages: Stages) -> Frame:
    """Decides a slice's rows and packs them, and its dead letters, into the frame that is to be logged.

    A row for which the pipeline's `decide` raises becomes a dead letter.
    """
    columns = part.inputs | outcome.scores
    verdicts = pipeline.judge(part.events, columns, fallback=outcome.reason == "fallback")
    kept = np.delete(np.arange(len(part.rows)), list(verdicts.failed))
    all_kept = not verdicts.failed
    rows = part.rows if all_kept else part.rows[kept]
    dead = [*part.rejected, *(_failed(part, row, error) for row, error in verdicts.failed.items())]
    decided = Decided(
        offsets=part.records.offsets[rows],
        append_ms=part.records.append_ms[rows],
        event=part.columns if all_kept else take(part.columns, kept),
        features=part.features if all_kept else take(part.features, kept),
        scores=outcome.scores if all_kept else take(outcome.scores, kept),
        reasons=np.full(len(kept), REASONS.index(outcome.reason), dtype=np.int8),
        actions=verdicts.actions if all_kept else [verdicts.actions[row] for row in kept],
        versions=outcome.versions,
    )
    header = FrameHeader(
        pipeline=settings.pipeline,
        topic=settings.topic,
        partition=part.partition,
        first=part.first,
        last=part.last,
        decided=len(kept),
        rejected=len(dead),
        actions=verdicts.count,
        oldest_ms=int(decided.append_ms.min()) if len(kept) else 0,
        newest_ms=int(decided.append_ms.max()) if len(kept) else 0,
    )
    return Frame(header, stages, decided, sorted(dead, key=lambda each: each.offset))


def merge_inputs(parts: Sequence[Slice[E]], names: frozenset[str]) -> Columns:
    """The model's input columns of all the slices of a micro-batch, one after the other."""
    inputs = [part.inputs for part in parts]
    return {name: np.concatenate([each[name] for each in inputs]) for name in sorted(names)}


def split_rows(columns: Columns, parts: Sequence[Slice[E]]) -> Iterator[Columns]:
    """The rows of a micro-batch's answer, slice by slice: what `merge_inputs` put together."""
    start = 0
    for part in parts:
        end = start + len(part.rows)
        yield {name: column[start:end] for name, column in columns.items()}
        start = end


def take(columns: Columns, rows: npt.NDArray[np.int64]) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _from(columns: Columns, start: int) -> Columns:
    return {name: column[start:] for name, column in columns.items()}


def _failed(part: Slice[Any], row: int, error: Exception) -> DeadLetter:
    return _dead_letter(part.records, int(part.rows[row]), f"decide raised {type(error).__name__}: {error}")


def _dead_letter(records: Records, row: int, reason: str) -> DeadLetter:
    return DeadLetter(
        offset=int(records.offsets[row]),
        append_ms=int(records.append_ms[row]),
        reason=reason,
        key=records.keys[row],
        value=records.values[row],
    )


def _restore(features: type[Features], allowed_lateness_ms: int, stored: Mapping[str, npt.NDArray[Any]]) -> KeyedState:
    prefix = f"{features.__name__}/"
    mine = {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
    if not mine:
        return KeyedState(features, allowed_lateness_ms)
    return KeyedState.restore(features, allowed_lateness_ms, mine)

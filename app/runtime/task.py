"""The task of one source partition: from records to frames. Pure: no Ray, no Kafka, no clock.

A task sees its records in offset order and exactly once; its state, its watermark and every frame's content but the
scores are a function of the log's prefix, however the log is cut into polls.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import structs

from app.dedup import RecentIds
from app.errors import LogError
from app.event import Columns, Event, EventDecoder, Rejected
from app.features import Features, KeyedState
from app.log.frame import LATE, REASONS, DeadLetter, Decided, Frame, FrameHeader, Stages, count_late
from app.log.replayed import count_replays, original_headers
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint, Position
from app.runtime.history import Milestone, extended
from app.runtime.stack import describe_stack, encodable
from app.sources import Records

E = TypeVar("E", bound=Event)
CODES: Mapping[str, int] = {reason: code for code, reason in enumerate(REASONS)}
LONG_AGO = np.iinfo(np.int64).min // 2
SEEN = ".ids/"
"""Stands before the names of a checkpoint's arrays that hold the recent ids; no Features class can be called so."""
HORIZON = "horizon_ms"


@dataclass(frozen=True)
class TaskSettings:
    """What the tasks of a deployment have in common. Durations in ms of event time.

    deduplicate_ms: how long the id of an event is remembered; None: copies are events like any other. It is at least
                    the lateness: so an exact copy is either a duplicate or late, however long after the event it comes.
    """

    pipeline: str
    topic: str
    allowed_lateness_ms: int = 3_600_000
    max_ahead_ms: int = 3_600_000
    deduplicate_ms: int | None = None


@dataclass(frozen=True)
class Slice(Generic[E]):
    """One partition's part of a micro-batch: rows that wait for their decision, and records that get none.

    It covers the source offsets `first..last`, all of them; `events`, `columns` and `features` have one row for each
    of `rows`, the positions in `records`. `duplicates` are offsets.
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
    duplicates: Sequence[int] = field(default=())

    @property
    def append_ms(self) -> npt.NDArray[np.int64]:
        return self.records.append_ms[self.rows]

    @property
    def inputs(self) -> Columns:
        return self.columns | self.features


class Task(Generic[E]):
    """Keeps the keyed state of one partition, and which ids it has seen lately.

    `next_offset` is the source offset that comes next. Offsets up to `decided_through` stand in the decision log, or
    in a slice that is on its way there; while `next_offset` lies below, records only rebuild state. The offsets that
    are `set_aside`, each with the number of processes that its record has killed, are not read.
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
        set_aside: Mapping[int, int] | None = None,
    ) -> None:
        self.partition = partition
        self._set_aside = set_aside or {}
        self.next_offset = next_offset
        self.decided_through = decided_through
        self._pipeline = pipeline
        self._settings = settings
        self._decoder = EventDecoder(pipeline.source, by=pipeline.by, max_ahead_ms=settings.max_ahead_ms)
        self._max_time_ms = LONG_AGO
        stored = checkpoint.state if checkpoint else {}
        self._states = [_restore(features, settings.allowed_lateness_ms, stored) for features in pipeline.features]
        self._seen = None if settings.deduplicate_ms is None else _restore_seen(settings.deduplicate_ms, stored)
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
        return sum(state.state_bytes for state in self._states) + (self._seen.nbytes if self._seen else 0)

    def admit(self, records: Records) -> Slice[E] | None:
        """Takes the next records of the partition into the state; None when all of them are decided already.

        Every event moves the watermark, copies included. An event whose id an earlier one had is a duplicate, if that
        one was neither rejected nor late; what is both late and a duplicate is a duplicate.

        Raises LogError when the records do not continue where the last ones ended.
        """
        offsets = records.offsets
        if not len(offsets):
            return None
        if offsets[0] < self.next_offset:
            raise LogError(
                f"{records.topic}[{self.partition}]: offset {offsets[0]} came again, {self.next_offset} was next"
            )
        values, killers = self._harmless(records)
        decoded = self._decoder.decode(values, records.keys, records.append_ms)
        columns, newest_ms = decoded.columns, self._newest(decoded.columns["time"])
        watermark_ms = newest_ms - self._settings.allowed_lateness_ms
        late = columns["time"] < watermark_ms
        known = self._known(columns["id"], newest_ms, late)
        replayed = _replayed(records, decoded.rows, known)
        duplicate = known & ~replayed
        reasons = [
            *killers,
            *(each for each in decoded.rejected if int(offsets[each.row]) not in self._set_aside),
            *(
                Rejected(int(decoded.rows[at]), self._lateness(columns, watermark_ms, at), LATE)
                for at in np.flatnonzero(late & ~duplicate).tolist()
            ),
        ]
        copies = offsets[decoded.rows[duplicate]]
        events, rows = decoded.events, decoded.rows
        if late.any() or len(copies):
            kept = np.flatnonzero(~(late | duplicate))
            events, rows, watermark_ms = [events[at] for at in kept], rows[kept], watermark_ms[kept]
            columns, replayed = take(columns, kept), replayed[kept]
        features = self._update(columns, watermark_ms, replayed)
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
            rejected=_dead_letters(records, [each for each in sorted(reasons) if offsets[each.row] >= first]),
            duplicates=copies[copies >= first].tolist(),
        )

    def _harmless(self, records: Records) -> tuple[Sequence[bytes | None], list[Rejected]]:
        """The values without those of records that are set aside, and why these are."""
        if not self._set_aside:
            return records.values, []
        rows = [row for row, offset in enumerate(records.offsets.tolist()) if offset in self._set_aside]
        values: list[bytes | None] = list(records.values)
        for row in rows:
            values[row] = None
        counts = [self._set_aside[int(records.offsets[row])] for row in rows]
        reasons = [f"it killed the process that read it {count} times" for count in counts]
        return values, [Rejected(row, reason, "crash") for row, reason in zip(rows, reasons, strict=True)]

    def _newest(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The highest event time seen at each event, that event included."""
        if not len(times):
            return times
        newest_ms = np.maximum.accumulate(np.maximum(times, self._max_time_ms))
        self._max_time_ms = int(newest_ms[-1])
        return newest_ms

    def _lateness(self, columns: Columns, watermark_ms: npt.NDArray[np.int64], at: int) -> str:
        return f"late: its time {columns['time'][at]} lies before the watermark {watermark_ms[at]}"

    def _known(
        self, ids: npt.NDArray[Any], newest_ms: npt.NDArray[np.int64], late: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which of the events have an id that was there before."""
        return np.zeros(len(ids), np.bool_) if self._seen is None else self._seen.mark(ids, newest_ms, late)

    def _update(
        self, columns: Columns, watermark_ms: npt.NDArray[np.int64], replayed: npt.NDArray[np.bool_]
    ) -> Columns:
        features: Columns = {}
        for state in self._states:
            features |= state.update(columns, watermark_ms, replayed)
            if self.watermark_ms is not None:
                state.expire(self.watermark_ms)  # frees the memory of some keys that no event can reach any more
        return features

    def snapshot(self, log_offset: int) -> Checkpoint:
        """A copy of the state with the offset it reflects; the task may go on at once."""
        state: dict[str, npt.NDArray[Any]] = {}
        for features, keyed in zip(self._pipeline.features, self._states, strict=True):
            for name, array in keyed.snapshot().items():
                state[f"{features.__name__}/{name}"] = array
        if self._seen is not None:
            state |= {SEEN + name: array for name, array in self._seen.snapshot().items()}
            state[SEEN + HORIZON] = np.array([self._settings.deduplicate_ms])
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


def _replayed(records: Records, rows: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the known events are dead letters that were sent again: no copies, as the first one has no decision."""
    replayed = np.zeros(len(known), np.bool_)
    if known.any():
        headers = records.headers()
        for at in np.flatnonzero(known).tolist():
            replayed[at] = count_replays(headers[rows[at]]) > 0
    return replayed


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
    seen = RecentIds(0)
    seen.mark(columns["id"], columns["time"], columns["time"] > 0)
    RecentIds.restore(0, seen.snapshot())


@dataclass(frozen=True)
class Outcome:
    """What was found out about a slice: the scores (empty for the fallback) and how they came about.

    `reason` is one of `frame.REASONS`; `versions` names the version of each model that answered; `failed` are the rows
    that a model raised for.
    """

    scores: Columns
    versions: Mapping[str, str]
    reason: str
    failed: Mapping[int, Exception] = field(default_factory=dict)


def decide(pipeline: Pipeline[E], settings: TaskSettings, part: Slice[E], outcome: Outcome, stages: Stages) -> Frame:
    """Decides a slice's rows and packs them, its dead letters and its duplicates into the frame that is to be logged.

    A row for which a model or the pipeline's `decide` raised becomes a dead letter.
    """
    part, scores = _set_aside(part, outcome)
    columns = part.inputs | scores
    verdicts = pipeline.judge(part.events, columns, fallback=outcome.reason.startswith("fallback"))
    kept = np.delete(np.arange(len(part.rows)), list(verdicts.failed))
    all_kept = not verdicts.failed
    rows = part.rows if all_kept else part.rows[kept]
    dead = [*part.rejected, *_failed(part, verdicts.failed, "decide")]
    decided = Decided(
        offsets=part.records.offsets[rows],
        append_ms=part.records.append_ms[rows],
        event=part.columns if all_kept else take(part.columns, kept),
        features=part.features if all_kept else take(part.features, kept),
        scores=scores if all_kept else take(scores, kept),
        reasons=np.full(len(kept), CODES[outcome.reason], dtype=np.int8),
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
        duplicates=len(part.duplicates),
        late=count_late(dead),
    )
    return Frame(header, stages, decided, sorted(dead, key=lambda each: each.offset), part.duplicates)


def merge_inputs(parts: Sequence[Slice[E]], names: frozenset[str]) -> Columns:
    """The model's input columns of all the slices of a micro-batch, one after the other."""
    inputs = [part.inputs for part in parts]
    return {name: np.concatenate([each[name] for each in inputs]) for name in sorted(names)}


def split_outcome(outcome: Outcome, parts: Sequence[Slice[E]]) -> Iterator[Outcome]:
    """What was found out about a micro-batch, slice by slice: what `merge_inputs` put together."""
    start = 0
    for part in parts:
        end = start + len(part.rows)
        scores = {name: column[start:end] for name, column in outcome.scores.items()}
        failed = {row - start: error for row, error in outcome.failed.items() if start <= row < end}
        yield Outcome(scores, outcome.versions, outcome.reason, failed)
        start = end


def cut(part: Slice[E], row: int) -> tuple[Slice[E], Slice[E]]:
    """The slice up to `row`, and from `row` on: its offsets, its rows and what is rejected of it."""
    offset = int(part.records.offsets[part.rows[row]])
    head = replace(
        part,
        last=offset - 1,
        rows=part.rows[:row],
        events=part.events[:row],
        columns={name: column[:row] for name, column in part.columns.items()},
        features={name: column[:row] for name, column in part.features.items()},
        rejected=[each for each in part.rejected if each.offset < offset],
        duplicates=[each for each in part.duplicates if each < offset],
    )
    tail = replace(
        part,
        first=offset,
        rows=part.rows[row:],
        events=part.events[row:],
        columns=_from(part.columns, row),
        features=_from(part.features, row),
        rejected=[each for each in part.rejected if each.offset >= offset],
        duplicates=[each for each in part.duplicates if each >= offset],
    )
    return head, tail


def halve(parts: Sequence[Slice[E]]) -> tuple[list[Slice[E]], list[Slice[E]]]:
    """The first half of the rows, at least two, of a micro-batch, and the second, each with its part of the offsets."""
    left = sum(len(part.rows) for part in parts) // 2
    first: list[Slice[E]] = []
    second: list[Slice[E]] = []
    for part in parts:
        if len(part.rows) <= left:
            first.append(part)
        elif left > 0:
            head, tail = cut(part, left)
            first.append(head)
            second.append(tail)
        else:
            second.append(part)
        left = max(0, left - len(part.rows))
    return first, second


def _set_aside(part: Slice[E], outcome: Outcome) -> tuple[Slice[E], Columns]:
    """The slice without the rows that a model raised for, which become dead letters; and the scores of what is left."""
    if not outcome.failed:
        return part, outcome.scores
    kept = np.delete(np.arange(len(part.rows)), list(outcome.failed))
    left = replace(
        part,
        rows=part.rows[kept],
        events=[part.events[row] for row in kept.tolist()],
        columns=take(part.columns, kept),
        features=take(part.features, kept),
        rejected=[*part.rejected, *_failed(part, outcome.failed, "model")],
    )
    return left, take(outcome.scores, kept)


def take(columns: Columns, rows: npt.NDArray[np.int64]) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _from(columns: Columns, start: int) -> Columns:
    return {name: column[start:] for name, column in columns.items()}


def _failed(part: Slice[Any], failed: Mapping[int, Exception], cause: str) -> list[DeadLetter]:
    """Of the rows that `decide` raised for; or a model, whose error says so itself."""
    by = "decide raised {}: " if cause == "decide" else ""
    rejected = [
        Rejected(int(part.rows[row]), encodable(f"{by.format(type(error).__name__)}{error}"), cause)
        for row, error in failed.items()
    ]
    letters = _dead_letters(part.records, rejected)
    return [
        structs.replace(letter, stack=describe_stack(error))
        for letter, error in zip(letters, failed.values(), strict=True)
    ]


def _dead_letters(records: Records, rejected: Sequence[Rejected]) -> list[DeadLetter]:
    headers = records.headers() if rejected else []
    return [
        DeadLetter(
            offset=int(records.offsets[row]),
            append_ms=int(records.append_ms[row]),
            reason=reason,
            key=records.keys[row],
            value=records.values[row],
            cause=cause,
            headers=original_headers(headers[row]),
            attempts=1 + count_replays(headers[row]),
        )
        for row, reason, cause in rejected
    ]


def remembered_ms(stored: Mapping[str, npt.NDArray[Any]]) -> int | None:
    """How long ids were remembered when this state was kept; None when they were not."""
    horizon = stored.get(SEEN + HORIZON)
    return None if horizon is None else int(horizon[0])


def _restore_seen(deduplicate_ms: int, stored: Mapping[str, npt.NDArray[Any]]) -> RecentIds:
    mine = {name.removeprefix(SEEN): array for name, array in stored.items() if name.startswith(SEEN)}
    return RecentIds.restore(deduplicate_ms, mine) if mine else RecentIds(deduplicate_ms)


def _restore(features: type[Features], allowed_lateness_ms: int, stored: Mapping[str, npt.NDArray[Any]]) -> KeyedState:
    prefix = f"{features.__name__}/"
    mine = {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
    if not mine:
        return KeyedState(features, allowed_lateness_ms)
    return KeyedState.restore(features, allowed_lateness_ms, mine)

"""The loop of a stream worker: poll, features, models, decide, log; many partitions, one thread.

Everything is asked for through the front door (source, log, models, opener, clock), so the same loop runs in a Serve
replica, in a test and, with simulated parts, step by step.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from app.config import WorkerTuning
from app.errors import (
    BrokerError,
    CheckpointError,
    ConfigError,
    InferenceError,
    ModelDiedError,
    StoreError,
)
from app.event import Columns, Event
from app.inference import Scores
from app.latency import StageLatency
from app.log.frame import FALLBACKS, Frame, FrameHeader, Stages, encode_within
from app.pipeline import Pipeline
from app.runtime.attempts import Attempts
from app.runtime.batch import NEVER_MS, Batch
from app.runtime.books import Books
from app.runtime.held import Held
from app.runtime.opener import Opened, TaskOpener, describe
from app.runtime.pace import Pace
from app.runtime.reader import SourceReader
from app.runtime.retry import Failure, failed_again
from app.runtime.task import Outcome, Slice, TaskSettings, cut, decide, halve, merge_inputs, split_outcome
from app.runtime.totals import Totals
from app.sources import Consumer, Producer, Records

E = TypeVar("E", bound=Event)
logger = logging.getLogger("ray.serve")

IDLE_WAIT_MS = 20.0
BACKLOG_SHARE = 0.25
"""Of max_batch. So many rows cost more than what a micro-batch costs by itself, so that a pause would save nothing."""
RETRY_MS = (100.0, 2_000.0)
DEATHS_ALLOWED = 3
"""So many calls of a batch may end with the death of the model's replicas before it is halved, and of a single row
before it is set aside."""
DECIDE_RESERVE_MS = 10.0
"""Before a deadline: what it takes to decide 4,096 rows by the fallback and to hand them to the log."""
CARE_PATIENCE_MS = 5_000.0
"""A partition that gives nothing for so long has been read to its end: markers of transactions may hide that."""
LOG_PATIENCE_MS = 90_000.0
"""How long frames may be on their way to a broker that is there. One that is not shows as the producer's last_error
after a request timeout of 60 s at the latest."""
RETURN_PATIENCE_MS = 10_000.0
"""How long they may be on their way behind the return of a broker that was away. librdkafka 2.16 goes on within 3 s;
but two workers were seen that had not asked again for a Kafka that was gone for a minute, 20 s after its return."""


class Models(Protocol):
    """What the loop asks of the models: one future per micro-batch, which it cancels when it waits no longer."""

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]": ...


class Signal(Protocol):
    """What the loop waits on when there is nothing to do: a threading.Event, or one that costs no time."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float) -> object: ...


class Parts(NamedTuple):
    """What a loop is connected to; `models` is None for a pipeline without any.

    The loop opens its own reader of the source, and another one when that falls silent. `executor` has one thread,
    which alone opens partitions and asks where the log ends. `saver` has one for checkpoints: a store may take minutes
    to say that it is away.
    """

    open_source: Callable[[], Consumer]
    log: Producer
    models: Models | None
    opener: TaskOpener[Any]
    executor: Executor
    saver: Executor
    now_ms: Callable[[], float]


class StreamLoop(Generic[E]):
    """Runs the tasks of the partitions it is given; `step` does what there is to do and waits a little if nothing is.

    All methods but `give`, `tune` and what reports belong to the one thread that steps. An exception from `step` ends
    the loop's life: what was not logged is read again by the next owner, from its checkpoint on.
    """

    def __init__(
        self,
        pipeline: Pipeline[E],
        settings: TaskSettings,
        decisions_topic: str,
        parts: Parts,
        tuning: WorkerTuning,
        latency: StageLatency,
        woken: Signal | None = None,
    ) -> None:
        self.latency = latency
        self.last_error: str | None = None
        self._pipeline = pipeline
        self._settings = settings
        self._decisions_topic = decisions_topic
        self._parts = parts
        self._wanted: frozenset[int] = frozenset()
        self._held: dict[int, Held[E]] = {}
        self._opening: dict[int, Future[Opened[E]]] = {}
        self._refused: dict[int, Failure] = {}
        self._reader = SourceReader(settings.topic, parts.open_source)
        self._books: Books[E] = Books(parts.opener, parts.executor, parts.saver, self._reader)
        self._in_flight: deque[Batch[E]] = deque()
        self._woken: Signal = woken or threading.Event()
        self.totals = Totals()
        self._next_batch_ms = self._away_ms = 0.0
        self._failed: BrokerError | None = None
        self.tune(tuning)

    def tune(self, tuning: WorkerTuning) -> None:
        """Takes new bounds while running. Raises ConfigError; then nothing has changed."""
        for name, value in (("deadline", tuning.deadline_ms), ("overdue: fallback", tuning.overdue == "fallback")):
            if value and self._pipeline.fallback is None:
                raise ConfigError(f"user_config.{name} needs a fallback, which the pipeline does not have; remove it")
        self._tuning = tuning
        self._deadline_ms = self._pipeline.deadline_ms if tuning.deadline_ms is None else tuning.deadline_ms
        self._pace = Pace(tuning.pace.shortest_ms, tuning.pace.longest_ms, tuning.max_in_flight)

    def give(self, partitions: Collection[int]) -> None:
        """Says which partitions to work on from now on; those that are missing are handed over when they are done."""
        self._wanted = frozenset(partitions)

    @property
    def partitions(self) -> list[int]:
        """What the loop still has its hands on, partitions on their way out included."""
        return sorted({*self._held, *self._opening})

    def standing(self) -> list[dict[str, Any]]:
        """Where each partition stands: offset, lag, watermark, size of the state."""
        now_ms = self._parts.now_ms()
        return [held.standing(now_ms) for held in list(self._held.values())]

    @property
    def opening_error(self) -> str | None:
        """Why partitions that were given cannot be worked on yet."""
        return "; ".join(sorted({failure.error for failure in list(self._refused.values())})) or None

    def step(self) -> None:
        self._take_up()
        started = self._start_batch()
        self._finish_batches()
        self._parts.log.poll()
        if self._failed:
            raise self._failed
        self._check_logs()
        self._books.keep(self._held, self._tuning.checkpoint_interval_ms, self._parts.now_ms())
        if not started:
            self._wait()

    def drain(self) -> None:
        """Finishes what is in flight, logs it, and writes a checkpoint of every partition, if that can be done."""
        while self._in_flight:
            self._finish_batches()
            if self._in_flight:
                self._woken.wait(IDLE_WAIT_MS / 1000)
        self._parts.log.flush(10.0)
        for held in self._held.values():
            if held.attempts is not None:
                self._note_attempts(held, held.attempts.put_down())
            self._books.save_last(held)

    def close(self) -> None:
        """Ends the reader of the source. What else the loop is connected to is closed by who opened it."""
        self._reader.close()

    def _wait(self) -> None:
        now_ms = self._parts.now_ms()
        waiting = [min(each.due_ms, each.deadline_ms) for each in self._in_flight if not each.answered]
        due_ms = min([*waiting, self._next_batch_ms if self._has_room else NEVER_MS])
        left_ms = due_ms - now_ms
        if left_ms > 0:
            self._woken.wait(min(left_ms, IDLE_WAIT_MS) / 1000)
        self._woken.clear()

    @property
    def _has_room(self) -> bool:
        """No other batch is to die of one that may be what killed a model."""
        return len(self._in_flight) < self._tuning.max_in_flight and not any(each.suspect for each in self._in_flight)

    # Partitions come and go.

    def _take_up(self) -> None:
        wanted, now_ms = self._wanted, self._parts.now_ms()
        self._refused = {each: failure for each, failure in self._refused.items() if each in wanted}
        for partition in wanted - self._held.keys() - self._opening.keys():
            if partition in self._refused and now_ms < self._refused[partition].retry_ms:
                continue
            self._opening[partition] = self._parts.executor.submit(self._parts.opener.open, partition)
        for partition, opening in list(self._opening.items()):
            if opening.done():
                del self._opening[partition]
                self._hold_opened(partition, opening)
        for partition, held in list(self._held.items()):
            held.leaving = partition not in wanted
            if held.leaving:
                self._let_go(partition, held)
        self._assign()

    def _hold_opened(self, partition: int, opening: "Future[Opened[E]]") -> None:
        try:
            opened = opening.result()
        except (BrokerError, StoreError, CheckpointError) as error:  # something is away, or somebody has to decide
            self._refused[partition] = failed_again(self._refused.get(partition), str(error), self._parts.now_ms())
            self.last_error = str(error)
            logger.error("partition %d cannot be opened yet: %s", partition, error)
            return
        self._refused.pop(partition, None)
        task, now_ms = opened.task, self._parts.now_ms()
        logger.info("%s", describe(opened))
        self._held[task.partition] = Held(
            task,
            log_offset=opened.log_offset,
            logged_through=task.decided_through,
            sent_through=task.decided_through,
            moved_ms=now_ms,
            checkpointed=task.next_offset,
            checkpoint_due_ms=now_ms + self._tuning.checkpoint_interval_ms,
            current_ms=now_ms,
            attempts=None if opened.attempts.size is None else opened.attempts,
            care_until=opened.end_offset,
            read_ms=now_ms,
        )

    def _let_go(self, partition: int, held: Held[E]) -> None:
        """Reads no more of it; drops it when all that was read is logged and its checkpoint is written."""
        if not held.save_failed:
            held.checkpoint_due_ms = 0.0
        flying = any(part.partition == partition for batch in self._in_flight for part in batch.parts)
        if not flying and held.attempts is not None and held.attempts.trying is not None:
            self._note_attempts(held, held.attempts.put_down())
        saved = held.snapshot is None and held.checkpointed >= held.task.next_offset
        if not flying and (saved or held.save_failed):
            del self._held[partition]

    @property
    def _staying(self) -> dict[int, Held[E]]:
        return {partition: held for partition, held in self._held.items() if not held.leaving}

    @property
    def _careful(self) -> Held[E] | None:
        """The partition that is read with care, and alone: a crash then is of what is in hand."""
        return next((held for _, held in sorted(self._staying.items()) if held.attempts is not None), None)

    def _assign(self) -> None:
        careful = self._careful
        staying = self._staying if careful is None else {careful.task.partition: careful}
        self._reader.assign({partition: held.task.next_offset for partition, held in staying.items()})

    # From the source to the models.

    def _start_batch(self) -> bool:
        now_ms, careful = self._parts.now_ms(), self._careful
        if not self._has_room or now_ms < self._next_batch_ms:
            return False
        if careful and (self._in_flight or not self._is_written_down(careful)):
            return False
        wait_ms = 0 if self._in_flight else int(IDLE_WAIT_MS)
        polled = self._reader.poll(self._portion(careful), wait_ms)
        fetched_ms = self._parts.now_ms()
        rows = sum(map(len, polled))
        if careful and not self._takes_care(careful, polled, fetched_ms):
            return False
        if not rows:
            self._next_batch_ms = fetched_ms + (self._pace.shortest_ms if self._in_flight else 0)
            return False
        backlog = rows >= BACKLOG_SHARE * self._tuning.max_batch
        self._next_batch_ms = fetched_ms + (0 if backlog else self._pace.interval_ms)
        admitted = [self._held[records.partition].task.admit(records) for records in polled]
        parts = [part for part in admitted if part is not None]
        if parts:
            self._launch(parts, fetched_ms)
        return True

    def _portion(self, careful: Held[E] | None) -> int:
        most = self._tuning.max_batch
        return most if careful is None or careful.attempts is None else min(most, careful.attempts.size or most)

    def _is_written_down(self, held: Held[E]) -> bool:
        """Whether a process that dies now leaves behind which records it had in hand."""
        assert held.attempts is not None
        first = max(held.task.next_offset, held.next_record)
        trying = held.attempts.take(first, first + self._portion(held) - 1)
        if held.noting is None or trying != held.attempts:
            self._note_attempts(held, trying)
        assert held.noting is not None
        if not held.noting.done():
            return False
        error = held.noting.exception()
        if error is not None:
            self._note(str(error))
            held.noting = None
        return error is None

    def _note_attempts(self, held: Held[E], attempts: Attempts) -> None:
        held.attempts = attempts
        held.noting = self._parts.executor.submit(self._parts.opener.note, held.task.partition, attempts)

    def _takes_care(self, held: Held[E], polled: Sequence[Records], now_ms: float) -> bool:
        """Whether these are the records that were written down; care ends when what was there at the opening is read.

        Where offsets hold no record, the next one that does is written down instead, and read again.
        """
        assert held.attempts is not None
        assert held.attempts.trying is not None
        if polled:
            held.read_ms = now_ms
            first = int(polled[0].offsets[0])
            if first == held.attempts.trying[0]:
                return True
            held.next_record = first
            self._reader.rewind()
            return False
        if held.task.next_offset >= held.care_until or now_ms - held.read_ms > CARE_PATIENCE_MS:
            self._note_attempts(held, held.attempts.relax())
            held.attempts = None
        return True

    def _launch(self, parts: Sequence[Slice[E]], fetched_ms: float) -> None:
        featured_ms = self._parts.now_ms()
        self.totals.events += sum(len(part.rows) + len(part.rejected) for part in parts)
        overdue, timely = self._divide(parts, featured_ms)
        if overdue:
            self._start(overdue, Outcome({}, {}, FALLBACKS["overdue"]), fetched_ms, featured_ms)
        if timely:
            unasked = self._parts.models is None or not any(len(part.rows) for part in timely)
            self._start(timely, Outcome({}, {}, "rules") if unasked else None, fetched_ms, featured_ms)

    def _divide(self, parts: Sequence[Slice[E]], now_ms: float) -> tuple[list[Slice[E]], list[Slice[E]]]:
        """What the fallback decides because it is past its deadline already, and what the models are asked about.

        The broker appends in order, so that what is past its deadline comes first. (Producers' own clocks may disagree:
        then a row behind a timely one is scored late.)
        """
        if self._deadline_ms is None:
            return [], list(parts)
        overdue, timely = [], []
        for part in parts:
            past = part.append_ms + self._deadline_ms <= now_ms
            self.totals.overdue += int(np.count_nonzero(past))
            late = len(past) if past.all() else int(np.argmin(past))
            if self._tuning.overdue == "score" or not late:
                timely.append(part)
            elif late == len(part.rows):
                overdue.append(part)
            else:
                head, tail = cut(part, late)
                overdue.append(head)
                timely.append(tail)
        return overdue, timely

    def _start(self, parts: Sequence[Slice[E]], outcome: Outcome | None, fetched_ms: float, featured_ms: float) -> None:
        """Asks the models, unless the outcome is known without them."""
        batch = Batch(parts, fetched_ms, featured_ms, featured_ms, featured_ms - fetched_ms, outcome=outcome)
        batch.scored_ms = featured_ms
        if outcome is None:
            batch.deadline_ms = self._first_deadline_ms(parts, featured_ms)
            self._ask(batch)
        self._in_flight.append(batch)

    def _first_deadline_ms(self, parts: Sequence[Slice[E]], now_ms: float) -> float:
        """When the fallback has to begin; of events that are past their deadline already, never."""
        if self._deadline_ms is None:
            return NEVER_MS
        deadlines_ms = np.concatenate([part.append_ms for part in parts]) + self._deadline_ms
        ahead_ms = deadlines_ms[deadlines_ms > now_ms]
        return float(ahead_ms.min()) - DECIDE_RESERVE_MS if len(ahead_ms) else NEVER_MS

    def _ask(self, batch: Batch[E]) -> None:
        assert self._parts.models is not None
        batch.attempts += 1
        batch.given_up = None
        batch.answer = self._parts.models.ask(merge_inputs(batch.parts, self._pipeline.inputs), batch.rows)
        batch.queued_ms = self._parts.now_ms()
        batch.due_ms = batch.queued_ms + self._tuning.model_timeout_ms
        batch.answer.add_done_callback(lambda _: self._answered(batch))

    def _answered(self, batch: Batch[E]) -> None:
        batch.scored_ms = self._parts.now_ms()
        self._woken.set()

    # From the models to the decision log, in the order in which the batches were read.

    def _finish_batches(self) -> None:
        self._give_up_late()
        while self._in_flight and self._in_flight[0].answered:
            batch = self._in_flight[0]
            if batch.retry_ms is not None:
                self._ask_again_when_due(batch)
                return
            outcome = self._outcome(batch)
            if outcome is None:
                return
            self._in_flight.popleft()
            self._log(batch, outcome)

    def _give_up_late(self) -> None:
        """Of calls that are due, and of those before an event whose deadline is near: decisions leave in order."""
        now_ms, deadline_ms = self._parts.now_ms(), NEVER_MS
        for batch in reversed(self._in_flight):
            deadline_ms = min(deadline_ms, batch.deadline_ms)
            if now_ms >= min(batch.due_ms, deadline_ms) and not batch.answered:
                batch.give_up(now_ms)

    def _outcome(self, batch: Batch[E]) -> Outcome | None:
        """None when the models failed, nothing may stand in for them, and they are asked again."""
        if batch.outcome is not None:
            return batch.outcome
        assert batch.answer is not None
        try:
            if batch.given_up is not None:
                raise batch.given_up
            scores = batch.answer.result()
        except InferenceError as error:
            self._note(str(error))
            if self._pipeline.fallback is not None:
                return Outcome({}, {}, FALLBACKS[error.cause])
            if isinstance(error, ModelDiedError):
                batch.deaths, batch.suspect = batch.deaths + 1, True
            if batch.deaths == DEATHS_ALLOWED:
                return self._search_killer(batch, error)
            delay_ms = min(RETRY_MS[0] * 2 ** (batch.attempts - 1), RETRY_MS[1])
            batch.retry_ms = self._parts.now_ms() + delay_ms
            return None
        self.last_error = None
        return Outcome(scores.columns, scores.versions, "model", scores.failed)

    def _search_killer(self, batch: Batch[E], error: InferenceError) -> Outcome | None:
        """Halves a batch that kills whatever is asked about it, down to the row that does; that one is set aside."""
        if batch.rows == 1:
            logger.error("a row is set aside: %s, %d times, with no other call under way", error, batch.deaths)
            return Outcome({}, {}, "model", {0: error})
        assert self._in_flight[0] is batch
        self._in_flight.popleft()
        for parts in reversed(halve(batch.parts)):
            half = replace(batch, parts=parts, deaths=0, attempts=0, retry_ms=self._parts.now_ms())
            self._in_flight.appendleft(half)
        return None

    def _note(self, error: str) -> None:
        """Logs an error when it is another one than before: a model that is away fails fifty times a second."""
        if error != self.last_error:
            logger.warning("%s", error)
        self.last_error = error

    def _ask_again_when_due(self, batch: Batch[E]) -> None:
        if batch.retry_ms is not None and self._parts.now_ms() >= batch.retry_ms:
            batch.retry_ms = None
            self._ask(batch)

    def _log(self, batch: Batch[E], outcome: Outcome) -> None:
        started_ms = self._parts.now_ms()
        stages = Stages(batch.fetched_ms, batch.featured_ms, batch.queued_ms, batch.scored_ms, started_ms)
        for part, own in zip(batch.parts, split_outcome(outcome, batch.parts), strict=True):
            self._write(decide(self._pipeline, self._settings, part, own, stages), outcome.reason)
        self._observe(batch, started_ms)
        batch.work_ms += self._parts.now_ms() - started_ms
        self._pace.observe(work_ms=batch.work_ms, call_ms=batch.scored_ms - batch.queued_ms)

    def _write(self, frame: Frame, reason: str) -> None:
        self.totals.decisions += frame.header.decided
        if reason in self.totals.fallbacks:
            self.totals.fallbacks[reason] += frame.header.decided
        self.totals.dead_letters += frame.header.rejected
        self.totals.actions += frame.header.actions
        self.totals.duplicates += frame.header.duplicates
        self.totals.late += frame.header.late
        self._note_sent(self._held[frame.header.partition], frame.header.last)
        for encoded in encode_within(frame):
            self._parts.log.send(
                self._decisions_topic,
                encoded.value,
                partition=encoded.header.partition,
                headers=[encoded.field],
                on_delivery=partial(self._logged, encoded.header, frame.stages.decided_ms),
            )

    def _note_sent(self, held: Held[E], last: int) -> None:
        if held.logged_through >= held.sent_through:
            held.moved_ms = self._parts.now_ms()
        held.sent_through = last

    def _logged(
        self, header: FrameHeader, decided_ms: float, error: BrokerError | None, offset: int, append_ms: int
    ) -> None:
        if error is not None:
            self._failed = error
            return
        held = self._held.get(header.partition)
        if held:
            held.logged_through = max(held.logged_through, header.last)
            held.log_offset = offset + 1
            held.moved_ms = self._parts.now_ms()
        self.latency.observe_batch("logged", append_ms - decided_ms, header.decided)

    def _observe(self, batch: Batch[E], decided_ms: float) -> None:
        rows, observe = batch.rows, self.latency.observe_batch
        if rows:
            append_ms: npt.NDArray[np.int64] = np.concatenate([part.append_ms for part in batch.parts])
            self.latency.observe("fetched", batch.fetched_ms - append_ms)
            observe("features", batch.featured_ms - batch.fetched_ms, rows)
            observe("queued", batch.queued_ms - batch.featured_ms, rows)
            observe("scored", batch.scored_ms - batch.queued_ms, rows)
            observe("decided", decided_ms - batch.scored_ms, rows)

    def _check_logs(self) -> None:
        now_ms = self._parts.now_ms()
        if self._parts.log.last_error is not None:
            self._away_ms = now_ms
        for held in self._held.values():
            self._check_log(held, now_ms)

    def _check_log(self, held: Held[E], now_ms: float) -> None:
        """Raises BrokerError when the log has stood still for too long: a new worker has a new producer."""
        patience_ms = RETURN_PATIENCE_MS if self._away_ms > held.moved_ms else LOG_PATIENCE_MS
        waited_ms = now_ms - max(held.moved_ms, self._away_ms)
        if held.logged_through < held.sent_through and waited_ms > patience_ms:
            silent_ms = now_ms - held.moved_ms
            raise BrokerError(
                f"the decisions of partition {held.task.partition} from offset {held.logged_through + 1} on are not "
                f"acknowledged after {silent_ms / 1000:.0f} s, though the broker is there; the worker starts anew"
            )

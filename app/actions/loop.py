"""The loop of one sink: from the decision log to the sink, with a cursor for each partition.

Whatever goes wrong with a partition, it is parked for a while and then resumed from what is stored, just as after
a crash: there is one way back, and it is used often.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic

from app.actions.breaker import Breaker
from app.actions.place import Place
from app.actions.position import Position, from_committed, to_committed
from app.actions.reading import Passed, Reading
from app.actions.selection import Selection
from app.actions.status import SinkStatus, StepReport, report
from app.actions.writer import Batch, D, Outcome, SinkWriter
from app.errors import ActionError, BrokerError, FencedError, HeadraceError, LogError, SinkAwayError
from app.sources import Consumer, TopicPartition

logger = logging.getLogger(__name__)

FRAMES_OF_A_STEP = 100
COMMIT_INTERVAL_MS = 500
LAG_INTERVAL_MS = 1_000
SILENCE_MS = 15_000
"""After so long without an answer from the broker another client asks."""
RENEWAL_MS = 3_600_000
"""A broker forgets what a group without members committed after a week, so a position that stands still is committed
again every hour."""


class SinkLoop(Generic[D]):
    """Carries out what the decision log asks of one sink, in source order within each partition.

    A thread of its own calls `step` until it stops, then `close`. `assign`, `stop` and `status` are for any thread.
    Decisions count from their first copy in the log; how often the sink can see one over a crash is the writer's
    promise. A sink that is slow, broken or away delays nobody else: its backlog is the log. While it is away as a
    whole, one partition after the other asks after it, and the rest waits.
    """

    def __init__(
        self,
        *,
        pipeline: str,
        sink: str,
        log_topic: str,
        open_consumer: Callable[[], Consumer],
        selection: Selection[D],
        writer: SinkWriter[D],
        halt: threading.Event,
        clock: Callable[[], float] = time.time,
        jitter: random.Random | None = None,
    ) -> None:
        self.sink = sink
        self._pipeline = pipeline
        self._log_topic = log_topic
        self._open_consumer = open_consumer
        self._consumer = open_consumer()
        self._selection = selection
        self._writer = writer
        self._halt = halt
        self._wake = threading.Event()
        self._clock_s = clock
        self._jitter = jitter or random.Random()
        self._breaker = Breaker(self._jitter)
        self._wanted: tuple[int, frozenset[int]] = (0, frozenset())
        self._assignment = 0
        self._places: dict[int, Place] = {}
        self._reported: dict[int, int] = {}
        self._commit_at_ms = self._measure_at_ms = 0.0
        self._silent_since_ms: float | None = None
        self._error: HeadraceError | None = None
        self._status = SinkStatus(sink)

    def assign(self, partitions: Iterable[int]) -> None:
        """From the next step on these partitions, and no others, are this loop's: one, too, that was fenced before."""
        self._wanted = (self._wanted[0] + 1, frozenset(partitions))
        self._wake.set()

    def stop(self) -> None:
        """Lets `step` return as soon as what it is carrying out is done."""
        self._halt.set()
        self._wake.set()

    def status(self) -> SinkStatus:
        """As of the end of the last step."""
        return self._status

    def step(self, timeout_ms: int) -> StepReport:
        """Carries out what there is, or waits up to timeout_ms for it. Failures of the sink and of the broker raise
        nothing: they are retried, and stand in `status`."""
        self._wake.clear()
        self._follow(*self._wanted)
        if self._halt.is_set():
            return report([], 0, 0, self._now_ms())
        self._resume_due()
        done = self._write(self._read(self._patience_ms(timeout_ms)))
        self._measure_lag()
        self._status = self._describe()
        return done

    def close(self) -> None:
        """Saves every position, then closes the sink and the consumer. Raises what either raises, after both."""
        try:
            self._save(self._active)
        finally:
            try:
                self._writer.close()
            finally:
                self._consumer.close()

    @property
    def _active(self) -> dict[int, Place]:
        return {partition: place for partition, place in self._places.items() if place.active}

    @property
    def _parked(self) -> dict[int, Place]:
        return {partition: place for partition, place in self._places.items() if not place.active}

    def _follow(self, assignment: int, wanted: Collection[int]) -> None:
        gone = self._places.keys() - wanted
        if gone:
            self._save({partition: place for partition, place in self._active.items() if partition in gone})
            for partition in gone:
                self._give_up_probe(partition)
                del self._places[partition]
                self._reported.pop(partition, None)
                self._writer.release(partition)
            self._consume_active()
        self._assignment = assignment
        for partition, place in self._places.items():
            if place.dropped_under not in (None, assignment):
                self._places[partition] = Place()
        for partition in wanted - self._places.keys():
            self._places[partition] = Place()

    def _resume_due(self) -> None:
        due = self._due()
        if not due:
            return
        try:
            for partition, found in self._load(due).items():
                if isinstance(found, LogError):
                    self._park(partition, found)
                else:
                    due[partition].resume(found)
            self._consume_active()
        except LogError as error:
            for partition in due:
                self._park(partition, error)
        except (ActionError, BrokerError) as error:
            if isinstance(error, BrokerError):
                self._renew_consumer()
            away = SinkAwayError(str(error))
            for partition in due:
                self._park(partition, away)
            self._open_breaker(away)

    def _bear_silence(self, now_ms: float) -> None:
        if self._silent_since_ms is None:
            self._silent_since_ms = now_ms
        elif now_ms - self._silent_since_ms > SILENCE_MS:
            self._renew_consumer()

    def _renew_consumer(self) -> None:
        """A client that was opened while its broker went away was seen not to find it again in the five minutes behind
        its return (librdkafka 2.16); a new one does at once. What the old one read is resumed like everything else."""
        self._silent_since_ms = None
        try:
            consumer = self._open_consumer()
        except BrokerError:
            return  # it is still away
        for place in self._active.values():
            place.park_briefly()
        self._consumer.close()
        self._consumer = consumer

    def _due(self) -> dict[int, Place]:
        """The parked places whose time has come; one of them while the sink is away, and rather one that has something
        to do."""
        now_ms, asked = self._now_ms(), self._breaker.not_before_ms
        due = {p: place for p, place in self._parked.items() if asked(p, place.due_ms or 0.0) <= now_ms}
        if due and self._breaker.state == "open":
            probe = self._breaker.choose_probe([p for p, place in due.items() if place.lag != 0] or due)
            return {probe: due[probe]}
        return due

    def _load(self, partitions: Iterable[int]) -> dict[int, Position | LogError]:
        logs = list(map(self._log, partitions))
        committed = self._consumer.committed(logs)
        positions = self._writer.resume({log.partition: from_committed(committed[log]) for log in logs})
        begins, ends = self._consumer.beginning_offsets(logs), self._consumer.end_offsets(logs)
        return {log.partition: _within(log, positions[log.partition], begins[log], ends[log]) for log in logs}

    def _consume_active(self) -> None:
        """A partition that stays active goes on where the consumer is; one that was parked goes on at its position."""
        self._consumer.assign({self._log(p): place.reached.log_offset for p, place in self._active.items()})

    def _read(self, patience_ms: float) -> dict[int, Reading[D]]:
        active = self._active
        if not active:
            self._wake.wait(patience_ms / 1000)
            return {}
        readings: dict[int, Reading[D]] = {}
        try:
            for records in self._consumer.poll(FRAMES_OF_A_STEP, int(patience_ms)):
                p = records.partition
                if p not in readings:
                    readings[p] = Reading(self._pipeline, p, active[p].reached, self._selection)
                readings[p].take(records)
        except BrokerError as error:
            for partition in active:
                self._park(partition, error)
            self._consume_active()
        return readings

    def _write(self, readings: Mapping[int, Reading[D]]) -> StepReport:
        due = self._now_ms() >= self._commit_at_ms
        batches = [reading.batch for reading in readings.values() if reading.deliveries]
        carried_out = bool(batches)
        if due:
            batches += self._without_deliveries(readings)
        outcomes = {partition: Outcome(reading.end) for partition, reading in readings.items()}
        outcomes |= self._carry_out(batches, self._writer.write)
        done = self._report(readings, outcomes)
        for partition, outcome in outcomes.items():
            self._places[partition].position = outcome.position
        if due or (carried_out and self._writer.commits_each_batch):
            self._commit(self._active)
        self._settle(readings, outcomes)
        self._judge(readings, {batch.partition for batch in batches if batch.deliveries}, outcomes)
        return done

    def _without_deliveries(self, readings: Mapping[int, Reading[D]]) -> list[Batch[D]]:
        """So that the sink, too, learns of positions that moved past what was none of its business."""
        ends = {p: readings[p].end if p in readings else place.reached for p, place in self._active.items()}
        return [
            Batch(p, end, end)
            for p, end in ends.items()
            if self._is_uncommitted(self._places[p], end) and not (p in readings and readings[p].deliveries)
        ]

    def _is_uncommitted(self, place: Place, position: Position) -> bool:
        return position != place.committed or self._now_ms() - place.committed_at_ms > RENEWAL_MS

    def _carry_out(
        self, batches: Sequence[Batch[D]], how: Callable[[Sequence[Batch[D]]], list[Outcome]]
    ) -> dict[int, Outcome]:
        try:
            outcomes = how(batches) if batches else []
        except (ActionError, BrokerError) as error:
            away = SinkAwayError(str(error))
            outcomes = [Outcome(batch.start, away) for batch in batches]
        return {batch.partition: outcome for batch, outcome in zip(batches, outcomes, strict=True)}

    def _report(self, readings: Mapping[int, Reading[D]], outcomes: Mapping[int, Outcome]) -> StepReport:
        """Counts an event once, even where a failure lets it be read again."""
        passed: list[Passed] = []
        actions = 0
        for partition, reading in readings.items():
            after, through = self._reported.get(partition, -1), outcomes[partition].position.applied
            if through is not None and through > after:
                passed += reading.passed(after, through)
                actions += sum(after < each.offset <= through for each in reading.deliveries)
                self._reported[partition] = through
        dead_letters = sum(outcome.dead_letters for outcome in outcomes.values())
        return report(passed, actions, dead_letters, self._now_ms())

    def _settle(self, readings: Mapping[int, Reading[D]], outcomes: Mapping[int, Outcome]) -> None:
        """Parks what failed or stopped short; what went through has no failures behind it any more."""
        for partition, outcome in outcomes.items():
            place, reading = self._places[partition], readings.get(partition)
            if reading is not None and outcome.position.applied != reading.start.applied:
                self._clear(partition)
            error = outcome.error or (reading.error if reading else None)
            if error is not None:
                self._park(partition, error)
            elif reading is not None and outcome.position != reading.end:
                place.park_briefly()
            else:
                self._clear(partition)
        if not all(self._places[partition].active for partition in outcomes):
            self._consume_active()

    def _judge(
        self, readings: Mapping[int, Reading[D]], with_deliveries: Collection[int], outcomes: Mapping[int, Outcome]
    ) -> None:
        """What the step says of the sink: away when all that was tried found it so, there when anything did not."""
        away = [each.error for each in outcomes.values() if isinstance(each.error, SinkAwayError)]
        if any(not _is_away(outcomes[partition].error) for partition in with_deliveries):
            self._close_breaker()
        elif away:
            self._open_breaker(away[0])
        elif readings:
            self._hand_on_probe()

    def _open_breaker(self, error: SinkAwayError) -> None:
        if self._breaker.state == "closed":
            logger.warning("sink %s is away: %s; one partition at a time asks after it", self.sink, error)
        self._breaker.open(error, self._now_ms())
        for place in self._places.values():
            if place.active or _is_away(place.error):
                place.park_briefly()
        self._consume_active()

    def _close_breaker(self) -> None:
        retries = self._breaker.close()
        if retries:
            logger.info("sink %s is back after %d retries", self.sink, retries)

    def _give_up_probe(self, partition: int) -> None:
        if self._breaker.probe == partition:
            self._breaker.give_up_probe()

    def _hand_on_probe(self) -> None:
        """The probe has found nothing to ask the sink for: let another one ask."""
        probe = self._breaker.give_up_probe()
        if probe is not None:
            self._places[probe].park_briefly()
            self._consume_active()

    def _park(self, partition: int, error: HeadraceError) -> None:
        self._give_up_probe(partition)
        if isinstance(error, FencedError):
            self._places[partition].drop(error, self._assignment)
            logger.warning(
                "sink %s, partition %d is dropped until it is assigned again: %s", self.sink, partition, error
            )
        elif self._places[partition].park(error, self._now_ms(), self._jitter):
            logger.warning("sink %s, partition %d: %s; trying again", self.sink, partition, error)

    def _clear(self, partition: int) -> None:
        retries = self._places[partition].clear()
        if retries:
            logger.info("sink %s, partition %d goes on after %d retries", self.sink, partition, retries)

    def _save(self, places: Mapping[int, Place]) -> None:
        """Tells sink and group where the places are. Where that fails, whoever is next reads a little again."""
        unsaved = {
            p: place for p, place in places.items() if self._writer.commits_position or place.reached != place.committed
        }
        batches = [Batch[D](p, place.reached, place.reached) for p, place in unsaved.items()]
        outcomes = self._carry_out(batches, self._writer.save)
        self._commit({p: place for p, place in unsaved.items() if outcomes[p].error is None})

    def _commit(self, places: Mapping[int, Place]) -> None:
        now_ms = self._now_ms()
        self._commit_at_ms = now_ms + COMMIT_INTERVAL_MS
        moved = {
            self._log(p): to_committed(place.reached)
            for p, place in places.items()
            if self._is_uncommitted(place, place.reached)
        }
        try:
            if moved and not self._writer.commits_position:
                self._consumer.commit(moved)
        except BrokerError as error:
            self._error = error
            return
        self._error = None
        for log in moved:
            place = places[log.partition]
            place.committed, place.committed_at_ms = place.reached, now_ms

    def _measure_lag(self) -> None:
        now_ms = self._now_ms()
        if now_ms < self._measure_at_ms or not self._places:
            return
        self._measure_at_ms = now_ms + LAG_INTERVAL_MS
        try:
            if self._consumer.last_error is not None:
                raise self._consumer.last_error
            ends = self._consumer.end_offsets(list(map(self._log, self._places)))
        except BrokerError as error:
            self._error = error
            self._bear_silence(now_ms)
            return
        self._silent_since_ms = None
        for log, end in ends.items():
            place = self._places[log.partition]
            place.note_end(end)
            if place.active and place.lag == 0:
                self._clear(log.partition)
        if all(place.lag == 0 for place in self._places.values()):
            self._close_breaker()  # nothing waits for the sink
        elif self._breaker.probe is not None and self._places[self._breaker.probe].lag == 0:
            self._hand_on_probe()

    def _describe(self) -> SinkStatus:
        error = self._consumer.last_error or self._error or self._breaker.error
        partitions = {partition: place.describe() for partition, place in sorted(self._places.items())}
        message = str(error) if error else None
        return SinkStatus(self.sink, partitions, message, self._breaker.state, self._breaker.retries)

    def _patience_ms(self, timeout_ms: int) -> float:
        """How long this step may wait for records: not beyond the time at which a parked partition is due."""
        now_ms, asked = self._now_ms(), self._breaker.not_before_ms
        due = [asked(p, place.due_ms or 0.0) - now_ms for p, place in self._parked.items()]
        return max(0.0, min([float(timeout_ms), *due]))

    def _log(self, partition: int) -> TopicPartition:
        return TopicPartition(self._log_topic, partition)

    def _now_ms(self) -> float:
        return self._clock_s() * 1000


def _is_away(error: HeadraceError | None) -> bool:
    return isinstance(error, SinkAwayError)


def _within(log: TopicPartition, position: Position, begin: int, end: int) -> Position | LogError:
    """Where to read from. A gap that retention has torn shows at the first frame behind it."""
    if position.log_offset > end:
        return LogError(
            f"the cursor stands at offset {position.log_offset} of {log}, which ends at {end}: the log was made anew; "
            "remove the sink's cursor, or give the pipeline another name"
        )
    return Position(position.applied, max(position.log_offset, begin))

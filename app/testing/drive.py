"""drive(): a pipeline's whole life in one call, deterministic and without Ray, a broker, or a moment's waiting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.config import WorkerTuning
from app.event import Event
from app.log.frame import Cursor, DeadLetter
from app.operate.first_copies import describe_decisions, first_copies
from app.pipeline import Pipeline
from app.sources import TopicPartition
from app.testing.clock import START_MS
from app.testing.faults import Item, Record, Reorder
from app.testing.kafka import MemoryConsumer
from app.testing.simulation import Simulation
from app.testing.sinks import Effect

EVERY_MS = 10.0


@dataclass(frozen=True)
class Decided:
    """What the decision log says of one event. `actions` are the fields of each, with its `type`; `latency_ms` is
    from the append of the event to that of its decision."""

    id: str
    partition: int
    offset: int
    event: Mapping[str, Any]
    features: Mapping[str, float]
    scores: Mapping[str, Any]
    reason: str
    actions: Sequence[Mapping[str, Any]]
    latency_ms: float


@dataclass(frozen=True)
class Rejected:
    """A record that became no decision, and why."""

    partition: int
    letter: DeadLetter

    @property
    def reason(self) -> str:
        return self.letter.reason


@dataclass(frozen=True)
class Result:
    """What came of a simulation.

    decisions:    the first copy of each, by source partition and offset.
    dead_letters: records that became no decision, likewise.
    effects:      by sink, what it has carried out, in the order in which it did; each key once.
    repeats:      by sink, how often it was given a key again.
    deaths:       each worker that died, with the error if it did not die of a fault.
    """

    decisions: Sequence[Decided]
    dead_letters: Sequence[Rejected]
    effects: Mapping[str, Sequence[Effect]]
    repeats: Mapping[str, int]
    deaths: Sequence[tuple[str, Exception | None]]

    def count(self, reason: str) -> int:
        """How many events were decided for this reason, like `model` or `fallback-late`."""
        return sum(each.reason == reason for each in self.decisions)

    def __getitem__(self, event_id: str) -> Decided:
        """The first decision about the event."""
        for each in self.decisions:
            if each.id == event_id:
                return each
        raise KeyError(f"no decision is about {event_id!r}; there are {', '.join(each.id for each in self.decisions)}")


def drive(
    pipeline: Pipeline[Any],
    items: Iterable[Item],
    *,
    seed: int = 0,
    partitions: int = 2,
    workers: int = 2,
    tuning: WorkerTuning | None = None,
    every_ms: float = EVERY_MS,
    deduplicate_ms: int | None = 3_600_000,
    **models: Any,
) -> Result:
    """Runs the pipeline over events and faults, until everything is decided and carried out.

        from app.testing import CRASH, Away, drive, late

        def test_a_blatant_payment_is_held_though_the_model_is_late_and_the_worker_dies() -> None:
            result = drive(fraud, [payment("a", 250), CRASH, Away("case-system"), payment("b", 10)], risk=late)
            assert result["a"].reason == "fallback-late"
            assert [effect.fields["payment"] for effect in result.effects["holds"]] == ["a"]

    It is the real thing, loops, checkpoints, frames and sinks, on a simulated outside: an item arrives every `every_ms`
    of simulated time, and no real time is spent. Records that are no events are given as Record, faults as in
    app.testing.faults. For each model of the pipeline, a keyword of its name says what it answers: a function of the
    input columns, an object with such a `predict`, Delayed, `late` or `failing`.

    `deduplicate_ms` is what the YAML calls `deduplicate`: how long the id of an event is remembered; None: not at all.

    The clock begins after the newest event, so that none is from the future. What is left to chance (how long things
    take, what a dying worker had still sent) the seed decides: the same arguments give the same result.

    Raises StuckError when the pipeline does not get done, and LogError when its decision log has a gap.
    """
    items = list(items)
    times = [_time_ms(item) for item in items if isinstance(item, Event)]
    simulation = Simulation(
        pipeline,
        models,
        seed=seed,
        partitions=partitions,
        workers=workers,
        tuning=tuning,
        deduplicate_ms=deduplicate_ms,
        start_ms=max(times, default=START_MS),
    )
    with simulation:
        simulation.wait_until_ready()
        for item in _in_order(items):
            simulation.take(item)
            simulation.run_for(every_ms)
        simulation.drain()
        return result_of(simulation)


def _time_ms(event: Event) -> float:
    return event.time if isinstance(event.time, int) else event.time.timestamp() * 1000


def _in_order(items: Iterable[Item]) -> Iterable[Any]:
    """The items as they arrive."""
    held: list[Event | Record] = []
    reordering = False
    for item in items:
        if isinstance(item, Reorder):
            reordering = True
        elif reordering and isinstance(item, Event | Record):
            held.append(item)
            if len(held) == 2:
                yield from reversed(held)
                held, reordering = [], False
        else:
            yield item
    yield from held


def result_of(simulation: Simulation) -> Result:
    """What has come of a simulation so far."""
    decisions: list[Decided] = []
    dead_letters: list[Rejected] = []
    consumer = MemoryConsumer(simulation.kafka)
    for partition in range(simulation.partitions):
        log = TopicPartition(simulation.decisions, partition)
        for fresh in first_copies(consumer, log, 0, Cursor(-1)):
            decisions += map(_decided, describe_decisions(fresh))
            dead_letters += [Rejected(partition, letter) for letter in fresh.dead_letters]
    return Result(
        decisions,
        dead_letters,
        {sink: list(simulation.receivers.effects[sink]) for sink in simulation.shared.sinks.names},
        {sink: simulation.receivers.repeats[sink] for sink in simulation.shared.sinks.names},
        [(process.name, process.error) for process in simulation.deaths],
    )


def _decided(row: Mapping[str, Any]) -> Decided:
    times_ms = row["times_ms"]
    return Decided(
        id=row["event_id"],
        partition=row["partition"],
        offset=row["offset"],
        event=row["event"],
        features=row["features"],
        scores=row["scores"],
        reason=row["reason"],
        actions=[{"type": each["type"], **each["fields"]} for each in row["actions"]],
        latency_ms=times_ms["logged"] - times_ms["appended"],
    )

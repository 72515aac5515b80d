"""The story of a schedule: everything that happened, in the order of simulated time."""

from collections.abc import Iterator

from app.log.frame import decode_header
from app.sources import TopicPartition
from app.testing.kafka import Stored
from app.testing.simulation import SOURCE, Simulation
from tests.explore.schedules import Schedule


def describe_schedule(schedule: Schedule) -> Iterator[str]:
    yield f"seed {schedule.seed}, fallback: {schedule.hasty}, deduplicate: {schedule.deduplicate}, {schedule.tuning}"
    for item, pause_ms in schedule.steps:
        yield f"  {item}, then {pause_ms} ms"


def tell(simulation: Simulation) -> Iterator[str]:
    """What was appended to which log, what the sinks carried out, and who died."""
    told: list[tuple[float, str]] = []
    for log, kept in simulation.kafka.logs.items():
        told += [(stored.append_ms, _describe(simulation, log, offset, stored)) for offset, stored in enumerate(kept)]
    for sink, effects in simulation.receivers.effects.items():
        told += [(effect.at_ms, f"{sink}: {effect.key} {effect.fields}") for effect in effects]
    told += [(death.died_ms, f"{death.name} died {death.error or ''}") for death in simulation.deaths]
    for at_ms, line in sorted(told, key=lambda each: each[0]):
        yield f"{at_ms - simulation.start_ms:9.1f} ms  {line}"


def _describe(simulation: Simulation, log: TopicPartition, offset: int, stored: Stored) -> str:
    if log.topic == simulation.decisions:
        header = decode_header(list(stored.headers))
        return f"{log}[{offset}]: a frame of {header.first}..{header.last}, {header.rejected} of it rejected"
    return f"{log}[{offset}]: {(stored.value or b'')!r}" if log.topic == SOURCE else f"{log}[{offset}]: published"

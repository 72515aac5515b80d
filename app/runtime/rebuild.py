"""After a change of the declared features: what of a checkpoint's state still fits, and the rest made from the log.

State fits when it was kept under the same declaration and lateness, whatever the classes are called and whichever
others there were beside it. Pure: the log is an argument.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from app.features import Features
from app.pipeline import Pipeline
from app.runtime.checkpoint import Checkpoint
from app.runtime.history import Milestone, latest_before
from app.runtime.task import SEEN, Task, TaskSettings, remembered_ms
from app.sources import Records

Arrays = Mapping[str, npt.NDArray[Any]]
MARK = "/fingerprint"


@dataclass(frozen=True)
class Fit:
    """A checkpoint beside what is declared now. `kept` is its state that fits; `features` are those that it has no
    state of, and `ids` says whether it has none of the ids that tell duplicates."""

    kept: Arrays
    features: tuple[type[Features], ...]
    ids: bool = False

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of what has to be made from the log."""
        return (*(each.__name__ for each in self.features), *(("the ids of the events",) if self.ids else ()))


def fit(pipeline: Pipeline[Any], settings: TaskSettings, checkpoint: Checkpoint) -> Fit:
    """Other ids would have told other duplicates, so that no state fits when they are remembered for another time."""
    state = checkpoint.state
    ids = {name: array for name, array in state.items() if name.startswith(SEEN)}
    if remembered_ms(ids) != settings.deduplicate_ms:
        return Fit({}, pipeline.features, settings.deduplicate_ms is not None)
    stored = {_declaration(state, name): name for name in _classes(state)}
    kept = dict(ids)
    changed = []
    for features in pipeline.features:
        name = stored.get((features.fingerprint(), settings.allowed_lateness_ms))
        if name is None:
            changed.append(features)
        else:
            kept |= _renamed(state, name, features.__name__)
    return Fit(kept, tuple(changed))


def needed_from(changed: Iterable[type[Features]], settings: TaskSettings, checkpoint: Checkpoint) -> Milestone:
    """From where the log must be read so that no event beyond the checkpoint misses one that its features would see.

    Such an event is not behind the watermark, so that its windows end there at the earliest. Features without a window
    need all since the partition began. What stands before is read for as long as ids are remembered, so that copies of
    it are known as such.
    """
    position = checkpoint.position
    if position.max_time_ms is None:  # nothing was ever taken in
        return Milestone(position.offset, None)
    reaches = [reach_ms(features) for features in changed]
    longest = max((each for each in reaches if each is not None), default=0)
    if None in reaches:
        return position.history[0]
    longest += settings.allowed_lateness_ms + (settings.deduplicate_ms or 0)
    return latest_before(position.history, position.max_time_ms - longest)


def rebuild(
    pipeline: Pipeline[Any],
    settings: TaskSettings,
    checkpoint: Checkpoint,
    start: Milestone,
    log: Iterable[Records],
    set_aside: Mapping[int, int] | None = None,
) -> Checkpoint:
    """The checkpoint with the state of what is declared now; `log` are the records from `start` to its offset.

    (A copy whose first copy stands before `start` counts as the first; that shows only where copies come again and
    again for longer than ids are remembered.)

    Features come out as if they had been declared all along. To the last bit where the log is read from where the
    partition began; otherwise a sum over a window can be put together in another order, of two doubles each.
    """
    found = fit(pipeline, settings, checkpoint)
    position = checkpoint.position
    begin = msgspec.structs.replace(position, offset=start.offset, max_time_ms=start.max_time_ms)
    task = Task(
        Pipeline(source=pipeline.source, features=found.features),
        settings,
        position.partition,
        next_offset=start.offset,
        decided_through=position.offset - 1,
        checkpoint=Checkpoint(begin, {}),
        set_aside=set_aside,
    )
    for records in log:
        task.admit(records)
    return Checkpoint(position, {**task.snapshot(position.log_offset).state, **found.kept})


def reach_ms(features: type[Features]) -> int | None:
    """The longest window; None when a feature looks back without one. (A ttl is never shorter than a window.)"""
    windows = [column.window_ms for column in features.declared if column.window_ms is not None]
    return max(windows) if len(windows) == len(features.declared) else None


def _classes(state: Arrays) -> list[str]:
    return [name.removesuffix(MARK) for name in state if name.endswith(MARK)]


def _declaration(state: Arrays, name: str) -> tuple[str, int]:
    return state[f"{name}{MARK}"].tobytes().decode(), int(state[f"{name}/allowed_lateness_ms"][0])


def _renamed(state: Arrays, name: str, new_name: str) -> dict[str, npt.NDArray[Any]]:
    prefix = f"{name}/"
    return {f"{new_name}/{key.removeprefix(prefix)}": state[key] for key in state if key.startswith(prefix)}


def up_to(log: Iterable[Records], end: int) -> Iterable[Records]:
    """The records before offset `end`, of polls that may go on beyond it."""
    for records in log:
        if records.offsets[-1] >= end:
            yield _first(records, int(np.searchsorted(records.offsets, end)))
            return
        yield records


def _first(records: Records, rows: int) -> Records:
    return Records(
        topic=records.topic,
        partition=records.partition,
        offsets=records.offsets[:rows],
        append_ms=records.append_ms[:rows],
        keys=records.keys[:rows],
        values=records.values[:rows],
        headers=lambda: records.headers()[:rows],
    )

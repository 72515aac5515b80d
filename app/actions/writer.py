"""Sink writers: what carries deliveries out, seen from the loop that feeds it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from app.actions.position import BEGINNING, Position
from app.errors import ActionError, HeadraceError


class Placed(Protocol):
    """What the loop needs to know of what it delivers: its idempotency key and its event's place in the source."""

    @property
    def key(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def append_ms(self) -> int: ...


D = TypeVar("D", bound=Placed)


@dataclass(frozen=True)
class Batch(Generic[D]):
    """The deliveries of one partition, in source order, that lead from one position to the next. May be empty."""

    partition: int
    start: Position
    end: Position
    deliveries: Sequence[D] = ()

    def before(self, delivery: D) -> Position:
        """Where the partition stands when everything before this delivery's event is carried out."""
        return Position(delivery.offset - 1, self.start.log_offset)


class Outcome(NamedTuple):
    """How far a batch came. Short of its end with an error: to be tried again after a while; without: at once."""

    position: Position
    error: HeadraceError | None = None
    dead_letters: int = 0


class SinkWriter(ABC, Generic[D]):
    """Carries out the deliveries of one sink. One thread uses it.

    `commits_each_batch`: whether the position is committed after each batch, because only that keeps a delivery
    from being repeated, or every half second.
    `commits_position`: whether `write` itself commits the position to the consumer group, with its effect; nobody else
    does then, as that would not be fenced.
    """

    commits_each_batch = False
    commits_position = False

    def resume(self, saved: Mapping[int, Position | None]) -> dict[int, Position]:
        """Where each partition goes on: at start, after a change of partitions and after each failure.

        `saved` is what the consumer group has of it. Raises ActionError or BrokerError when that cannot be said now.
        """
        return {partition: position or BEGINNING for partition, position in saved.items()}

    @abstractmethod
    def write(self, batches: Sequence[Batch[D]]) -> list[Outcome]:
        """Carries out one batch for each of several partitions; an outcome for each. An outcome with FencedError says
        that the partition is somebody else's: it is dropped until it is assigned again.

        A batch without deliveries tells of a position that has moved, or that is to be renewed.

        Raises ActionError or BrokerError when none can be said to have moved: the partitions are resumed then.
        """

    def save(self, batches: Sequence[Batch[D]]) -> list[Outcome]:
        """As `write`, for partitions that leave: batches without deliveries, whose ends are stored now or never.

        What is not stored is read again by the next worker, and counted again in its latency.
        """
        return self.write(batches)

    def deliver(self, delivery: D) -> None:
        """Carries out one delivery by itself, out of order and without a cursor: one that was refused before. Safe to
        repeat, as the key is the same.

        Raises RetryableActionError when the sink is away, ActionError when it refuses again.
        """
        raise ActionError(f"{type(self).__name__} refuses nothing for good, so it takes nothing a second time")

    def release(self, partition: int) -> None:
        """The partition is this loop's no more; it may come back, and is resumed then."""

    @abstractmethod
    def close(self) -> None: ...

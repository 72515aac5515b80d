"""Attempts: how often a sink has failed on an action, so that one which it always fails on is given up."""

from dataclasses import dataclass, field

from app.actions.action import Delivery
from app.actions.dead_letters import DeadLetters
from app.errors import RetryableActionError


class FailedAttemptError(RetryableActionError):
    """The sink is there, and failed on this action; it counts as an attempt."""


class Attempts:
    """Counts the failures on the actions of the event that each partition stands at; after `most` of them an action
    becomes a dead letter.

    The counts are in memory: a worker that begins anew begins to count anew, and gives up later. One thread at a time
    may be at a partition.
    """

    def __init__(self, most: int, dead_letters: DeadLetters) -> None:
        self._most = most
        self._dead_letters = dead_letters
        self._events: dict[int, _Event] = {}

    def is_given_up(self, delivery: Delivery) -> bool:
        """Whether it is a dead letter already, and only another action of its event keeps the cursor from passing."""
        event = self._events.get(delivery.partition)
        return event is not None and delivery.key in event.given_up

    def failed(self, delivery: Delivery, error: FailedAttemptError) -> None:
        """Returns when the delivery is a dead letter, after its last attempt; raises the error when it has more."""
        event = self._event(delivery)
        event.failures[delivery.key] = event.failures.get(delivery.key, 0) + 1
        if event.failures[delivery.key] < self._most:
            raise error
        self._give_up(event, delivery, str(error), event.failures[delivery.key])

    def refused(self, delivery: Delivery, reason: str) -> None:
        """Makes it a dead letter at once."""
        event = self._event(delivery)
        self._give_up(event, delivery, reason, event.failures.get(delivery.key, 0) + 1)

    def _give_up(self, event: "_Event", delivery: Delivery, reason: str, attempts: int) -> None:
        self._dead_letters.send(delivery, reason, attempts)
        event.given_up.add(delivery.key)

    def _event(self, delivery: Delivery) -> "_Event":
        event = self._events.get(delivery.partition)
        if event is None or event.offset != delivery.offset:
            event = self._events[delivery.partition] = _Event(delivery.offset)
        return event

    def close(self) -> None:
        self._dead_letters.close()


@dataclass
class _Event:
    """What has become of the actions of one event so far, by their idempotency keys."""

    offset: int
    failures: dict[str, int] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)

"""Attempts: how often a sink has failed on one action, so that an action which it always fails on is given up."""

from app.actions.action import Delivery
from app.actions.dead_letters import DeadLetters
from app.errors import RetryableActionError


class FailedAttemptError(RetryableActionError):
    """The sink is there, and failed on this action; it counts as an attempt."""


class Attempts:
    """Counts the failures on the delivery that each partition stands at, and gives it up after `most` of them.

    The counts are in memory: a worker that begins anew begins to count anew, and gives up later. For one thread a
    partition.
    """

    def __init__(self, most: int, dead_letters: DeadLetters) -> None:
        self._most = most
        self._dead_letters = dead_letters
        self._failures: dict[int, tuple[str, int]] = {}

    def failed(self, delivery: Delivery, error: FailedAttemptError) -> None:
        """Returns when the delivery is a dead letter after its last attempt; raises the error when it has more."""
        failures = self._before(delivery) + 1
        self._failures[delivery.partition] = (delivery.key, failures)
        if failures < self._most:
            raise error
        self._dead_letters.send(delivery, str(error), failures)

    def refused(self, delivery: Delivery, reason: str) -> None:
        """Makes it a dead letter at once."""
        self._dead_letters.send(delivery, reason, self._before(delivery) + 1)

    def _before(self, delivery: Delivery) -> int:
        key, failures = self._failures.get(delivery.partition, ("", 0))
        return failures if key == delivery.key else 0

    def close(self) -> None:
        self._dead_letters.close()

"""Dead letters: the deliveries that a sink refused for good."""

import threading
from collections.abc import Callable

from app.actions.action import Delivery
from app.actions.message import action_message, failure_message
from app.errors import RetryableActionError
from app.sources import Producer

FLUSH_TIMEOUT_S = 5.0


class DeadLetters:
    """Writes the deliveries of one sink to the dead-letter topic. The producer is opened for the first one.

    Any thread may call `send`. A delivery is there before the cursor passes it; after a crash in between it is there
    twice, with the same idempotency key.
    """

    def __init__(self, sink: str, topic: str, open_producer: Callable[[], Producer]) -> None:
        self._sink = sink
        self._topic = topic
        self._open_producer = open_producer
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def send(self, delivery: Delivery, reason: str, attempts: int) -> None:
        """Returns when the broker has it. Raises BrokerError or RetryableActionError when it may not have."""
        message = failure_message(delivery, action_message(self._sink, delivery), reason, attempts)
        with self._lock:
            if self._producer is None:
                self._producer = self._open_producer()
            self._producer.send(self._topic, message.value, key=message.key, headers=message.headers)
            if self._producer.flush(FLUSH_TIMEOUT_S):
                raise RetryableActionError(
                    f"the dead letter {delivery.key} is not acknowledged after {FLUSH_TIMEOUT_S:g} s "
                    f"({self._producer.last_error or 'no error is known'})"
                )

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close()

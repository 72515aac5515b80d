"""Post: an HTTP request per action, to a webhook."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Annotated

import httpx
import msgspec
from pydantic import Field

from app.actions.action import Delivery, Sink
from app.actions.dead_letters import DeadLetters
from app.actions.writer import Batch, Outcome, SinkWriter
from app.config import DurationMs, Settings
from app.errors import ActionError, BrokerError, RetryableActionError
from app.units import parse_duration_ms

BUSY = {429, 503}
PASSING = {408, 425, *BUSY}
"""Answers below 500 that the same request may not get again, and those that say the receiver is busy, not broken."""
STEP_MS = 1_000
"""Deliveries of a partition go on for this long before the loop looks at its assignment again."""
MOST_PARTITIONS_AT_ONCE = 16


class Post(Sink, frozen=True):
    """A POST for each action: the fields as JSON, with the idempotency key as the header `Idempotency-Key`.

    In source order within a partition, one at a time; partitions go in parallel. At least once: after a crash the
    last requests are repeated with the same keys, and the receiver keeps the first. 2xx is done. The receiver being
    out of reach or busy (no connection, 429, 503) is waited for without end: the backlog is the log. Other answers of
    500 and above, 408, 425 and a broken or late answer are tried `attempts` times. What is left is refused for
    good, at once, and becomes a dead letter.
    """


class PostSettings(Settings):
    """url:      where to; "off" does not run the sink.
    headers:  sent along, like an Authorization.
    timeout:  for the connection and for each wait for the answer.
    attempts: how often an action is tried that the receiver fails on, before it becomes a dead letter; 20 are about
              4 minutes with the waits in between.
    """

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    headers: Mapping[str, str] = {}
    timeout_ms: DurationMs = Field(default=parse_duration_ms("5s"), alias="timeout")
    attempts: int = Field(default=20, ge=1)


class RefusedError(ActionError):
    """The receiver will not take this action, however often it is asked."""


class FailedAttemptError(RetryableActionError):
    """The receiver failed on this action; it counts as an attempt."""


class Poster(SinkWriter[Delivery]):
    """See Post. `halt` ends a batch between two requests."""

    commits_each_batch = True

    def __init__(
        self,
        settings: PostSettings,
        dead_letters: DeadLetters,
        halt: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.BaseTransport | None = None,
        threads: Executor | None = None,
    ) -> None:
        self._url = httpx.URL(settings.url)
        self._receiver = f"{self._url.scheme}://{self._url.netloc.decode()}"  # paths can hold secrets
        self._attempts = settings.attempts
        self._dead_letters = dead_letters
        self._halt = halt
        self._clock_s = clock
        headers = {"Content-Type": "application/json", **settings.headers}
        self._client = httpx.Client(
            timeout=settings.timeout_ms / 1000,
            headers=headers,
            limits=httpx.Limits(max_connections=MOST_PARTITIONS_AT_ONCE),
            transport=transport,
        )
        self._threads = threads or ThreadPoolExecutor(MOST_PARTITIONS_AT_ONCE, "post")
        self._failures: dict[int, tuple[str, int]] = {}

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        """Moves each partition as far as a second allows."""
        until_s = self._clock_s() + STEP_MS / 1000
        return list(self._threads.map(lambda batch: self._post_in_order(batch, until_s), batches))

    def _post_in_order(self, batch: Batch[Delivery], until_s: float) -> Outcome:
        dead_letters = 0
        for delivery in batch.deliveries:
            if self._halt.is_set() or self._clock_s() > until_s:
                return Outcome(batch.before(delivery), None, dead_letters)
            try:
                dead_letters += self._deliver(delivery)
            except (RetryableActionError, BrokerError) as error:
                return Outcome(batch.before(delivery), error, dead_letters)
        return Outcome(batch.end, None, dead_letters)

    def _deliver(self, delivery: Delivery) -> bool:
        """Whether it became a dead letter. Raises RetryableActionError when it is still to be delivered."""
        failures = self._failures_of(delivery)
        try:
            self._post(delivery)
        except FailedAttemptError as error:
            self._failures[delivery.partition] = (delivery.key, failures + 1)
            if failures + 1 < self._attempts:
                raise
            self._dead_letters.send(delivery, str(error), failures + 1)
            return True
        except RefusedError as error:
            self._dead_letters.send(delivery, str(error), failures + 1)
            return True
        return False

    def _failures_of(self, delivery: Delivery) -> int:
        key, failures = self._failures.get(delivery.partition, ("", 0))
        return failures if key == delivery.key else 0

    def _post(self, delivery: Delivery) -> None:
        body = msgspec.json.encode(delivery.fields)
        try:
            answer = self._client.post(self._url, content=body, headers={"Idempotency-Key": delivery.key})
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise RetryableActionError(f"{self._receiver} is out of reach: {error!r}") from error
        except httpx.HTTPError as error:
            raise FailedAttemptError(f"{self._receiver} gave no answer: {error!r}") from error
        if answer.is_success:
            return
        said = f"{self._receiver} answered {answer.status_code} {answer.reason_phrase}".rstrip()
        if answer.status_code in BUSY:
            raise RetryableActionError(said)
        if answer.status_code in PASSING or answer.is_server_error:
            raise FailedAttemptError(said)
        raise RefusedError(said)

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()
        self._dead_letters.close()

"""Post: an HTTP request per action, to a webhook."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Annotated

import httpx
import msgspec
from pydantic import Field, field_validator

from app.actions.action import Delivery, Sink
from app.actions.attempts import Attempts, FailedAttemptError
from app.actions.dead_letters import DeadLetters
from app.actions.position import Position
from app.actions.writer import Batch, Outcome, SinkWriter
from app.config import DurationMs, Settings
from app.errors import ActionError, BrokerError, RetryableActionError, SinkAwayError
from app.units import parse_duration_ms

BUSY = {429, 503}
PASSING = {408, 425, *BUSY}
"""Answers below 500 that the same request may not get again, and those that say the receiver is busy, not broken."""
STEP_MS = 1_000
"""Deliveries of a partition go on for this long before the loop looks at its assignment again."""
MOST_PARTITIONS_AT_ONCE = 16
LOOK_S = 0.25
"""How often a write that waits for answers looks whether it is to end."""
LAST_WAIT_S = 5.0
LONGEST_TIMEOUT_MS = 30_000


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
    timeout:  for the connection and for each wait for the answer; 30 s at most, half of what a sink may take until its
              worker counts as stalled.
    attempts: how often an action is tried that the receiver fails on, before it becomes a dead letter; 20 are about
              4 minutes with the waits in between.
    """

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    headers: Mapping[str, str] = {}
    timeout_ms: DurationMs = Field(default=parse_duration_ms("5s"), alias="timeout")
    attempts: int = Field(default=20, ge=1)

    @field_validator("timeout_ms")
    @classmethod
    def _is_no_stall(cls, timeout_ms: int) -> int:
        if timeout_ms > LONGEST_TIMEOUT_MS:
            raise ValueError(f"{timeout_ms / 1000:g} s is too long; write 30s or less")
        return timeout_ms


class RefusedError(ActionError):
    """The receiver will not take this action, however often it is asked."""


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
        self._attempts = Attempts(settings.attempts, dead_letters)
        self._halt = halt
        self._clock_s = clock
        headers = {"Content-Type": "application/json", **settings.headers}
        self._client = httpx.Client(
            timeout=settings.timeout_ms / 1000,
            headers=headers,
            limits=httpx.Limits(max_connections=MOST_PARTITIONS_AT_ONCE),
            transport=transport,
        )
        self._reached: dict[int, Position] = {}
        self._threads = threads or ThreadPoolExecutor(MOST_PARTITIONS_AT_ONCE, "post")

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        """Moves each partition as far as a second allows. A request that is under way when `halt` is set has 5 s more;
        then it is left behind, to be repeated with the same key by whoever is next."""
        until_s = self._clock_s() + STEP_MS / 1000
        self._reached |= {batch.partition: batch.start for batch in batches}
        answers = {
            batch.partition: self._threads.submit(self._post_in_order, batch, until_s)
            for batch in batches
            if batch.deliveries
        }
        self._wait_for(answers.values())
        return [self._outcome(batch, answers.get(batch.partition)) for batch in batches]

    def _wait_for(self, answers: Collection[Future[Outcome]]) -> None:
        while not self._halt.is_set():
            if not wait(answers, LOOK_S).not_done:
                return
        wait(answers, LAST_WAIT_S)

    def _outcome(self, batch: Batch[Delivery], answer: Future[Outcome] | None) -> Outcome:
        if answer is None:
            return Outcome(batch.end)
        return answer.result() if answer.done() else Outcome(self._reached[batch.partition])

    def _post_in_order(self, batch: Batch[Delivery], until_s: float) -> Outcome:
        dead_letters = 0
        for delivery in batch.deliveries:
            self._reached[batch.partition] = batch.before(delivery)
            if self._halt.is_set() or self._clock_s() > until_s:
                return Outcome(batch.before(delivery), None, dead_letters)
            try:
                dead_letters += self._deliver(delivery)
            except (RetryableActionError, BrokerError) as error:
                return Outcome(batch.before(delivery), error, dead_letters)
        return Outcome(batch.end, None, dead_letters)

    def _deliver(self, delivery: Delivery) -> bool:
        """Whether it became a dead letter now. Raises RetryableActionError when it is still to be delivered."""
        if self._attempts.is_given_up(delivery):
            return False
        try:
            self._post(delivery)
        except FailedAttemptError as error:
            self._attempts.failed(delivery, error)
        except RefusedError as error:
            self._attempts.refused(delivery, str(error))
        else:
            return False
        return True

    def deliver(self, delivery: Delivery) -> None:
        try:
            self._post(delivery)
        except FailedAttemptError as error:
            raise RefusedError(str(error)) from error

    def _post(self, delivery: Delivery) -> None:
        body = msgspec.json.encode(delivery.fields)
        try:
            answer = self._client.post(self._url, content=body, headers={"Idempotency-Key": delivery.key})
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise SinkAwayError(f"{self._receiver} is out of reach: {error!r}") from error
        except httpx.HTTPError as error:
            raise FailedAttemptError(f"{self._receiver} gave no answer: {error!r}") from error
        if answer.is_success:
            return
        said = f"{self._receiver} answered {answer.status_code} {answer.reason_phrase}".rstrip()
        if answer.status_code in BUSY:
            raise SinkAwayError(said)
        if answer.status_code in PASSING or answer.is_server_error:
            raise FailedAttemptError(said)
        raise RefusedError(said)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._attempts.close()

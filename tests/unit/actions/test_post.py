"""Post: requests in order, each key at least once, and what becomes of every answer."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Delivery
from app.actions.dead_letters import DeadLetters
from app.actions.loop import SinkLoop
from app.actions.post import Poster, PostSettings
from app.actions.selection import OneAction
from app.errors import ActionError, RetryableActionError
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer
from tests.unit.actions.crashes import Clock, append, catch_up, committed, kafka_with, run_over_crashes
from tests.unit.actions.decision_log import DECISIONS, LETTERS, PIPELINE, Hold, Row, Written, decision_logs, effects_of

Answer = Callable[[httpx.Request], httpx.Response]


class Receiver:
    """A webhook that keeps the first request of each Idempotency-Key, and counts all."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer or (lambda request: httpx.Response(200))
        self.requests: list[httpx.Request] = []
        self.kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            answer = self.answer(request)
            if answer.is_success:
                self.kept.setdefault(request.headers["Idempotency-Key"], msgspec.json.decode(request.content))
            return answer

    @property
    def keys(self) -> list[str]:
        return [request.headers["Idempotency-Key"] for request in self.requests]


def open_poster(
    kafka: MemoryKafka, receiver: Answer, clock: Any = None, tick_s: float = 0.2, **changes: Any
) -> SinkLoop[Any]:
    halt = threading.Event()
    chosen = PostSettings.model_validate({"url": "https://case.example/holds?token=hidden", **changes})
    letters = DeadLetters("cases", LETTERS, lambda: MemoryProducer(kafka))
    return SinkLoop(
        pipeline=PIPELINE,
        sink="cases",
        log_topic=DECISIONS,
        open_consumer=lambda: MemoryConsumer(kafka, f"{PIPELINE}.cases"),
        selection=OneAction(PIPELINE, Hold, "card"),
        writer=Poster(chosen, letters, halt, clock or (lambda: 0.0), httpx.MockTransport(receiver)),
        halt=halt,
        clock=Clock(tick_s),
    )


def holds(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1)))


@settings(deadline=None, max_examples=50)
@given(
    frames=decision_logs(),
    crashes=st.lists(st.integers(0, 30), max_size=4),
    failures=st.lists(st.sampled_from([200, 200, 500, 503, 429, "cut"]), max_size=20),
)
def test_the_receiver_keeps_each_hold_once_and_in_order_whatever_fails(
    frames: list[Written], crashes: list[int], failures: list[Any]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        status = failures.pop() if failures else 200
        if status == "cut":
            raise httpx.ReadError("connection reset")
        return httpx.Response(status)

    receiver = Receiver(answer)
    kafka = kafka_with(frames)
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver, attempts=50), crashes)
    for partition, expected in effects_of(frames).holds.items():
        kept = {key: body for key, body in receiver.kept.items() if key.startswith(f"{PIPELINE}/{partition}/")}
        wanted = {key: {"type": "Hold", "payment": row.payment, "risk": row.risk} for key, row in expected}
        assert list(kept.items()) == list(wanted.items())
    assert not kafka.records(LETTERS)


def test_without_a_crash_every_request_is_made_once() -> None:
    receiver, kafka = Receiver(), kafka_with([holds(0, 9), holds(5, 12), holds(0, 3, partition=1)])
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver), [])
    assert sorted(receiver.keys) == sorted(
        [f"fraud/0/{offset}/0" for offset in range(13)] + [f"fraud/1/{offset}/0" for offset in range(4)]
    )


def test_a_crash_between_two_steps_repeats_no_request() -> None:
    receiver, kafka = Receiver(), kafka_with([holds(0, 4)])
    for last in (4, 9):
        loop = open_poster(kafka, receiver, tick_s=0.001)
        loop.assign([0, 1])
        loop.step(0)
        append(kafka, holds(last + 1, last + 5))
        loop.step(0)  # soon after the other: no commit is due
    assert receiver.keys == [f"fraud/0/{offset}/0" for offset in range(15)]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 302])
def test_an_answer_that_refuses_makes_a_dead_letter_at_once_and_the_next_goes_on(status: int) -> None:
    receiver = Receiver(lambda request: httpx.Response(status if b'"p1"' in request.content else 200))
    kafka = kafka_with([holds(0, 2)])
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver), [])
    assert receiver.keys == [f"fraud/0/{offset}/0" for offset in range(3)]
    [(_, letter)] = kafka.records(LETTERS)
    assert msgspec.json.decode(letter.value or b"") == {"type": "Hold", "payment": "p1", "risk": 0.5}
    headers = dict(letter.headers)
    assert (headers["idempotency-key"], headers["sink"], headers["attempts"]) == (b"fraud/0/1/0", b"cases", b"1")
    assert str(status).encode() in (headers["reason"] or b"")


@pytest.mark.parametrize("status", [500, 502, 408, 425])
def test_an_action_that_the_receiver_fails_on_is_given_up_after_the_attempts(status: int) -> None:
    receiver = Receiver(lambda request: httpx.Response(status if b'"p0"' in request.content else 200))
    kafka = kafka_with([holds(0, 1)])
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver, attempts=3), [])
    assert receiver.keys == ["fraud/0/0/0"] * 3 + ["fraud/0/1/0"]
    assert [dict(letter.headers)["attempts"] for _, letter in kafka.records(LETTERS)] == [b"3"]


def test_two_actions_of_one_event_that_both_fail_are_each_given_up_once() -> None:
    receiver = Receiver(lambda request: httpx.Response(500 if b'"p0"' in request.content else 200))
    kafka = kafka_with([Written(0, (Row(0, "decided", 0.5, ("Hold", "Hold")), Row(1, "decided", 0.5, ("Hold",))))])
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver, attempts=3), [])
    assert receiver.keys == ["fraud/0/0/0"] * 3 + ["fraud/0/0/1"] * 3 + ["fraud/0/1/0"]
    letters = [dict(letter.headers) for _, letter in kafka.records(LETTERS)]
    assert [(each["idempotency-key"], each["attempts"]) for each in letters] == [
        (b"fraud/0/0/0", b"3"),
        (b"fraud/0/0/1", b"3"),
    ]


@pytest.mark.parametrize("away", [httpx.ConnectError("refused"), httpx.ConnectTimeout("late"), 503, 429])
def test_a_receiver_that_is_away_or_busy_is_waited_for_without_end(away: Any) -> None:
    left = [away] * 30

    def answer(request: httpx.Request) -> httpx.Response:
        if not left:
            return httpx.Response(200)
        if isinstance(error := left.pop(), httpx.HTTPError):
            raise error
        return httpx.Response(error)

    receiver, kafka = Receiver(answer), kafka_with([holds(0, 0)])
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver, attempts=3), [])
    assert receiver.keys == ["fraud/0/0/0"] * 31
    assert not kafka.records(LETTERS)


def test_one_partition_that_fails_does_not_hold_up_another() -> None:
    receiver = Receiver(
        lambda request: httpx.Response(503 if "fraud/0/" in request.headers["Idempotency-Key"] else 200)
    )
    kafka = kafka_with([holds(0, 0), holds(0, 5, partition=1)])
    loop = open_poster(kafka, receiver)
    loop.assign([0, 1])
    for _ in range(20):
        loop.step(0)
    assert set(receiver.kept) == {f"fraud/1/{offset}/0" for offset in range(6)}
    assert loop.status().partitions[0].retries > 0
    assert loop.status().partitions[1].retries == 0


def test_the_status_tells_the_error_but_not_the_secrets_of_the_address() -> None:
    kafka = kafka_with([holds(0, 0)])
    loop = open_poster(kafka, Receiver(lambda request: httpx.Response(503)))
    loop.assign([0])
    while not (error := loop.status().partitions.get(0) and loop.status().partitions[0].error):
        loop.step(0)
    assert error == "https://case.example answered 503 Service Unavailable"


def test_requests_carry_the_configured_headers_and_json() -> None:
    receiver, kafka = Receiver(), kafka_with([holds(0, 0)])
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver, headers={"Authorization": "Bearer t"}), [])
    [request] = receiver.requests
    assert (request.method, request.headers["Authorization"]) == ("POST", "Bearer t")
    assert request.headers["Content-Type"] == "application/json"


def test_a_slow_receiver_ends_the_step_after_a_second_and_the_rest_follows_without_repetition() -> None:
    receiver, kafka = Receiver(), kafka_with([holds(0, 9)])
    loop = open_poster(kafka, receiver, clock=Clock(tick_s=0.3))
    loop.assign([0, 1])
    while not receiver.requests:
        loop.step(0)
    assert 0 < len(receiver.requests) < 10
    catch_up(kafka, loop)
    assert receiver.keys == [f"fraud/0/{offset}/0" for offset in range(10)]
    assert loop.status().partitions[0].retries == 0


def deliver(answer: Answer, **changes: Any) -> None:
    settings = PostSettings.model_validate({"url": "https://case.example/holds", **changes})
    letters = DeadLetters("cases", LETTERS, lambda: MemoryProducer(kafka_with([])))
    poster = Poster(settings, letters, threading.Event(), transport=httpx.MockTransport(answer))
    poster.deliver(Delivery("fraud/0/7/0", "payments", 0, 7, 1_000, "c1", {"type": "Hold", "payment": "p7"}))
    poster.close()


def test_one_delivery_by_itself_has_the_key_that_it_had_before() -> None:
    receiver = Receiver()
    deliver(receiver)
    assert receiver.kept == {"fraud/0/7/0": {"type": "Hold", "payment": "p7"}}


@pytest.mark.parametrize(
    ("status", "away"), [(422, False), (404, False), (500, False), (408, False), (503, True), (429, True)]
)
def test_one_delivery_by_itself_tells_a_refusal_from_a_receiver_that_is_away(status: int, away: bool) -> None:
    with pytest.raises(ActionError, match=str(status)) as raised:
        deliver(lambda request: httpx.Response(status))
    assert isinstance(raised.value, RetryableActionError) is away


def test_stopping_ends_a_batch_between_two_requests_and_commits_what_is_done() -> None:
    kafka = kafka_with([holds(0, 9)])
    loops: list[SinkLoop[Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if b'"p3"' in request.content:
            loops[0].stop()
        return httpx.Response(200)

    receiver = Receiver(answer)
    loops.append(open_poster(kafka, receiver))
    loops[0].assign([0, 1])
    while len(receiver.requests) < 4:
        loops[0].step(0)
    loops[0].close()
    assert loops[0].step(0).events == 0
    append(kafka, holds(10, 10))
    run_over_crashes(kafka, lambda: open_poster(kafka, receiver), [])
    assert receiver.keys == [f"fraud/0/{offset}/0" for offset in range(11)]
    assert committed(kafka, "fraud.cases", 0) == 2

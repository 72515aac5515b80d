"""Dead letters sent again: each once, whenever whoever sends them dies."""

from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Delivery
from app.actions.letters import REJECTS, Case, plan_replay
from app.actions.message import Message, action_message, failure_message, reject_message
from app.actions.selection import Reject
from app.actions.writer import Batch, Outcome, SinkWriter
from app.errors import ActionError, BrokerError, RetryableActionError
from app.log.frame import DeadLetter
from app.log.replayed import original_headers, replay_of
from app.operate.letter_log import LetterLog
from app.testing.kafka import Crash, MemoryConsumer, MemoryKafka, MemoryProducer
from tests.unit.actions.decision_log import LETTERS, SOURCE

PARTITIONS = 2
HEADERS = (("trace", b"1"), ("empty", None))


def kafka_of(records: int, deliveries: int = 0) -> MemoryKafka:
    """A source of which every record was rejected, and a sink that has refused the deliveries."""
    kafka = MemoryKafka()
    for topic in (SOURCE, LETTERS):
        kafka.create(topic, PARTITIONS)
    for at in range(records):
        partition, key, value = at % PARTITIONS, b"k%d" % at, b"v%d" % at
        offset = kafka.append(SOURCE, partition, value, key, HEADERS, 1_000)
        letter = DeadLetter(offset, 1_000, "no event", key, value, "parse", HEADERS)
        reject = Reject(f"fraud/{partition}/{offset}/rejected", SOURCE, partition, offset, letter)
        store(kafka, partition, reject_message(REJECTS, reject))
    for at in range(deliveries):
        delivery = Delivery(f"fraud/0/{at}/0", SOURCE, 0, at, 1_000, "c", {"type": "Hold", "payment": f"p{at}"})
        refused = failure_message(delivery, action_message("cases", delivery), "answered 422", 1)
        store(kafka, at % PARTITIONS, refused)
    return kafka


def store(kafka: MemoryKafka, partition: int, message: Message) -> None:
    kafka.append(LETTERS, partition, message.value, message.key, message.headers, 2_000)


def log_of(kafka: MemoryKafka) -> LetterLog:
    return LetterLog("fraud", LETTERS, MemoryConsumer(kafka, None), MemoryProducer(kafka))


def nothing(_: int) -> None: ...


def replay_everything(kafka: MemoryKafka) -> None:
    """What the command does."""
    log = log_of(kafka)
    plan = plan_replay(log.read(), again=False, most_attempts=5)
    log.replay_begun(plan.begun, nothing)
    log.replay(plan.anew, nothing)


def replayed(kafka: MemoryKafka) -> list[tuple[str, int]]:
    found = [replay_of(stored.headers) for _, stored in kafka.records(SOURCE)]
    return sorted(each for each in found if each is not None)


def open_letters(kafka: MemoryKafka) -> list[str]:
    return sorted(case.letter.id for case in log_of(kafka).read() if case.is_open)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 9), st.lists(st.integers(0, 70), max_size=4), st.sampled_from([1, 3, 500]))
def test_each_letter_is_replayed_once_whenever_the_replay_is_killed_and_run_again(
    records: int, crashes: Sequence[int], chunk: int
) -> None:
    kafka = kafka_of(records)
    with patch("app.operate.letter_log.CHUNK", chunk):
        for operations in [*crashes, None]:
            kafka.operations_left = operations
            try:
                replay_everything(kafka)
            except Crash:
                continue
    assert replayed(kafka) == sorted((f"{at % PARTITIONS}/{at // PARTITIONS}", 1) for at in range(records))
    assert open_letters(kafka) == []


def test_a_replayed_record_is_as_it_was_and_comes_to_the_partition_it_was_in() -> None:
    kafka = kafka_of(3)
    replay_everything(kafka)
    [first, second, again, also] = [stored for partition, stored in kafka.records(SOURCE) if partition == 0]
    assert (again.key, again.value, original_headers(again.headers)) == (first.key, first.value, HEADERS)
    assert (also.key, also.value, original_headers(also.headers)) == (second.key, second.value, HEADERS)


def test_what_was_replayed_is_not_open_and_what_is_rejected_again_is_another_letter() -> None:
    kafka = kafka_of(2)
    replay_everything(kafka)
    assert open_letters(kafka) == []
    again = DeadLetter(1, 3_000, "no event", b"k0", b"v0", "parse", HEADERS, 2)
    reject = Reject("fraud/0/1/rejected", SOURCE, 0, 1, again)
    store(kafka, 0, reject_message(REJECTS, reject))
    assert open_letters(kafka) == ["0/1"]
    replay_everything(kafka)
    assert replayed(kafka) == [("0/0", 1), ("0/1", 2), ("1/0", 1)]


def test_what_is_dropped_is_not_open_and_a_copy_that_a_crash_left_changes_nothing() -> None:
    kafka = kafka_of(2)
    copies = kafka.records(LETTERS)
    log = log_of(kafka)
    log.drop(list(log.read()), nothing)
    for partition, stored in copies:
        kafka.append(LETTERS, partition, stored)
    assert open_letters(kafka) == []
    assert replayed(kafka) == []


def test_a_broker_that_acknowledges_nothing_says_that_the_command_can_be_run_again() -> None:
    kafka = kafka_of(2)
    log = log_of(kafka)
    cases = list(log.read())
    kafka.refuse_appends = 1
    with pytest.raises(BrokerError, match="run the same command again, it repeats nothing"):
        log.replay(cases, nothing)


class Cases(SinkWriter[Delivery]):
    """A sink with an answer for each payment; by default it takes everything."""

    def __init__(self, answers: dict[str, Exception] | None = None) -> None:
        self.answers = answers or {}
        self.taken: list[Delivery] = []

    def deliver(self, delivery: Delivery) -> None:
        if error := self.answers.get(delivery.fields["payment"]):
            raise error
        self.taken.append(delivery)

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        raise NotImplementedError

    def close(self) -> None: ...


def deliver(kafka: MemoryKafka, sink: Cases) -> list[tuple[str, str]]:
    log = log_of(kafka)
    cases: list[Case] = [case for case in log.read() if case.is_open]
    return [(refused.letter.id, refused.why) for refused in log.deliver(cases, sink, nothing)]


def test_a_delivery_goes_back_to_its_sink_alone_with_the_key_it_had() -> None:
    kafka, sink = kafka_of(0, deliveries=3), Cases()
    assert deliver(kafka, sink) == []
    assert sorted(each.key for each in sink.taken) == ["fraud/0/0/0", "fraud/0/1/0", "fraud/0/2/0"]
    assert kafka.records(SOURCE) == []
    assert open_letters(kafka) == []


def test_a_delivery_that_is_refused_again_stays_open_and_has_one_attempt_less() -> None:
    kafka, sink = kafka_of(0, deliveries=2), Cases({"p1": ActionError("answered 422")})
    for attempts in range(1, 5):
        assert deliver(kafka, sink) == [("0/1/0@cases", "answered 422")]
        assert open_letters(kafka) == ["0/1/0@cases"]
        found = log_of(kafka).read().find("0/1/0@cases")
        assert found is not None
        assert found.replays == attempts
    [refused] = plan_replay([found], again=False, most_attempts=5).refused
    assert refused.why.startswith("it was tried 5 times")
    assert len(sink.taken) == 1


def test_a_sink_that_is_away_leaves_this_letter_and_the_following_as_they_are() -> None:
    kafka, sink = kafka_of(0, deliveries=3), Cases({"p2": RetryableActionError("out of reach")})
    with pytest.raises(RetryableActionError):
        deliver(kafka, sink)  # in the order of partitions: 0, 2, then 1
    assert open_letters(kafka) == ["0/1/0@cases", "0/2/0@cases"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=4))
def test_a_delivery_is_repeated_with_the_same_key_after_a_crash_and_never_left_out(crashes: Sequence[int]) -> None:
    kafka, sink = kafka_of(0, deliveries=4), Cases()
    for operations in [*crashes, None]:
        kafka.operations_left = operations
        try:
            deliver(kafka, sink)
        except Crash:
            continue
    assert {each.key for each in sink.taken} == {f"fraud/0/{at}/0" for at in range(4)}
    assert len(sink.taken) <= 4 + len(crashes)
    assert open_letters(kafka) == []

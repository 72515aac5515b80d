"""When an outage is over, for a client of librdkafka: a probe asks, which is a double here as it has to be held up."""

import threading
from collections.abc import Callable
from typing import Any

import confluent_kafka as ck
import pytest

from app.errors import BrokerError
from app.sources import KafkaSettings, TopicPartition
from app.sources.confluent import link as confluent_link
from app.sources.confluent.link import Link

PLACE = TopicPartition("t", 1)
AWAY = ck.KafkaError(ck.KafkaError._TRANSPORT, "hung up")
DEADLINE_S = 10


class Probe:
    """Asked for the ends of partitions, it says what `answer` does."""

    def __init__(self, answer: Callable[[], str | None]) -> None:
        self._answer = answer
        self.asked: list[list[tuple[str, int]]] = []
        self.closed = threading.Event()

    def offsets_for_times(self, wanted: list[Any], timeout: float) -> list[Any]:
        self.asked.append([(each.topic, each.partition) for each in wanted])
        if error := self._answer():
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT, error))
        return [ck.TopicPartition("t", 1, 5)]

    def close(self) -> None:
        self.closed.set()


def watch_with(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], str | None]) -> tuple[Link, Probe]:
    probe = Probe(answer)
    monkeypatch.setattr(confluent_link, "PROBE_INTERVAL_S", 0.001)
    monkeypatch.setattr(confluent_link.ck, "Consumer", lambda *_, **__: probe)
    return Link(KafkaSettings(bootstrap="a:1"), lambda: {PLACE}), probe


@pytest.mark.parametrize(
    "code",
    [
        ck.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        ck.KafkaError.COORDINATOR_NOT_AVAILABLE,
        ck.KafkaError.NOT_COORDINATOR,
        ck.KafkaError.LEADER_NOT_AVAILABLE,
    ],
)
def test_a_broker_that_is_sorting_itself_out_is_not_ready_and_refuses_nothing(code: int) -> None:
    said = r"Kafka at a:1 is out of reach, or not ready \(Broker: "
    with pytest.raises(BrokerError, match=said), Link(KafkaSettings(bootstrap="a:1")).request():
        raise ck.KafkaException(ck.KafkaError(code))


def test_an_outage_is_over_when_the_leaders_of_what_is_read_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str | None] = ["no leader", "no leader", None]
    link, probe = watch_with(monkeypatch, lambda: answers.pop(0))
    link.note(AWAY)
    assert "hung up" in str(link.last_error)
    assert probe.closed.wait(DEADLINE_S)
    assert link.last_error is None
    assert probe.asked == [[PLACE]] * 3


def test_an_error_that_comes_while_the_probe_asks_keeps_the_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [AWAY]

    def answer() -> None:
        if errors:
            link.note(errors.pop())

    link, probe = watch_with(monkeypatch, answer)
    link.note(AWAY)
    assert link.last_error is not None
    assert probe.closed.wait(DEADLINE_S)
    assert len(probe.asked) == 2
    assert link.last_error is None


def test_nobody_is_asked_once_the_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    link, probe = watch_with(monkeypatch, lambda: "no leader")
    link.note(AWAY)
    assert link.last_error is not None
    link.close()
    assert probe.closed.wait(DEADLINE_S)
    assert link.last_error is not None

import json
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from app.api.backend import Backend
from app.api.http import create_api
from app.api.tail import LogTail
from app.errors import BrokerError
from app.testing.kafka import MemoryConsumer, MemoryKafka
from tests.unit.api.stand_in import (
    DECISIONS,
    SOURCE,
    Coordinator,
    DecidedProducer,
    Stream,
    WaitingConsumer,
    make_backend,
    payment,
)

DEADLINE_S = 10


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "not within 10 s"
        time.sleep(0.005)


@pytest.fixture
def decide(client: TestClient, stream: Stream, backend: Backend) -> Callable[..., None]:
    """Puts payments into the stream and returns when the API has read what became of them."""

    def decide(*payments: dict[str, object]) -> None:
        for each in payments:
            key = str(each["card"]).encode()
            offset = stream.broker.append(SOURCE, 0, json.dumps(each).encode(), key)
        stream.decide_all()
        backend.recent.when_decided(0, offset).result(DEADLINE_S)

    return decide


def test_a_decision_says_what_was_known_and_what_was_decided(client, decide, coordinator: Coordinator):
    decide(payment("p1", amount=400.0), payment("p2", amount=900.0))
    decision = client.get("/decisions/p2").json()
    assert decision["event"] == payment("p2", amount=900.0, time_ms=decision["event"]["time"]) | {"tip": None}
    assert decision["features"] == {"payments": 2, "spent": 1300.0}
    assert decision["scores"] == {"risk": 0.9}
    assert (decision["reason"], decision["versions"]) == ("model", {"risk": "v1"})
    place = [decision[name] for name in ("topic", "partition", "offset", "log_offset")]
    assert place == ["payments", 0, 1, 0]
    (action,) = decision["actions"]
    assert action["type"] == "Hold"
    assert action["key"] == "fraud/0/1/0"
    assert action["fields"] == {"payment": "p2", "risk": 0.9}


def test_a_decision_says_when_it_reached_each_stage_and_how_long_each_took(client, decide):
    decide(payment("p1"))
    decision = client.get("/decisions/p1").json()
    times_ms, stages_ms = decision["times_ms"], decision["stages_ms"]
    assert list(times_ms) == ["appended", "fetched", "features", "queued", "scored", "decided", "logged"]
    assert stages_ms["fetched"] == 2
    assert stages_ms["scored"] == 4
    assert sum(stages_ms.values()) == pytest.approx(times_ms["logged"] - times_ms["appended"])


def test_an_action_is_done_when_its_sinks_cursor_has_passed_it(client, decide, coordinator: Coordinator):
    decide(payment("p1", amount=900.0), payment("p2", amount=900.0))
    for report in coordinator.document["sinks"]:
        report["applied"] = {"holds": 0, "case-system": None, "scores": 1}[report["sink"]]
    states = {}
    for event_id in ("p1", "p2"):
        decision = client.get(f"/decisions/{event_id}").json()
        deliveries = [*decision["actions"][0]["deliveries"], *decision["deliveries"]]
        states[event_id] = {each["sink"]: each["state"] for each in deliveries}
    assert states["p1"] == {"holds": "done", "case-system": "pending", "scores": "done"}
    assert states["p2"] == {"holds": "pending", "case-system": "pending", "scores": "done"}


def test_without_the_coordinator_decisions_are_there_and_their_deliveries_unknown(
    client, decide, coordinator: Coordinator
):
    decide(payment("p1", amount=900.0))
    coordinator.error = TimeoutError()
    wait_until(lambda: client.get("/status").status_code == 503)
    (action,) = client.get("/decisions/p1").json()["actions"]
    assert {each["state"] for each in action["deliveries"]} == {"unknown"}


def test_a_sink_that_is_switched_off_is_said_to_be_off(
    broker: MemoryKafka, producer: DecidedProducer, stream: Stream, coordinator: Coordinator
):
    coordinator.document["sinks"] = [each for each in coordinator.document["sinks"] if each["sink"] != "case-system"]
    backend = make_backend(broker, producer, coordinator, off={"case-system"})
    stream.broker.append(SOURCE, 0, json.dumps(payment("p1", amount=900.0)).encode(), b"c1")
    stream.decide_all()
    with TestClient(create_api(backend)) as client:
        backend.recent.when_decided(0, 0).result(DEADLINE_S)
        (action,) = client.get("/decisions/p1").json()["actions"]
    assert {each["sink"]: each["state"] for each in action["deliveries"]} == {"holds": "done", "case-system": "off"}


def test_the_latest_decisions_come_newest_first(client, decide):
    decide(payment("p1", amount=900.0), payment("p2"), payment("p3", amount=800.0))
    assert [each["event_id"] for each in client.get("/decisions").json()] == ["p3", "p2", "p1"]
    assert [each["event_id"] for each in client.get("/decisions?limit=1").json()] == ["p3"]
    with_actions = client.get("/decisions?with_actions=true").json()
    assert [each["event_id"] for each in with_actions] == ["p3", "p1"]


@pytest.mark.parametrize("limit", [0, 201, "many"])
def test_a_limit_out_of_range_is_refused(client, limit):
    assert client.get(f"/decisions?limit={limit}").status_code == 422


def test_the_newest_decision_counts_when_an_id_came_again_after_it_was_forgotten(client, decide):
    hours_ago_ms = time.time_ns() // 1_000_000 - 2 * 3_600_000
    decide(payment("p1", amount=10.0, time_ms=hours_ago_ms), payment("p1", amount=20.0))
    assert client.get("/decisions/p1").json()["event"]["amount"] == 20.0


@pytest.mark.parametrize("event_id", ["a/b", "naïve", "50%", "a b", "x?y"])
def test_ids_are_found_whatever_characters_they_have(client, decide, event_id):
    decide(payment(event_id))
    assert client.get(f"/decisions/{quote(event_id, safe='')}").json()["event_id"] == event_id


def test_an_event_without_a_decision_is_not_found(client, decide):
    decide(payment("p1"))
    answer = client.get("/decisions/p9")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("there is no decision on an event 'p9' in the decision log")


def test_a_decision_too_old_for_memory_is_found_in_the_log(client, decide, backend: Backend):
    decide(payment("old"))
    backend.recent.restart()
    assert backend.recent.find("old") is None
    assert client.get("/decisions/old").json()["event_id"] == "old"


class FailingConsumer(MemoryConsumer):
    def partitions(self, topic: str) -> list[int]:
        raise BrokerError("Kafka is away")


def test_a_tail_without_kafka_says_why_and_goes_on_when_kafka_is_back(
    broker: MemoryKafka, stream: Stream, backend: Backend, monkeypatch
):
    monkeypatch.setattr("app.api.tail.RETRY_S", 0.01)
    consumers = iter([FailingConsumer(broker)])
    is_away, back = [], []

    def open_consumer() -> MemoryConsumer:
        is_away.append(tail.last_error)
        found = next(consumers, None)
        back.append(found is None)
        return found or WaitingConsumer(broker)

    tail = LogTail(open_consumer, DECISIONS, backend.recent)
    tail.start()
    wait_until(lambda: back[-1:] == [True] and tail.last_error is None)
    tail.stop()
    assert is_away[:2] == ["the log fraud.decisions is not read yet", "Kafka is away"]
    assert not tail.alive

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2

from app.api.backend import Backend
from app.api.intake import Intake, UnacceptableError
from app.api.lane import SourceWriter
from app.errors import BrokerError
from app.event import Event, EventDecoder
from app.pipeline import Pipeline
from app.sources import TopicPartition
from app.testing.kafka import MemoryKafka, MemoryProducer
from tests.unit.api.stand_in import PARTITIONS, SOURCE, DecidedProducer, payment

JSON = {"Content-Type": "application/json"}


def stored(broker: MemoryKafka) -> list[tuple[int, bytes | None, bytes | None]]:
    return [
        (partition, each.key, each.value)
        for partition in range(PARTITIONS)
        for each in broker.logs[TopicPartition(SOURCE, partition)]
    ]


def test_an_event_is_answered_with_the_decision_on_its_very_offset(client):
    first = client.post("/events", json=payment("p1", amount=900.0))
    second = client.post("/events", json=payment("p2", amount=100.0))
    assert (first.status_code, second.status_code) == (200, 200)
    assert [answer.json()["offset"] for answer in (first, second)] == [0, 1]
    assert [answer.json()["decision"]["event"]["amount"] for answer in (first, second)] == [900.0, 100.0]
    assert not first.json()["duplicate"]
    assert first.json()["decision"]["actions"][0]["key"] == f"fraud/{first.json()['partition']}/0/0"


def test_an_event_sent_again_is_answered_with_the_first_decision_and_gets_none_of_its_own(client):
    first = client.post("/events", json=payment("p1", amount=900.0)).json()
    again = client.post("/events", json=payment("p1", amount=100.0))
    assert again.status_code == 200
    assert (again.json()["duplicate"], again.json()["offset"]) == (True, 1)
    assert again.json()["decision"] == first["decision"]
    assert [each["offset"] for each in client.get("/decisions").json()] == [0]


def test_an_event_twice_in_one_request_is_decided_once(client):
    answers = client.post("/events", json=[payment("p1", amount=900.0), payment("p1"), payment("p2")]).json()
    assert [each["duplicate"] for each in answers] == [False, True, False]
    assert [each["decision"]["event"]["amount"] for each in answers] == [900.0, 900.0, 10.0]
    assert [each["decision"]["offset"] for each in answers] == [0, 0, 2]


def test_a_copy_whose_first_decision_is_not_in_memory_says_so_and_does_not_wait(client, backend: Backend):
    assert client.post("/events", json=payment("p1")).status_code == 200
    backend.recent.budget_bytes = 0
    assert client.post("/events", json=payment("p2")).status_code in (200, 504)
    backend.recent.budget_bytes = 1 << 20
    again = client.post("/events?wait_ms=30000", json=[payment("p1"), payment("p3")])
    assert again.status_code == 409
    assert again.json()["detail"] == "1 of 2 events are duplicates, and the first decision is not in memory"
    copy, other = again.json()["events"]
    assert (copy["duplicate"], copy["decision"], copy["rejected"]) == (True, None, None)
    assert other["decision"]["event_id"] == "p3"


def test_a_copy_of_an_event_that_decide_failed_on_is_a_duplicate_without_a_decision(client):
    assert client.post("/events", json=payment("p1", amount=13)).status_code == 422
    again = client.post("/events", json=payment("p1", amount=13))
    assert again.status_code == 409
    assert again.json()["events"][0]["duplicate"]


def test_the_same_id_under_another_key_is_another_event_when_that_lies_in_another_partition(client):
    cards = {(murmur2(card.encode()) & 0x7FFFFFFF) % PARTITIONS: card for card in ("c1", "c2", "c3", "c4")}
    answers = [client.post("/events", json=payment("p1", card=cards[each])).json() for each in range(PARTITIONS)]
    assert [each["duplicate"] for each in answers] == [False] * PARTITIONS
    again = [client.post("/events", json=payment("p1", card=cards[each])).json() for each in range(PARTITIONS)]
    assert [(each["duplicate"], each["decision"]["partition"]) for each in again] == [(True, 0), (True, 1)]


def test_a_list_is_answered_with_a_list_in_its_order(client):
    sent = [payment(f"p{at}", card=f"c{at}") for at in range(20)]
    answers = client.post("/events", json=sent).json()
    assert [each["decision"]["event_id"] for each in answers] == [each["id"] for each in sent]
    assert [each["partition"] for each in answers] == [
        (murmur2(each["card"].encode()) & 0x7FFFFFFF) % PARTITIONS for each in sent
    ]


def test_an_event_goes_into_the_log_byte_by_byte_under_its_key(client, broker: MemoryKafka):
    body = json.dumps(payment("p1", card="c7") | {"note": "kept"}, indent=1).encode()
    client.post("/events", content=body, headers=JSON)
    partition = (murmur2(b"c7") & 0x7FFFFFFF) % PARTITIONS
    assert stored(broker) == [(partition, b"c7", body)]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"id": "p1"}, "Object missing required field `time`"),
        (payment("p1") | {"amount": "ten"}, "Expected `float`, got `str` - at `$.amount`"),
        (payment("p1", time_ms=32_503_680_000_000), "lies"),
    ],
)
def test_an_event_that_does_not_validate_is_refused_with_the_streams_reason(client, broker, event, reason):
    answer = client.post("/events", json=event)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "nothing was appended"
    (rejection,) = answer.json()["events"]
    assert rejection["at"] == 0
    assert reason in rejection["reason"]
    assert stored(broker) == []


def test_one_event_that_does_not_validate_keeps_its_whole_list_out(client, broker):
    answer = client.post("/events", json=[payment("p1"), {"id": "p2"}, payment("p3"), 5])
    assert [each["at"] for each in answer.json()["events"]] == [1, 3]
    assert stored(broker) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[{]", b"\xff", b"[1,", b"null"])
def test_a_body_that_is_no_json_event_is_refused(client, broker, body):
    assert client.post("/events", content=body, headers=JSON).status_code == 422
    assert stored(broker) == []


def test_an_event_that_the_stream_refuses_is_answered_with_its_reason(client):
    answer = client.post("/events", json=payment("p1", amount=13))
    assert answer.status_code == 422
    assert answer.json()["detail"] == "1 of 1 events went to the dead letters"
    assert "unlucky" in answer.json()["events"][0]["rejected"]


def test_an_event_that_is_not_decided_in_time_is_said_to_be_in_the_log(client, producer: DecidedProducer):
    producer.held_up = True
    answer = client.post("/events?wait_ms=20", json=payment("p1"))
    assert answer.status_code == 504
    assert answer.json()["detail"] == "1 of 1 events are appended, but not decided yet; they will be"
    (event,) = answer.json()["events"]
    assert (event["event_id"], event["offset"], event["decision"]) == ("p1", 0, None)


def test_what_kafka_does_not_acknowledge_is_said_to_be_uncertain(client, producer: DecidedProducer, monkeypatch):
    monkeypatch.setattr("app.api.lane.ACKNOWLEDGED_S", 0.02)
    producer.hold = True
    answer = client.post("/events", json=payment("p1"))
    assert answer.status_code == 503
    assert "look for their ids before you send them again" in answer.json()["detail"]


def test_too_many_events_are_refused(client, broker):
    answer = client.post("/events", json=[payment(f"p{at}") for at in range(1_001)])
    assert answer.status_code == 422
    assert answer.json()["events"][0]["reason"] == "a request holds at most 1,000 events, this one 1,001"
    assert stored(broker) == []


def test_a_request_that_is_too_large_is_refused(client, broker):
    assert client.post("/events", content=b" " * (1 << 20) + b"{}", headers=JSON).status_code == 413


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_form_on_a_foreign_site_could_send_is_refused(client, broker, content_type):
    body = json.dumps(payment("p1")).encode()
    answer = client.post("/events", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 415
    assert stored(broker) == []


def test_with_a_token_only_who_has_it_may_write(guarded, broker):
    refused = [
        guarded.post("/events", json=payment("p1")),
        guarded.post("/events", json=payment("p1"), headers={"Authorization": "Bearer wrong"}),
        guarded.post("/events", json=payment("p1"), headers={"Authorization": "Basic secret"}),
        guarded.post("/events", json=payment("p1"), headers={"Authorization": "Bearer sécret".encode("latin-1")}),
    ]
    assert {answer.status_code for answer in refused} == {401}
    assert refused[0].json()["detail"] == "send the token of the API: Authorization: Bearer <token>"
    assert refused[0].headers["WWW-Authenticate"] == "Bearer"
    assert stored(broker) == []
    allowed = guarded.post("/events", json=payment("p1"), headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == 200


def test_with_a_token_everybody_may_read(guarded):
    for path in ("/", "/status", "/decisions", "/metrics", "/healthz", "/docs"):
        assert guarded.get(path).status_code == 200, path


class Login(Event, frozen=True):
    user: int


def test_without_a_key_events_go_to_the_partitions_in_turn():
    broker = MemoryKafka()
    broker.create("logins", 3)
    writer = SourceWriter(lambda: (MemoryProducer(broker), 3), "logins")
    events = Intake(Pipeline(source=Login), 1_000).read(
        json.dumps([{"id": str(at), "time": 1, "user": at} for at in range(6)]).encode(), now_ms=1
    )
    places = [future.result(10) for future in writer.append(events)]
    assert [place.partition for place in places] == [0, 1, 2, 0, 1, 2]
    writer.close()


@given(st.lists(st.one_of(st.binary(max_size=20), st.just(b'{"id":"1","time":1,"user":2}')), min_size=1))
def test_intake_accepts_exactly_what_the_stream_accepts(values):
    intake = Intake(Pipeline(source=Login), 1_000)
    accepts = EventDecoder(Login, max_ahead_ms=1_000)
    for value in values:
        if value.lstrip().startswith(b"["):
            continue
        expected = accepts.decode([value], [None], np.array([1])).rejected
        try:
            intake.read(value, now_ms=1)
            rejected = []
        except UnacceptableError as error:
            rejected = error.rejected
        assert list(rejected) == list(expected)


class FailingProducer(MemoryProducer):
    """Tells every record's sender that it was not delivered."""

    def flush(self, timeout_s: float) -> int:
        pending, self.pending = self.pending, []
        for sent in pending:
            assert sent.on_delivery is not None
            sent.on_delivery(BrokerError("the topic was deleted"), -1, -1)
        return 0


def test_after_a_failed_delivery_the_next_event_goes_by_a_new_producer(broker: MemoryKafka):
    broker.create(SOURCE, 1)
    producers = iter([FailingProducer(broker), MemoryProducer(broker)])
    writer = SourceWriter(lambda: (next(producers), 1), SOURCE)
    event = Intake(Pipeline(source=Login), 1_000).read(b'{"id":"1","time":1,"user":2}', now_ms=1)
    with pytest.raises(BrokerError, match="the topic was deleted"):
        writer.append(event)[0].result(10)
    assert writer.append(event)[0].result(10) == (0, 0)
    writer.close()

"""The API against a real broker: events in, decisions out, through both client libraries."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.backend import connect
from app.api.http import create_api
from app.config import PipelineArgs
from app.log.frame import encode_frame
from app.sources import KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from tests.integration.conftest import wait_until
from tests.unit.api.stand_in import PARTITIONS, Coordinator, Decider, dead_letters, fraud, payment


class Worker:
    """Decides what comes into the source topic, in a thread, until it is stopped."""

    def __init__(self, args: PipelineArgs) -> None:
        self._args = args
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(20)

    def _run(self) -> None:
        kafka, topics, decider = self._args.kafka, self._args.topics, Decider()
        consumer, producer = open_consumer(kafka), open_producer(kafka, linger_ms=1)
        consumer.assign({TopicPartition(topics.source, each): 0 for each in range(PARTITIONS)})
        while not self._stopping.is_set():
            for records in consumer.poll(1_000, 50):
                frame = decider.decide(records, float(records.append_ms[-1]))
                header, value = encode_frame(frame)
                producer.send(topics.decisions, value, partition=records.partition, headers=[header])
                for letter in dead_letters(frame):
                    place, headers = records.partition, letter.headers
                    producer.send(topics.dead_letters, letter.value, key=letter.key, partition=place, headers=headers)
            producer.poll()
        producer.close()
        consumer.close()


@pytest.fixture(params=["confluent-kafka", "kafka-python"])
def args(request: pytest.FixtureRequest, dev_broker: str) -> PipelineArgs:
    """Of a pipeline with topics of its own, by each client."""
    source = f"payments-{abs(hash(request.node.nodeid))}"
    kafka = KafkaSettings(bootstrap=dev_broker, client=request.param)
    args = PipelineArgs.load(
        {
            "pipeline": "tests.unit.api.stand_in:fraud",
            "kafka": kafka.model_dump(exclude_none=True),
            "topics": {
                "source": source,
                "decisions": f"{source}.decisions",
                "dead_letters": f"{source}.dead",
                "late": f"{source}.late",
            },
            "checkpoints": {"uri": "unused"},
        }
    )
    admin = open_admin(kafka)
    admin.ensure_topics(dict.fromkeys((source, args.topics.decisions, args.topics.dead_letters), PARTITIONS))
    admin.close()
    return args


@pytest.fixture
def client(args: PipelineArgs) -> Iterator[TestClient]:
    with TestClient(create_api(connect(args, fraud, Coordinator().status))) as client:
        yield client


@pytest.fixture
def worker(args: PipelineArgs) -> Iterator[Worker]:
    worker = Worker(args)
    yield worker
    worker.stop()


def put(args: PipelineArgs, *payments: dict[str, Any]) -> None:
    producer = open_producer(args.kafka)
    for each in payments:
        producer.send(args.topics.source, json.dumps(each).encode(), key=str(each["card"]).encode())
    producer.close()


@pytest.mark.usefixtures("worker")
def test_posted_events_are_answered_with_the_decisions_on_their_offsets(client: TestClient):
    answer = client.post("/events?wait_ms=20000", json=payment("first", amount=900.0))
    assert answer.status_code == 200, answer.text
    assert answer.json()["decision"]["actions"][0]["fields"] == {"payment": "first", "risk": 0.9}
    sent = [payment(f"p{at}", card=f"card-{at}", amount=float(at)) for at in range(1, 9)]
    answers = client.post("/events?wait_ms=20000", json=sent).json()
    assert [each["decision"]["event"]["amount"] for each in answers] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {each["partition"] for each in answers} == {0, 1}


@pytest.mark.usefixtures("worker")
def test_a_posted_event_finds_the_history_of_its_key_that_other_producers_wrote(client: TestClient, args: PipelineArgs):
    put(args, *[payment(f"p{at}", card=f"card-{at % 5}") for at in range(50)])
    for at in range(5):
        decision = client.post("/events?wait_ms=20000", json=payment("now", card=f"card-{at}")).json()["decision"]
        assert decision["features"] == {"payments": 11, "spent": 110.0}


def test_without_a_worker_a_posted_event_is_in_the_log_and_decided_later(client: TestClient, args: PipelineArgs):
    answer = client.post("/events?wait_ms=50", json=payment("p1", amount=900.0))
    assert answer.status_code == 504
    worker = Worker(args)
    try:
        again = client.post("/events?wait_ms=20000", json=payment("p2", amount=10.0))
        assert again.json()["offset"] == answer.json()["events"][0]["offset"] + 1
        assert client.get("/decisions/p1").json()["scores"] == {"risk": 0.9}
    finally:
        worker.stop()


@pytest.mark.usefixtures("worker")
def test_a_posted_event_that_decide_fails_on_is_among_the_dead_letters(client: TestClient):
    answer = client.post("/events?wait_ms=20000", json=payment("unlucky", amount=13.0))
    assert answer.status_code == 422
    place = answer.json()["events"][0]
    wait_until(lambda: client.get("/dead-letters").json(), "the dead letter")
    [letter] = client.get("/dead-letters").json()
    assert (letter["id"], letter["cause"]) == (f"{place['partition']}/{place['offset']}", "decide")
    assert json.loads(letter["value"])["id"] == "unlucky"


@pytest.mark.usefixtures("worker")
def test_an_api_that_starts_later_knows_what_was_decided_before(client: TestClient, args: PipelineArgs):
    client.post("/events?wait_ms=20000", json=payment("p1"))
    backend = connect(args, fraud, Coordinator().status)
    with TestClient(create_api(backend)) as later:
        backend.recent.when_decided(*_place(client, "p1")).result(20)
        assert later.get("/decisions").json()[0]["event_id"] == "p1"
        backend.recent.restart()
        assert later.get("/decisions/p1").json()["event_id"] == "p1"


def _place(client: TestClient, event_id: str) -> tuple[int, int]:
    decision = client.get(f"/decisions/{event_id}").json()
    return decision["partition"], decision["offset"]

"""The open dead letters, as the API tells them."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.actions.letters import Marker, marker_message
from app.api.backend import Backend
from app.api.letters import RecentLetters
from app.sources import TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka
from tests.unit.api.stand_in import LETTERS, SOURCE, Stream, payment


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def reject(stream: Stream, *values: bytes, partition: int = 0) -> None:
    for value in values:
        stream.broker.append(SOURCE, partition, value, b"c1", headers=[("trace", b"1")])
        stream.decide_all()
        stream.broker.clock.now_ms += 1_000


def mark(stream: Stream, recent: RecentLetters, marker: Marker) -> None:
    [case] = [case for case in recent.latest_open(100) if case.letter.id == marker.letter]
    key, value, headers = marker_message(marker, case.letter)
    stream.broker.append(LETTERS, case.letter.place.partition, value, key, headers)


def letters(client: TestClient, limit: int = 20) -> list[dict[str, Any]]:
    answer = client.get(f"/dead-letters?limit={limit}")
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()
    return found


def test_the_open_letters_are_told_newest_first_with_all_they_carry(client: TestClient, stream: Stream) -> None:
    reject(stream, b"{", json.dumps(payment("p1", amount=13)).encode(), b"x" * 3_000)
    until(lambda: len(letters(client)) == 3)
    long, unlucky, broken = letters(client)
    assert [each["id"] for each in (long, unlucky, broken)] == ["0/2", "0/1", "0/0"]
    assert (long["value"], long["value_bytes"]) == ("x" * 2_000, 3_000)
    assert (unlucky["cause"], unlucky["reason"]) == ("decide", "decide raised ValueError: unlucky")
    assert unlucky["stack"].endswith("ValueError: unlucky\n")
    assert broken["headers"] == [{"name": "trace", "value": "1"}]
    assert (broken["place"], broken["sink"], broken["attempts"]) == (f"{LETTERS}/0/0", None, 1)
    assert [each["id"] for each in letters(client, limit=1)] == ["0/2"]


def test_what_is_dealt_with_is_told_no_more_and_what_is_in_doubt_is(
    client: TestClient, stream: Stream, backend: Backend
) -> None:
    reject(stream, b"{", b"[", b"}")
    until(lambda: len(letters(client)) == 3)
    for marker in (
        Marker("0/0", "replaying", 1, 3),
        Marker("0/0", "replayed", 1),
        Marker("0/1", "dropped", 0),
        Marker("0/2", "replaying", 1, 3),
    ):
        mark(stream, backend.letters, marker)
    until(lambda: [(each["id"], each["state"]) for each in letters(client)] == [("0/2", "in doubt")])


@pytest.mark.parametrize("limit", [0, 201, "many"])
def test_a_limit_out_of_range_is_refused(client: TestClient, limit: object) -> None:
    assert client.get(f"/dead-letters?limit={limit}").status_code == 422


def test_memory_holds_the_newest_letters_within_its_budget(broker: MemoryKafka, stream: Stream) -> None:
    reject(stream, *(b"x" * 500 for _ in range(50)))
    recent = RecentLetters("fraud", budget_bytes=20_000)
    consumer = MemoryConsumer(broker)
    consumer.assign({TopicPartition(LETTERS, 0): 0})
    for records in consumer.poll(1_000, 0):
        recent.add(records)
    kept = [case.letter.id for case in recent.latest_open(100)]
    assert kept == [f"0/{49 - at}" for at in range(len(kept))]
    assert 10 < len(kept) < 20


def test_a_copy_of_a_letter_is_no_second_one(broker: MemoryKafka, stream: Stream) -> None:
    reject(stream, b"{")
    [stored] = broker.logs[TopicPartition(LETTERS, 0)]
    for _ in range(30):
        broker.append(LETTERS, 0, stored.value, stored.key, stored.headers)
    recent = RecentLetters("fraud", budget_bytes=2_000)
    consumer = MemoryConsumer(broker)
    consumer.assign({TopicPartition(LETTERS, 0): 0})
    for records in consumer.poll(1_000, 0):
        recent.add(records)
    assert [(case.letter.id, case.letter.place_offset) for case in recent.latest_open(100)] == [("0/0", 0)]

"""Redis against a real Valkey: each hash says what the latest action says, whatever dies, and comes back when lost."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Action, Delivery
from app.actions.attempts import Attempts
from app.actions.dead_letters import DeadLetters
from app.actions.loop import SinkLoop
from app.actions.position import Position
from app.actions.redis import HashWriter, RedisSettings
from app.actions.selection import OneAction
from app.actions.writer import Batch
from app.errors import ActionError
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer
from tests.integration.actions.valkey import Valkey, valkey_server
from tests.integration.conftest import wait_until
from tests.unit.actions.crashes import Clock, append, catch_up, kafka_with, run_over_crashes
from tests.unit.actions.decision_log import (
    DECISIONS,
    LETTERS,
    PIPELINE,
    Alert,
    Hold,
    Row,
    Written,
    decision_logs,
    effects_of,
)

NOW_MS = 4_000_000_000_000
"""The year 2096: what expires a while after it is still there."""


class FragileClient:
    """The worker can die before and after each request, and the connection can be cut after one."""

    def __init__(self, client: Any, kafka: MemoryKafka) -> None:
        self._client = client
        self._kafka = kafka

    def pipeline(self, **options: Any) -> Any:
        pipe = self._client.pipeline(**options)
        execute = pipe.execute

        def fragile_execute(**options: Any) -> Any:
            self._kafka.operate()
            answers = execute(**options)
            self._kafka.operate()
            return answers

        pipe.execute = fragile_execute
        return pipe

    def eval(self, *arguments: Any) -> Any:
        self._kafka.operate()
        answer = self._client.eval(*arguments)
        self._kafka.operate()
        return answer

    def close(self) -> None:
        self._client.close()


class FragileWriter(HashWriter):
    def __init__(self, kafka: MemoryKafka, *given: Any) -> None:
        super().__init__(*given)
        self.kafka = kafka

    def _connected(self) -> Any:
        return FragileClient(super()._connected(), self.kafka)


def open_redis(
    kafka: MemoryKafka, url: str, action: type[Action] = Hold, key: str = "idempotency_key", **changes: Any
) -> SinkLoop[Any]:
    chosen = RedisSettings.model_validate({"url": url, "prefix": "held:", "attempts": 3, **changes})
    attempts = Attempts(3, DeadLetters("held", LETTERS, lambda: MemoryProducer(kafka)))
    return SinkLoop(
        pipeline=PIPELINE,
        sink="held",
        log_topic=DECISIONS,
        open_consumer=lambda: MemoryConsumer(kafka, f"{PIPELINE}.held"),
        selection=OneAction(PIPELINE, action, None),
        writer=FragileWriter(kafka, f"{PIPELINE}.held", key, chosen, attempts),
        halt=threading.Event(),
        clock=Clock(),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey(server: Valkey) -> Valkey:
    """An empty server."""
    server.client.config_set("maxmemory", 0)
    server.client.flushall()
    return server


def alerts(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, ("Alert",)) for offset in range(first, last + 1)))


def holds(first: int, last: int, partition: int = 0, append_ms: int = 1_000) -> Written:
    rows = tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1))
    return Written(partition, rows, append_ms)


def latest_by_payment(frames: list[Written], partition: int) -> dict[str, dict[str, str]]:
    """The oracle: a partition's holds one after the other into a dict, numbers as JSON writes them."""
    holds = effects_of(frames).holds.get(partition, [])
    return {
        row.payment: {
            "payment": row.payment,
            "risk": msgspec.json.encode(row.risk).decode(),
            "idempotency_key": key,
        }
        for key, row in holds
    }


@settings(max_examples=100)
@given(
    frames=decision_logs(partitions=1),
    crashes=st.lists(st.integers(0, 16), max_size=5),
    lost=st.sets(st.integers(0, 4), max_size=2),
)
def test_each_hash_says_what_the_latest_hold_says_whenever_the_worker_dies_or_redis_loses_its_data(
    server: Valkey, frames: list[Written], crashes: list[int], lost: set[int]
) -> None:
    server.client.flushall()
    kafka = kafka_with(frames, partitions=1)
    runs = iter(range(100))

    def open_loop() -> SinkLoop[Any]:
        if next(runs) in lost:
            server.client.flushall()
        return open_redis(kafka, server.url, key="payment")

    run_over_crashes(kafka, open_loop, crashes)
    assert server.hashes("held:") == latest_by_payment(frames, 0)
    assert not kafka.records(LETTERS)


def test_a_repeat_and_a_worker_that_was_thought_dead_change_nothing(valkey: Valkey) -> None:
    kafka = kafka_with([alerts(0, 3)], partitions=1)
    zombie, heir = (open_redis(kafka, valkey.url, Alert, "card") for _ in range(2))
    zombie.assign([0])
    catch_up(kafka, zombie)
    heir.assign([0])
    catch_up(kafka, heir)
    append(kafka, alerts(4, 6))
    stale = zombie._read(0)  # and freezes
    append(kafka, alerts(7, 9))
    catch_up(kafka, heir)
    before = valkey.hashes("held:")
    assert before["c0"]["idempotency_key"] == "fraud/0/9/0"
    zombie._write(stale)
    assert valkey.hashes("held:") == before
    assert "another worker has gone on from there" in str(zombie.status().error or zombie._places[0].error)
    append(kafka, alerts(10, 10))
    catch_up(kafka, zombie)
    assert valkey.hashes("held:")["c1"]["idempotency_key"] == "fraud/0/10/0"


def test_a_server_that_restarts_empty_while_the_worker_lives_gets_everything_again(tmp_path: Path) -> None:
    kafka = kafka_with([holds(0, 4)], partitions=1)
    with valkey_server(tmp_path) as valkey:
        loop = open_redis(kafka, valkey.url)
        loop.assign([0])
        catch_up(kafka, loop)
        valkey.kill()
        append(kafka, holds(5, 5))
        for _ in range(20):
            loop.step(0)
        assert loop.status().breaker != "closed"
        valkey.start()
        catch_up(kafka, loop)
        assert len(valkey.hashes("held:")) == 6
        loop.close()


def test_a_server_that_restarts_from_an_older_copy_gets_the_rest_again(tmp_path: Path) -> None:
    kafka = kafka_with([holds(0, 4)], partitions=1)
    with valkey_server(tmp_path, save="3600 1") as valkey:
        loop = open_redis(kafka, valkey.url)
        loop.assign([0])
        catch_up(kafka, loop)
        valkey.client.save()
        append(kafka, holds(5, 9))
        catch_up(kafka, loop)
        valkey.kill()
        valkey.start()
        assert len(valkey.hashes("held:")) == 5
        append(kafka, holds(10, 10))
        for _ in range(50):
            loop.step(0)
        assert len(valkey.hashes("held:")) == 11
        loop.close()


def test_connections_that_are_cut_again_and_again_change_nothing(valkey: Valkey) -> None:
    kafka, rng = kafka_with([], partitions=1), random.Random(7)
    loop = open_redis(kafka, valkey.url, Alert, "card")
    loop.assign([0])
    for at in range(100):
        append(kafka, alerts(at, at))
        if rng.random() < 0.5:
            valkey.client.client_kill_filter(_type="normal", skipme=True)
        loop.step(0)
    catch_up(kafka, loop)
    assert {key: each["idempotency_key"] for key, each in valkey.hashes("held:").items()} == {
        "c0": "fraud/0/99/0",
        "c1": "fraud/0/97/0",
        "c2": "fraud/0/98/0",
    }
    loop.close()


def test_a_key_of_another_type_makes_dead_letters_and_the_others_go_on(valkey: Valkey) -> None:
    valkey.client.set("held:c1", "mine")
    kafka = kafka_with([alerts(0, 5)], partitions=1)
    loop = open_redis(kafka, valkey.url, Alert, "card")
    loop.assign([0])
    catch_up(kafka, loop)
    assert valkey.client.get("held:c1") == "mine"
    letters = [dict(letter.headers) for _, letter in kafka.records(LETTERS)]
    assert [each["idempotency-key"] for each in letters] == [b"fraud/0/1/0", b"fraud/0/4/0"]
    assert letters[0]["reason"] == b"held:c1 holds a string, which is no hash"
    assert [valkey.client.hget(f"held:c{each}", "idempotency_key") for each in (0, 2)] == ["fraud/0/3/0", "fraud/0/5/0"]


def test_an_action_that_the_server_fails_on_again_and_again_is_given_up(valkey: Valkey) -> None:
    valkey.client.hset("held:c1", "applied:fraud.held:0", "nonsense")
    kafka = kafka_with([alerts(0, 2)], partitions=1)
    loop = open_redis(kafka, valkey.url, Alert, "card")
    loop.assign([0])
    catch_up(kafka, loop)
    [(_, letter)] = kafka.records(LETTERS)
    headers = dict(letter.headers)
    assert (headers["idempotency-key"], headers["attempts"]) == (b"fraud/0/1/0", b"3")
    assert set(valkey.hashes("held:")) == {"c0", "c1", "c2"}


def test_a_server_that_is_full_is_waited_for_and_the_cursor_does_not_run_ahead(valkey: Valkey) -> None:
    kafka = kafka_with([holds(0, 0)], partitions=1)
    loop = open_redis(kafka, valkey.url)
    loop.assign([0])
    catch_up(kafka, loop)
    append(kafka, holds(1, 9))
    valkey.client.config_set("maxmemory", 1)
    for _ in range(200):
        loop.step(0)
    status = loop.status()
    assert status.breaker != "closed"
    assert "command not allowed" in str(status.error)
    valkey.client.config_set("maxmemory", 0)
    catch_up(kafka, loop)
    assert len(valkey.hashes("held:")) == 10
    assert not kafka.records(LETTERS)


def test_a_hash_expires_a_while_after_its_event_and_no_repeat_prolongs_it(valkey: Valkey) -> None:
    kafka = kafka_with([holds(0, 0, append_ms=1_000), holds(1, 1, append_ms=NOW_MS)], partitions=1)
    for _ in range(2):
        loop = open_redis(kafka, valkey.url, ttl="1h")
        loop.assign([0])
        catch_up(kafka, loop)
        assert set(valkey.hashes("held:")) == {"fraud/0/1/0"}
        assert valkey.client.pexpiretime("held:fraud/0/1/0") == NOW_MS + 3_600_000
        valkey.client.delete("headrace:fraud.held:0")  # all is carried out anew


class Everything(Action, frozen=True):
    name: str
    note: str | None
    tags: list[str]
    sure: bool


def test_texts_are_written_as_they_are_the_rest_as_json_and_none_removes_a_field(valkey: Valkey) -> None:
    chosen = RedisSettings.model_validate({"url": valkey.url, "prefix": "all:"})
    writer = HashWriter("fraud.all", "name", chosen, Attempts(1, DeadLetters("all", LETTERS, lambda: None)))  # type: ignore[arg-type, return-value]
    start = writer.resume({0: None})[0]
    for offset, note in enumerate(["!", None]):
        fields = {"type": "Everything", "name": "a", "note": note, "tags": ["x"], "sure": True}
        delivery = Delivery(f"fraud/0/{offset}/0", "payments", 0, offset, 1_000, None, fields)
        end = Position(offset, start.log_offset)
        assert writer.write([Batch(0, start, end, [delivery])])[0].error is None
        start = end
    assert valkey.hashes("all:") == {
        "a": {"name": "a", "tags": '["x"]', "sure": "true", "idempotency_key": "fraud/0/1/0"}
    }
    writer.close()


def test_a_dead_letter_that_is_carried_out_by_itself_leaves_what_later_actions_wrote(valkey: Valkey) -> None:
    chosen = RedisSettings.model_validate({"url": valkey.url, "prefix": "held:"})
    writer = HashWriter("fraud.held", "name", chosen, Attempts(1, DeadLetters("held", LETTERS, lambda: None)))  # type: ignore[arg-type, return-value]

    def hold(offset: int, name: str, note: str) -> Delivery:
        return Delivery(f"fraud/0/{offset}/0", "payments", 0, offset, 1_000, None, {"name": name, "note": note})

    for delivery in (hold(5, "a", "later"), hold(3, "a", "refused before"), hold(3, "b", "refused before")):
        writer.deliver(delivery)
        writer.deliver(delivery)
    assert {name: each["note"] for name, each in valkey.hashes("held:").items()} == {
        "a": "later",
        "b": "refused before",
    }
    valkey.client.set("held:c", "no hash")
    with pytest.raises(ActionError, match="held:c holds a string, which is no hash"):
        writer.deliver(hold(4, "c", "x"))
    writer.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Valkey]]:
    """Two servers with half of the slots each."""
    option = {"cluster-enabled": "yes"}
    with valkey_server(tmp_path / "a", **option) as first, valkey_server(tmp_path / "b", **option) as second:
        first.client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        second.client.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        first.client.execute_command("CLUSTER MEET", "127.0.0.1", second.port)
        wait_until(lambda: first.cluster_is_whole() and second.cluster_is_whole(), "the cluster")
        yield [first, second]


def test_in_a_cluster_each_hash_is_on_the_server_that_has_its_slot(cluster: list[Valkey]) -> None:
    kafka = kafka_with([holds(0, 19), holds(0, 19, partition=1)])
    run_over_crashes(kafka, lambda: open_redis(kafka, cluster[0].url, cluster=True), [3, 9, 14])
    found = [set(server.hashes("held:")) for server in cluster]
    assert min(map(len, found)) > 5
    assert found[0] | found[1] == {f"fraud/{partition}/{offset}/0" for partition in (0, 1) for offset in range(20)}


def test_a_cursor_that_is_none_is_told_with_the_remedy(valkey: Valkey) -> None:
    valkey.client.set("headrace:fraud.held:0", "?")
    kafka = kafka_with([holds(0, 0)], partitions=1)
    loop = open_redis(kafka, valkey.url)
    loop.assign([0])
    loop.step(0)
    assert "headrace:fraud.held:0 holds b'?', which is no cursor; delete it" in str(loop.status().error)


def test_a_server_that_is_not_there_is_away() -> None:
    loop = open_redis(kafka_with([holds(0, 0)], partitions=1), "redis://127.0.0.1:1")
    loop.assign([0])
    loop.step(0)
    assert (loop.status().breaker, "Redis says: " in str(loop.status().error)) == ("open", True)

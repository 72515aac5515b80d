"""Every kind of sink against the real thing: the worker is killed with -9 while the log grows, again and again."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.sources import ClientName, open_admin
from tests.integration.actions.conftest import Receiver, Topics, topics_on
from tests.integration.actions.valkey import valkey_server
from tests.integration.conftest import ROOT, wait_until
from tests.integration.sources.conftest import BrokerProcess, apache_command, dev_command
from tests.unit.actions.decision_log import Row, Written, draw_row, effects_of

OFF = {
    "holds": {"topic": "off"},
    "cases": {"url": "off"},
    "held": {"dsn": "off"},
    "held-here": {"dsn": "off"},
    "hashes": {"url": "off"},
}
FRAMES = 400

Found = list[tuple[str, str, float]]
"""What became of each hold: idempotency key, payment, risk."""


def decision_log(seed: int) -> list[Written]:
    """Frames of two partitions as two writers leave them that take each other for dead: one decides again, and
    otherwise, what the other has decided."""
    rng = random.Random(seed)
    frames: list[Written] = []
    ends = [0, 0]
    for _ in range(FRAMES):
        partition = rng.randrange(2)
        first = max(0, ends[partition] - rng.choice([0, 0, 0, 2, 15]))
        last = first + rng.randrange(8)
        frames.append(Written(partition, tuple(draw_row(rng, offset) for offset in range(first, last + 1))))
        ends[partition] = max(ends[partition], last + 1)
    return frames


@contextmanager
def worker(topics: Topics, sinks: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    kafka = [topics.settings.bootstrap, topics.settings.client, topics.decisions, topics.letters, topics.late]
    arguments = {"kafka": kafka, "sinks": OFF | sinks, "partitions": [0, 1]}
    command = [sys.executable, "-m", "tests.integration.actions.worker", json.dumps(arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


EACH_ONCE = pytest.mark.parametrize(
    ("bootstrap", "client"),
    [
        ("development broker", "kafka-python"),
        pytest.param("Apache Kafka", "confluent-kafka", marks=pytest.mark.kafka),
    ],
    indirect=["bootstrap"],
)
"""Each broker and each client; tests/integration/sources and broker have every pair of the two."""

COUNTED = """CREATE TABLE held (payment text, risk double precision, idempotency_key text PRIMARY KEY,
             writes integer NOT NULL DEFAULT 1)"""
COUNT_IN_POSTGRES = """
    CREATE FUNCTION again() RETURNS trigger AS 'BEGIN new.writes = old.writes + 1; RETURN new; END' LANGUAGE plpgsql;
    CREATE TRIGGER again BEFORE UPDATE ON held FOR EACH ROW EXECUTE FUNCTION again()"""
COUNT_IN_SQLITE = """CREATE TRIGGER again AFTER UPDATE OF payment ON held BEGIN
    UPDATE held SET writes = writes + 1 WHERE idempotency_key = new.idempotency_key; END"""
WRITTEN_ONCE = "SELECT idempotency_key, payment, risk FROM held WHERE writes = 1"
CUT_NOW_AND_THEN = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'headrace' AND random() < 0.02"""


@pytest.fixture
def in_postgres(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    """A table that counts how often each row was written."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(COUNTED.encode())
        connection.execute(COUNT_IN_POSTGRES.encode())
        yield connection


@pytest.fixture
def in_sqlite(here: str) -> Iterator[sqlite3.Connection]:
    """A table that counts how often each row was written."""
    connection = sqlite3.connect(here.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(COUNTED)
    connection.execute(COUNT_IN_SQLITE)
    yield connection
    connection.close()


@EACH_ONCE
def test_each_effect_happens_once_though_the_worker_is_killed_and_connections_are_cut(
    make_topics: Callable[[ClientName], Topics],
    client: ClientName,
    receiver: Receiver,
    postgres: str,
    here: str,
    in_postgres: psycopg.Connection[Any],
    in_sqlite: sqlite3.Connection,
) -> None:
    topics, frames = make_topics(client), decision_log(seed=3)
    effects = effects_of(frames)
    holds = sorted((key, row.payment, row.risk) for rows in effects.holds.values() for key, row in rows)
    sinks = {
        "holds": {"topic": topics.holds},
        "cases": {"url": receiver.url},
        "held": {"dsn": postgres},
        "held-here": {"dsn": here, "table": "held"},
    }

    def rows_in_postgres() -> int:
        in_postgres.execute(CUT_NOW_AND_THEN)
        return len(in_postgres.execute(WRITTEN_ONCE).fetchall())

    def done() -> bool:
        found = [rows_in_postgres(), len(in_sqlite.execute(WRITTEN_ONCE).fetchall()), len(receiver.kept)]
        copies = sum(len(rows) for rejects in (effects.rejects, effects.late) for rows in rejects.values())
        logged = topics.count(topics.holds, topics.letters, topics.late)
        return found == [len(holds)] * 3 and logged == len(holds) + copies

    growing = threading.Thread(target=topics.append, args=[frames])
    growing.start()
    for reached in (
        lambda: topics.count(topics.holds) >= 0.1 * len(holds),
        lambda: topics.count(topics.letters) >= 0.3 * sum(map(len, effects.rejects.values())),
        lambda: rows_in_postgres() >= 0.5 * len(holds),
        lambda: len(receiver.kept) >= 0.7 * len(holds),
    ):
        with worker(topics, sinks) as process:
            wait_until(reached, "a share of the effects")
            process.kill()
    growing.join()
    with worker(topics, sinks) as process:
        wait_until(done, "all effects")
        process.terminate()
        assert process.wait(20) == 0
    assert sorted(in_postgres.execute(WRITTEN_ONCE).fetchall()) == holds
    assert sorted(in_sqlite.execute(WRITTEN_ONCE).fetchall()) == holds
    assert published(topics) == holds
    assert posted(receiver) == holds
    assert receiver.requests < 2 * len(holds)
    for topic, rejects in ((topics.letters, effects.rejects), (topics.late, effects.late)):
        assert rejected(topics, topic) == sorted(
            (key, f"broken {row.risk}") for rows in rejects.values() for key, row in rows
        )


def published(topics: Topics) -> Found:
    """Every record of the topic; fails when those of a partition are out of order."""
    records = [
        ((headers["idempotency-key"] or b"").decode(), json.loads(value or b""))
        for headers, value in topics.read(topics.holds)
    ]
    for partition in (0, 1):
        offsets = [int(key.split("/")[2]) for key, _ in records if key.startswith(f"fraud/{partition}/")]
        assert offsets == sorted(offsets)
    return sorted((key, value["payment"], value["risk"]) for key, value in records)


def posted(receiver: Receiver) -> Found:
    """The first request of each key."""
    return sorted((key, body["payment"], body["risk"]) for key, body in receiver.kept.items())


def rejected(topics: Topics, topic: str) -> list[tuple[str, str]]:
    """Key and reason of every record that was copied to the topic."""
    return sorted(
        ((headers["idempotency-key"] or b"").decode(), (headers["reason"] or b"").decode())
        for headers, _ in topics.read(topic)
    )


def test_redis_says_what_the_latest_hold_says_though_worker_and_server_are_killed(
    make_topics: Callable[[ClientName], Topics], tmp_path: Path
) -> None:
    """The worker alone, and Valkey with what it had not yet written to its disk; each partition has keys of its own."""
    topics, frames = make_topics("confluent-kafka"), decision_log(seed=5)
    latest = {
        row.payment: {"payment": row.payment, "risk": repr(row.risk), "idempotency_key": key}
        for key, row in effects_of(frames).holds[0]
    }
    frames = [frame for frame in frames if frame.partition == 0]
    growing = threading.Thread(target=topics.append, args=[frames])
    with valkey_server(tmp_path, appendonly="yes", appendfsync="everysec") as valkey:
        growing.start()
        for share in (0.1, 0.4, 0.7):
            with worker(topics, {"hashes": {"url": valkey.url}}) as process:
                wait_until(lambda share=share: len(valkey.hashes("hashes:")) >= share * len(latest), "a share of them")  # type: ignore[misc]
                process.kill()
            valkey.kill()
            valkey.start()
        growing.join()
        with worker(topics, {"hashes": {"url": valkey.url}}) as process:
            wait_until(lambda: valkey.hashes("hashes:") == latest, "all of them")
            valkey.client.flushall()
            topics.append([Written(0, (Row(frames[-1].rows[-1].offset + 1, "decided"),))])
            wait_until(lambda: valkey.hashes("hashes:") == latest, "all of them again")
            process.terminate()
            assert process.wait(20) == 0


def test_a_webhook_that_is_down_holds_up_itself_alone_and_misses_nothing(
    make_topics: Callable[[ClientName], Topics], receiver: Receiver
) -> None:
    topics = make_topics("confluent-kafka")
    receiver.stop()
    topics.append([Written(0, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(20)))])
    with worker(topics, {"cases": {"url": receiver.url}, "holds": {"topic": topics.holds}}) as process:
        wait_until(lambda: topics.count(topics.holds) == 20, "the other sink's effects")
        receiver.start()
        wait_until(lambda: len(receiver.kept) == 20, "the webhook's backlog")
        process.terminate()
        assert process.wait(20) == 0
    assert list(receiver.kept) == [f"fraud/0/{offset}/0" for offset in range(20)]
    assert receiver.requests == 20


@EACH_ONCE
def test_a_worker_that_was_frozen_comes_back_and_publishes_nothing_again(
    make_topics: Callable[[ClientName], Topics], client: ClientName
) -> None:
    """It is stopped in the middle of its work; another one finishes it, as the coordinator would have it."""
    topics, frames = make_topics(client), decision_log(seed=5)
    holds = sorted((key, row.payment, row.risk) for rows in effects_of(frames).holds.values() for key, row in rows)
    growing = threading.Thread(target=topics.append, args=[frames])
    growing.start()
    sinks = {"holds": {"topic": topics.holds}}
    with worker(topics, sinks) as frozen:
        wait_until(lambda: topics.count(topics.holds) >= 0.2 * len(holds), "a share of the effects")
        frozen.send_signal(signal.SIGSTOP)
        growing.join()
        with worker(topics, sinks) as other:
            wait_until(lambda: topics.count(topics.holds) >= 0.7 * len(holds), "the work of the other one")
            frozen.send_signal(signal.SIGCONT)
            wait_until(lambda: topics.count(topics.holds) == len(holds), "all effects")
            frozen.terminate()
            assert frozen.wait(60) == 0  # closing a fenced client took 20 s once: librdkafka waits for its broker
            other.terminate()
            assert other.wait(20) == 0
    assert published(topics) == holds


@EACH_ONCE
def test_what_a_topic_refuses_for_good_is_a_dead_letter_and_the_rest_is_published_in_order(
    make_topics: Callable[[ClientName], Topics], client: ClientName
) -> None:
    topics = make_topics(client)
    with closing(open_admin(topics.settings)) as admin:
        small = f"small-{topics.holds}"
        admin.ensure_topics({small: 2}, {"max.message.bytes": "600"})
    # A batch of several is too large, too: what is refused is found out one by one.
    rows = [Row(offset, "decided", 0.5, ("Hold",)) for offset in range(40)]
    topics.append([Written(0, tuple(rows[:20])), Written(0, (Large(20, "decided", 0.5, ("Hold",)), *rows[21:]))])
    with worker(topics, {"holds": {"topic": small}}) as process:
        wait_until(lambda: topics.count(small) == 39, "all that is small enough")
        process.terminate()
        assert process.wait(20) == 0
    keys = [(headers["idempotency-key"] or b"").decode() for headers, _ in topics.read(small)]
    assert keys == [f"fraud/0/{offset}/0" for offset in range(40) if offset != 20]
    [(headers, value)] = topics.read(topics.letters)
    assert headers["idempotency-key"] == b"fraud/0/20/0"
    assert json.loads(value or b"")["payment"] == "x" * 5_000


class Large(Row):
    """A row whose hold is larger than the topic of the test takes."""

    @property
    def payment(self) -> str:
        return "x" * 5_000


@pytest.mark.parametrize(
    ("broker", "client"),
    [(dev_command, "kafka-python"), pytest.param(apache_command, "confluent-kafka", marks=pytest.mark.kafka)],
    indirect=["broker"],
)
def test_a_broker_that_is_started_again_in_the_middle_leaves_each_record_once(
    broker: BrokerProcess, client: ClientName
) -> None:
    topics = topics_on(broker.bootstrap, client)
    frames = decision_log(seed=7)
    holds = sorted((key, row.payment, row.risk) for rows in effects_of(frames).holds.values() for key, row in rows)
    topics.append(frames)
    with worker(topics, {"holds": {"topic": topics.holds}}) as process:
        wait_until(lambda: topics.count(topics.holds) >= 1, "the first effect")
        broker.kill()
        broker.start()
        wait_until(lambda: topics.count(topics.holds) == len(holds), "all effects", 120)
        process.terminate()
        assert process.wait(30) == 0
    assert published(topics) == holds

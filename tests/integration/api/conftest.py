"""The live page: a server over logs in memory."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http import create_api
from app.testing.kafka import MemoryKafka
from tests.integration.conftest import free_port
from tests.unit.api.stand_in import Coordinator, DecidedProducer, Stream, make_backend


class Site:
    """The API of the stand-in pipeline under /fraud, which can go away and come back."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/fraud/"
        self.coordinator = Coordinator()
        self.off: set[str] = set()
        self.stream = Stream(MemoryKafka())
        self.producer = DecidedProducer(self.stream)

    def start(self) -> None:
        backend = make_backend(self.stream.broker, self.producer, self.coordinator, off=self.off)
        api = under("/fraud", create_api(backend))
        config = uvicorn.Config(api, host="127.0.0.1", port=self.port, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


def under(prefix: str, api: ASGIApp) -> ASGIApp:
    """As Serve does it: the path stays whole, and the prefix is the root path."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await api(scope if scope["type"] == "lifespan" else {**scope, "root_path": prefix}, receive, send)

    return prefixed


def wait_until(holds: Callable[[], object], deadline_s: float = 20) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s")
        time.sleep(0.02)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.start()
    yield site
    site.stop()

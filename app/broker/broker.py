"""The development broker: Kafka's protocol on loopback, for the first run, tests and faults on command."""

import asyncio
import fcntl
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from app.broker.connection import serve_connection
from app.broker.faults import Faults
from app.broker.state import BrokerState
from app.errors import ConfigError

log = logging.getLogger(__name__)
READ_AHEAD_BYTES = 2**20
LOOK_S = 1.0


class Broker:
    """A broker in the running event loop: `async with Broker() as broker: … broker.bootstrap`.

    In memory, or with `directory` in plain files: what was acknowledged is there again after a stop or kill -9
    of the process, but not after a power cut: only a clean stop puts it on the medium. Loopback only;
    without authentication, group membership and replication: not for production.
    """

    def __init__(
        self,
        port: int = 0,
        directory: Path | None = None,
        faults: Faults | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.port = port
        self.faults = faults or Faults()
        self._directory = directory
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = AsyncExitStack()

    @property
    def bootstrap(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Raises ConfigError when the port or the directory is in use; nothing is then left open."""
        async with AsyncExitStack() as opened:
            if self._directory:
                opened.enter_context(_lock(self._directory))
            self._state = BrokerState.open(self.host, self._directory, self.faults)
            opened.callback(self._state.close)
            server = await self._listen()
            opened.callback(server.close)
            self.port = self._state.port = server.sockets[0].getsockname()[1]
            self._opened = opened.pop_all()
        self._keep(asyncio.create_task(self._look_after_time()))

    async def stop(self) -> None:
        """Closes the connections and puts the log on the medium."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._opened.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _listen(self) -> asyncio.Server:
        try:
            return await asyncio.start_server(self._accept, self.host, self.port, limit=READ_AHEAD_BYTES)
        except OSError as error:
            raise ConfigError(f"port {self.port} cannot be had ({error.strerror}); name another, or 0") from error

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(asyncio.create_task(serve_connection(self._state, reader, writer)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_after_time(self) -> None:
        """Ends what has lasted too long: records and open transactions."""
        while True:
            try:
                self._state.drop_expired()
                self._state.abort_expired()
            except OSError:
                log.exception("old segments could not be dropped, or old transactions not aborted")
            await asyncio.sleep(LOOK_S)


def _lock(directory: Path) -> TextIO:
    """One process a directory; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"{directory} is in use by another broker; stop that one or name another directory") from None
    return lock

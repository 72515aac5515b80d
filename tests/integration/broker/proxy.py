"""A TCP proxy that understands frames: it cuts connections in front of a produce request or behind it."""

import asyncio
import io
import threading
from collections.abc import Callable
from struct import Struct
from typing import Any, Self

from kafka.protocol.api_header import RequestHeader, ResponseClassRegistry
from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest
from kafka.protocol.producer import ProduceRequest

LENGTH = Struct(">i")
FRAME_START = Struct(">hhi")


class CuttingProxy:
    """Stands between a client and a broker, on a thread of its own.

    Answers that name the broker's address are rewritten to name the proxy's, so that clients stay on it. `cut(n)` is
    asked for the n-th produce request: "before" drops it, "after" lets it through and drops the answer.
    """

    def __init__(self, bootstrap: str, cut: Callable[[int], str | None]) -> None:
        host, port = bootstrap.split(":")
        self._broker = (host, int(port))
        self._cut = cut
        self.cuts = 0
        self._produced = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection(*self._broker, limit=2**20)
        try:
            while True:
                request = await _read_frame(client)
                key, version, _ = FRAME_START.unpack_from(request)
                cut = self._ask(key)
                if cut == "before":
                    return
                to_broker.write(LENGTH.pack(len(request)) + request)
                if key == ProduceRequest.API_KEY and not _decode(ProduceRequest, request).acks:
                    continue
                response = await _read_frame(from_broker)
                if cut == "after":
                    return
                response = self._rewrite(key, version, response)
                to_client.write(LENGTH.pack(len(response)) + response)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            to_broker.close()
            to_client.close()

    def _ask(self, key: int) -> str | None:
        if key != ProduceRequest.API_KEY:
            return None
        self._produced += 1
        cut = self._cut(self._produced)
        self.cuts += cut is not None
        return cut

    def _rewrite(self, key: int, version: int, frame: bytes) -> bytes:
        if key not in (MetadataRequest.API_KEY, FindCoordinatorRequest.API_KEY):
            return frame
        kind = ResponseClassRegistry.get_response_class(RequestHeader(request_api_key=key, request_api_version=version))
        response = kind.decode(frame, header=True)
        named = [*response.brokers] if key == MetadataRequest.API_KEY else [response, *response.coordinators]
        for address in named:
            address.port = self.port
        return bytes(response.encode(header=True))


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return await reader.readexactly(length)


def _decode(kind: Any, frame: bytes) -> Any:
    _, version, _ = FRAME_START.unpack_from(frame)
    header = io.BytesIO(frame)
    RequestHeader.decode(header, flexible=kind.flexible_version_q(version))
    return kind.decode(frame[header.tell() :], version=version)

"""One client connection: a queue of requests, answered in order."""

import asyncio
import io
import logging
from struct import Struct
from typing import Any

from kafka.errors import UnsupportedVersionError
from kafka.protocol.api_header import RequestHeader
from kafka.protocol.metadata import ApiVersionsRequest

from app.broker.apis import APIS, Api, supported_versions
from app.broker.faults import Cut, Delay
from app.broker.state import BrokerState
from app.errors import BrokerError

log = logging.getLogger(__name__)
LENGTH = Struct(">i")
FRAME_START = Struct(">hhi")  # API key, version, correlation id: the same in every version of the header
MAX_FRAME_BYTES = 100 * 2**20


class CutError(Exception):
    """A fault on command: the connection ends without an answer."""


async def serve_connection(state: BrokerState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers until the client goes, a fault cuts the line or, as with Kafka, a frame is not understood."""
    try:
        while True:
            answer = await _answer(state, await _read_frame(reader))
            if answer is not None:
                writer.write(answer)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, CutError):
        pass
    except BrokerError as error:
        log.warning("connection closed: %s", error)
    except Exception:
        log.exception("connection closed: a request could not be carried out")
    finally:
        writer.close()


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if not FRAME_START.size <= length <= MAX_FRAME_BYTES:
        raise BrokerError(f"a frame of {length} bytes; is this a Kafka client?")
    return await reader.readexactly(length)


async def _answer(state: BrokerState, frame: bytes) -> bytes | None:
    """Returns the framed response; None where the client wants none (acks=0)."""
    key, version, correlation_id = FRAME_START.unpack_from(frame)
    api = APIS.get(key)
    if api is None:
        raise BrokerError(f"request with API key {key}: the development broker has none such")
    if not api.first_version <= version <= api.last_version:
        if api.request is not ApiVersionsRequest:
            raise BrokerError(f"{api.name} version {version}: answered are {api.first_version} to {api.last_version}")
        return _encode(supported_versions(UnsupportedVersionError.errno), 0, correlation_id)
    request = _decode(api, version, frame)
    response = await _carry_out(state, api, request)
    return _encode(response, version, correlation_id) if request.expect_response() else None


async def _carry_out(state: BrokerState, api: Api, request: Any) -> Any:
    """Hands the request to its handler, with the faults that strike its API."""
    state.faults.refresh()
    delay = state.faults.take(Delay, api.name)
    if delay:
        await asyncio.sleep(delay.delay_ms / 1_000)
    cut = state.faults.take(Cut, api.name)
    if cut and not cut.after:
        raise CutError
    response = await api.handle(state, request)
    if cut:
        raise CutError
    return response


def _decode(api: Api, version: int, frame: bytes) -> Any:
    header = io.BytesIO(frame)
    RequestHeader.decode(header, flexible=api.request.flexible_version_q(version))
    return api.request.decode(memoryview(frame)[header.tell() :], version=version)


def _encode(response: Any, version: int, correlation_id: int) -> bytes:
    response.API_VERSION = version
    response.with_header(correlation_id=correlation_id)
    encoded: bytes = response.encode(header=True, framed=True)
    return encoded

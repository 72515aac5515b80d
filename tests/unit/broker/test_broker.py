import asyncio
from pathlib import Path

import pytest

from app.broker import Broker
from app.errors import ConfigError


def test_a_port_in_use_is_said_and_leaves_the_folder_free(tmp_path: Path) -> None:
    async def start_second_on_the_same_port() -> None:
        async with Broker() as first:
            with pytest.raises(ConfigError, match=f"port {first.port}.*name another"):
                await Broker(first.port, tmp_path).start()
        async with Broker(0, tmp_path):
            pass

    asyncio.run(start_second_on_the_same_port())


def test_a_folder_has_one_broker_at_a_time(tmp_path: Path) -> None:
    async def start_second_in_the_same_folder() -> None:
        async with Broker(0, tmp_path):
            with pytest.raises(ConfigError, match="in use by another broker"):
                await Broker(0, tmp_path).start()

    asyncio.run(start_second_in_the_same_folder())


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x08\x00\x0b\x00\x00\x00\x00\x00\x07"])
def test_a_frame_that_is_not_understood_closes_its_connection_alone(sent: bytes) -> None:
    async def send() -> bytes:
        async with Broker() as broker:
            reader, writer = await asyncio.open_connection(broker.host, broker.port)
            _, other = await asyncio.open_connection(broker.host, broker.port)
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            assert not other.is_closing()
            other.close()
            return answer

    assert asyncio.run(send()) == b""

"""The broker as a process of its own."""

import asyncio
import signal
from pathlib import Path

from app.broker.broker import Broker
from app.broker.faults import Faults
from app.process import settle_process


def serve_forever(port: int, directory: Path | None = None, faults_file: Path | None = None) -> None:
    """Serves on loopback until TERM or INT, then stops cleanly. Port 0 takes a free one.

    Prints one line with the address when it is ready. Raises ConfigError when port or directory is in use.
    """
    asyncio.run(_serve(Broker(port, directory, Faults(faults_file)), directory))


async def _serve(broker: Broker, directory: Path | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for wanted in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(wanted, stopping.set)
    async with broker:
        kept = f"log in {directory}" if directory else "log in memory"
        print(f"Development broker, not for production: {broker.bootstrap}, {kept}", flush=True)
        settle_process()
        await stopping.wait()

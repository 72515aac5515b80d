"""Where a benchmark takes place: a broker of its own, the processes it starts, a folder that goes away with it."""

import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from app.errors import HeadraceError
from app.operate.console import Console
from app.operate.outcomes import end_offsets
from app.operate.ports import is_free
from app.operate.processes import Processes
from app.operate.sending import stop_on_signals
from app.operate.stack import BROKER
from app.sources import ClientName, KafkaSettings, open_admin, open_consumer

BESIDE = Path(__file__).parents[2] / "shared" / "kafka" / "kafka"
PARTITIONS = 4
FIRST_PORT = 19_092
START_TIMEOUT_S = 60.0
DEVELOPMENT_BROKER = [sys.executable, "-m", "app", "broker"]
PATIENT = ["--set", "broker.session.timeout.ms=18000"]
"""Without CPU for the default of 9 s it would be fenced, and Ray holds both cores of a small machine at its start."""


@dataclass
class Site:
    """`apart` names, by their ids, the processes that are not what is measured: the broker, whoever sends traffic."""

    data: Path
    console: Console
    stopping: threading.Event
    processes: Processes
    client: ClientName
    broker: str
    broker_command: Sequence[str]
    bootstrap: str
    apart: dict[int, str]

    @property
    def kafka(self) -> KafkaSettings:
        """For what the benchmark itself reads and makes, whichever client the pipeline is measured with."""
        return KafkaSettings(bootstrap=self.bootstrap)

    def make_topics(self, *topics: str) -> None:
        with closing(open_admin(self.kafka)) as admin:
            admin.ensure_topics(dict.fromkeys(topics, PARTITIONS))

    def end_offsets(self, topic: str) -> dict[int, int]:
        with closing(open_consumer(self.kafka)) as consumer:
            return end_offsets(consumer, topic)

    def wait(self, holds: Callable[[], bool], what: str, process: str, timeout_s: float) -> None:
        """Waits until it holds; asks once a second, for asking costs what is measured a little.

        Raises HeadraceError after timeout_s, or when the process has ended; KeyboardInterrupt when told to stop.
        """
        for _ in range(int(timeout_s)):
            self.processes.check(process)
            if holds():
                return
            if self.stopping.wait(1.0):
                raise KeyboardInterrupt
        raise HeadraceError(f"{what}: not within {timeout_s:.0f} s; {self.processes.tail(process)}")


@contextmanager
def open_site(client: ClientName) -> Iterator[Site]:
    """Starts a broker, Apache Kafka where there is one; ends everything behind."""
    console = Console(sys.stderr)
    with TemporaryDirectory(prefix="headrace-bench-") as folder, stop_on_signals() as stopping:
        data = Path(folder)
        with Processes(data) as processes:
            command = kafka_command()
            name = "Apache Kafka" if command else "the development broker"
            console.say(f"On {name}.")
            port = next(port for port in range(FIRST_PORT, 65_000) if is_free(port) and is_free(port + 1))
            broker_command = [*(command or DEVELOPMENT_BROKER), "--port", str(port), "--dir", str(data / "kafka")]
            if command:
                broker_command += PATIENT
            pid = start(processes, BROKER, broker_command)
            bootstrap = f"127.0.0.1:{port}"
            site = Site(data, console, stopping, processes, client, name, broker_command, bootstrap, {pid: BROKER})
            site.wait(lambda: accepts(bootstrap), name, BROKER, START_TIMEOUT_S)
            yield site


def kafka_command() -> list[str] | None:
    """From KAFKA_CMD, or the one that lies beside the repository: a command that takes --port and --dir."""
    if given := os.environ.get("KAFKA_CMD"):
        return shlex.split(given)
    return [str(BESIDE)] if BESIDE.exists() else None


def start(processes: Processes, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Starts a process and returns its id."""
    before = set(children())
    processes.start(name, command, environment)
    return (set(children()) - before).pop()


def children() -> list[int]:
    return [each.pid for each in psutil.Process().children()]


def accepts(bootstrap: str) -> bool:
    host, _, port = bootstrap.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0

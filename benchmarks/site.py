"""Where a benchmark takes place: a broker of its own, the processes it starts, a folder that goes away with it."""

import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

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
    """`apart` names, by their ids, the processes that are not what is measured: the broker, whoever sends traffic.

    `brokers` are those of the cluster, by the names of their processes.
    """

    data: Path
    console: Console
    stopping: threading.Event
    processes: Processes
    client: ClientName
    broker: str
    brokers: Mapping[str, "Broker"]
    apart: dict[int, str]

    @property
    def kafka(self) -> KafkaSettings:
        """For what the benchmark itself reads and makes, whichever client the pipeline is measured with."""
        return KafkaSettings(bootstrap=self.bootstrap)

    def make_topics(self, *topics: str) -> None:
        with closing(open_admin(self.kafka)) as admin:
            admin.ensure_topics(dict.fromkeys(topics, PARTITIONS))

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers.values())

    def start_brokers(self, *names: str) -> None:
        """Starts them, again with what they had if they were there before; returns when all accept."""
        for name in names:
            self.apart[start(self.processes, name, self.brokers[name].command)] = BROKER
        for name in names:
            port = self.brokers[name].port
            self.wait(lambda port=port: accepts(port), name, name, START_TIMEOUT_S)

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


class Broker(NamedTuple):
    port: int
    command: Sequence[str]


@contextmanager
def open_site(client: ClientName, brokers: int = 1) -> Iterator[Site]:
    """Starts a cluster of brokers, Apache Kafka where there is one; ends everything behind.

    Raises HeadraceError when several brokers are wanted and there is only the development broker, which is one.
    """
    console = Console(sys.stderr)
    with TemporaryDirectory(prefix="headrace-bench-") as folder, stop_on_signals() as stopping:
        data = Path(folder)
        with Processes(data) as processes:
            command = kafka_command()
            name = broker_name()
            console.say(f"On {name}.")
            site = Site(data, console, stopping, processes, client, name, make_brokers(command, data, brokers), {})
            site.start_brokers(*site.brokers)
            yield site


def broker_name() -> str:
    return "Apache Kafka" if kafka_command() else "the development broker"


def make_brokers(kafka: list[str] | None, data: Path, how_many: int) -> dict[str, Broker]:
    """By the name of the process; each keeps its log in a folder of its own, and Kafka's controller listens on the
    port behind the broker's."""
    if kafka is None and how_many > 1:
        raise HeadraceError(f"a cluster of {how_many} brokers needs Apache Kafka; set KAFKA_CMD to a command for it")
    ports = free_port_pairs(how_many)
    voters = ",".join(f"{number}@127.0.0.1:{port + 1}" for number, port in enumerate(ports, start=1))
    brokers = {}
    for number, port in enumerate(ports, start=1):
        name = BROKER if number == 1 else f"{BROKER}-{number}"
        command = [*(kafka or DEVELOPMENT_BROKER), "--port", str(port), "--dir", str(data / name)]
        if kafka:
            command += PATIENT
        if how_many > 1:
            command += ["--node", str(number), "--voters", voters]
        brokers[name] = Broker(port, command)
    return brokers


def free_port_pairs(how_many: int) -> list[int]:
    """Ports that are free and whose successors are free as well."""
    candidates = range(FIRST_PORT, 65_000, 2)
    return list(islice((port for port in candidates if is_free(port) and is_free(port + 1)), how_many))


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


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

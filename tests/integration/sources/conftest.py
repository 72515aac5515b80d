"""Each client library against each broker, on topics that no other test has used."""

import contextlib
import itertools
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from app.sources import (
    Admin,
    ClientName,
    Consumer,
    KafkaSettings,
    Producer,
    TopicPartition,
    open_admin,
    open_consumer,
    open_producer,
)
from tests.integration.conftest import ROOT, accepts, free_port, kafka_command, wait_until

names = (f"s{uuid.uuid4().hex[:8]}-{number}" for number in itertools.count())


@pytest.fixture(scope="session", params=get_args(ClientName))
def client(request: pytest.FixtureRequest) -> ClientName:
    return request.param


@pytest.fixture(scope="session")
def settings(client: ClientName, bootstrap: str) -> KafkaSettings:
    return KafkaSettings(bootstrap=bootstrap, client=client)


@pytest.fixture(scope="session")
def admin(settings: KafkaSettings) -> Iterator[Admin]:
    with contextlib.closing(open_admin(settings)) as admin:
        yield admin


@pytest.fixture
def topic() -> str:
    """A name that no test has used."""
    return next(names)


@pytest.fixture
def places(admin: Admin, topic: str) -> list[TopicPartition]:
    """The three partitions of a new topic."""
    admin.ensure_topics({topic: 3})
    return [TopicPartition(topic, number) for number in range(3)]


@pytest.fixture
def consumer(settings: KafkaSettings) -> Iterator[Consumer]:
    """It commits to a group of its own."""
    with contextlib.closing(open_consumer(settings, next(names))) as consumer:
        yield consumer


@pytest.fixture
def producer(settings: KafkaSettings) -> Iterator[Producer]:
    with contextlib.closing(open_producer(settings, linger_ms=1)) as producer:
        yield producer


class Taken:
    """What a consumer has returned so far: offsets and values, by partition."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.offsets: dict[TopicPartition, list[int]] = {}
        self.values: dict[TopicPartition, list[bytes | None]] = {}

    def poll(self, max_records: int = 100, timeout_ms: int = 50) -> int:
        found = self.consumer.poll(max_records, timeout_ms)
        for records in found:
            place = TopicPartition(records.topic, records.partition)
            self.offsets.setdefault(place, []).extend(records.offsets.tolist())
            self.values.setdefault(place, []).extend(records.values)
        return sum(map(len, found))

    def until(self, count: int, max_records: int = 100) -> "Taken":
        """Polls until so many records have come in all."""
        wait_until(
            lambda: (self.poll(max_records) and False) or sum(map(len, self.offsets.values())) >= count,
            f"{count} records",
            20,
        )
        return self


def write(producer: Producer, place: TopicPartition, values: range) -> None:
    """Writes the numbers as records, and waits until they are in."""
    for value in values:
        producer.send(place.topic, b"%d" % value, partition=place.partition)
    assert producer.flush(20) == 0


def numbers(values: range) -> list[bytes]:
    return [b"%d" % value for value in values]


class BrokerProcess:
    """A broker that can be ended and started again, on the same port and folder."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.port = free_port(2)  # the successor is for the controller of Kafka
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._command = [*command, "--port", str(self.port), "--dir", str(folder / "data")]
        self._output = folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        wait_until(lambda: accepts(self.port), "the broker accepts")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def dev_command() -> list[str]:
    return [sys.executable, "-m", "app.broker"]


def apache_command() -> list[str]:
    # The default of 9 s is how long a broker that was killed is refused when it comes back.
    return [*kafka_command(), "--set", "broker.session.timeout.ms=3000"]


@pytest.fixture(params=[dev_command, pytest.param(apache_command, marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    command: Callable[[], list[str]] = request.param
    broker = BrokerProcess(command(), tmp_path)
    broker.start()
    yield broker
    broker.kill()

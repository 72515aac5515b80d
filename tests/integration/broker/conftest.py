import itertools
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.broker.clients import Client, ConfluentKafka, KafkaPython
from tests.integration.conftest import ROOT, free_port

LIBRARIES = {"kafka-python": KafkaPython, "confluent-kafka": ConfluentKafka}
names = (f"t{uuid.uuid4().hex[:8]}-{number}" for number in itertools.count())


@pytest.fixture(scope="session", params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> type[Client]:
    return LIBRARIES[request.param]


@pytest.fixture(scope="session")
def client(library: type[Client], bootstrap: str) -> Iterator[Client]:
    with closing(library(bootstrap)) as client:
        yield client


@pytest.fixture
def topic() -> str:
    """A name that no test has used."""
    return next(names)


class BrokerProcess:
    """A development broker that can be ended and started again on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log_directory = folder / "log"
        self.faults_file = folder / "faults.json"
        self.start()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--port", str(self.port), "--dir", str(self.log_directory), "--faults", str(self.faults_file)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.broker", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.announcement = self._process.stdout.readline()

    def end(self, by: signal.Signals) -> int:
        """Returns the exit status."""
        self._process.send_signal(by)
        self._process.communicate(timeout=10)
        return self._process.returncode

    def set_faults(self, text: str) -> None:
        beside = self.faults_file.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.faults_file)


@pytest.fixture
def broker_process(tmp_path: Path) -> Iterator[BrokerProcess]:
    process = BrokerProcess(tmp_path)
    yield process
    process.end(signal.SIGKILL)

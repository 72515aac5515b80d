"""Brokers for tests, one of each kind a session, in a process of its own, on a free port; and a browser."""

import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from app.operate.ports import is_free

ROOT = Path(__file__).parents[2]
INSTALL_BROWSER = ROOT / "scripts" / "install-browser"
START_DEADLINE_S = 60
# Half the CPU for each of the twenty times that the suite starts Apache Kafka: 2.3 s instead of 4.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


PORTS_OF_A_WORKER, WORKERS = 4_500, 4
FIRST_PORT = 14_000
"""Below those that the system gives to clients: one of these took a broker's port before that could listen."""


def free_port(count: int = 1) -> int:
    """A port that nobody listens on, nor on its count - 1 successors; from a range of this test process's own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    first = FIRST_PORT + worker * PORTS_OF_A_WORKER
    while True:
        port = random.randrange(first, first + PORTS_OF_A_WORKER - count)
        if all(is_free(port + each) for each in range(count)):
            return port


def wait_until(
    holds: Callable[[], object], what: str, deadline_s: float = START_DEADLINE_S, poll_s: float = 0.02
) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:g} s")
        time.sleep(poll_s)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run_broker(command: list[str], port: int, log_path: Path) -> Iterator[str]:
    """Yields the bootstrap address of a broker that accepts; ends its process behind."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: accepts(port) or process.poll() is not None, f"{command[0]} on port {port}")
        if process.poll() is not None:
            raise RuntimeError(f"{shlex.join(command)} ended: {log_path.read_text()[-2_000:]}")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def kafka_command() -> list[str]:
    """From KAFKA_CMD, or the one that lies beside the repository. Skips the test that asks when there is neither."""
    given = os.environ.get("KAFKA_CMD")
    if given:
        return shlex.split(given)
    beside = ROOT.parent / "shared" / "kafka" / "kafka"
    if not beside.exists():
        pytest.skip("needs Apache Kafka: set KAFKA_CMD to a command that takes --port and --dir")
    return [str(beside)]


@pytest.fixture(scope="session")
def dev_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap address of a development broker with its log in memory."""
    port = free_port()
    log_path = tmp_path_factory.mktemp("dev-broker") / "log"
    yield from run_broker([sys.executable, "-m", "app.broker", "--port", str(port)], port, log_path)


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap address of Apache Kafka."""
    command = kafka_command()
    port = free_port(2)  # the successor is for its controller
    directory = tmp_path_factory.mktemp("apache-kafka")
    settings = [
        "broker.session.timeout.ms=18000",  # without CPU for 9 s it would be fenced: Ray can hold both cores
        "log.retention.check.interval.ms=500",
        "log.initial.task.delay.ms=500",
        "log.message.timestamp.type=LogAppendTime",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms=500",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    yield from run_broker(
        [*command, "--port", str(port), "--dir", str(directory), *options], port, directory / "output"
    )


@pytest.fixture(
    scope="session",
    params=["development broker", pytest.param("Apache Kafka", marks=pytest.mark.kafka)],
)
def bootstrap(request: pytest.FixtureRequest) -> str:
    """The address of one broker after the other: a test that takes it runs against both."""
    name = "dev_broker" if request.param == "development broker" else "apache_kafka"
    return str(request.getfixturevalue(name))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, installed where it is missing and may be installed."""
    found = subprocess.run([INSTALL_BROWSER], capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Whatever is not on loopback goes to a proxy that does not exist."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking"],
            proxy={"server": "http://127.0.0.1:9", "bypass": "127.0.0.1"},
        )
        yield browser
        browser.close()


@pytest.fixture
def requested() -> list[str]:
    """The addresses that the page has asked for."""
    return []


@pytest.fixture
def page(browser: Browser, requested: list[str]) -> Iterator[Page]:
    """A page whose scripts must not fail."""
    errors: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []

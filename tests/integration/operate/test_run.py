"""`make run` through its front door, with a stand-in for Ray: what it says, and that it leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[3]
FAKE_SERVE = str(Path(__file__).with_name("fake_serve.py"))
PATIENCE_S = 60.0
ENDING_S = 15.0
FRONT_DOOR = """
import sys
from app.operate import cli, stack
stack.SERVE = [sys.executable, {fake!r}]
sys.exit(cli.main(["run", *sys.argv[1:]]))
"""


class Run:
    """One `python -m app run` in a folder of its own."""

    def __init__(self, folder: Path, behaviour: str, *arguments: str) -> None:
        self.folder = folder
        self.said = folder / "said"
        port = self._free_port()
        config = yaml.safe_load((ROOT / "config" / "fraud.yaml").read_text())
        config["http_options"]["port"] = port
        (folder / "fraud.yaml").write_text(yaml.safe_dump(config))
        self.port = port
        command = [sys.executable, "-c", FRONT_DOOR.format(fake=FAKE_SERVE), "--config", "fraud.yaml", *arguments]
        with self.said.open("wb") as said:
            self.process = psutil.Popen(
                command,
                cwd=folder,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "FAKE_SERVE": behaviour},
                preexec_fn=ignore_interrupts,
            )

    def output(self) -> str:
        return self.said.read_text()

    def wait_for(self, text: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while text not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline_s, self.output()
            time.sleep(0.05)

    def wait(self) -> int:
        return int(self.process.wait(PATIENCE_S))

    @staticmethod
    def _free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])


def strays(folder: Path) -> list[str]:
    """The processes that work in the folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(" ".join(process.info["cmdline"]))
    return found


def ignore_interrupts() -> None:
    """As a shell does for a command in the background: `make run &` has to heed Ctrl-C all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        if run.process.is_running():
            for process in [run.process, *run.process.children(recursive=True)]:
                process.kill()


def start(runs: list[Run], folder: Path, behaviour: str, *arguments: str) -> Run:
    folder.mkdir(exist_ok=True)
    runs.append(Run(folder, behaviour, *arguments))
    return runs[-1]


def test_a_run_of_some_seconds_ends_by_itself_and_its_last_line_is_json(runs: list[Run], tmp_path: Path) -> None:
    run = start(runs, tmp_path, "well", "--duration", "2", "--rate", "300")
    assert run.wait() == 0, run.output()
    assert strays(tmp_path) == []
    summary = json.loads(run.output().splitlines()[-1])
    assert summary == {
        "events": 600,
        "decisions": 0,
        "dead_letters": 0,
        "duplicates": 0,
        "late": 0,
        "actions": 0,
        "p50_ms": 1.5,
        "p99_ms": 3.5,
        "lag": 0,
    }


def test_a_second_run_goes_on_with_new_events(runs: list[Run], tmp_path: Path) -> None:
    for _ in range(2):
        run = start(runs, tmp_path, "well", "--duration", "1", "--rate", "200")
        assert run.wait() == 0, run.output()
    stored = b"".join(each.read_bytes() for each in (tmp_path / ".headrace" / "broker").rglob("*") if each.is_file())
    assert b'"id":"sim-0-5"' in stored
    assert b'"id":"sim-1-5"' in stored


@pytest.mark.parametrize(
    ("number", "behaviour"),
    [(signal.SIGINT, "well"), (signal.SIGTERM, "well"), (signal.SIGHUP, "well"), (signal.SIGTERM, "stubborn")],
)
def test_a_signal_ends_everything_in_15_s(
    runs: list[Run], tmp_path: Path, number: signal.Signals, behaviour: str
) -> None:
    run = start(runs, tmp_path, behaviour)
    run.wait_for("events/s in")
    assert len(strays(tmp_path)) == 5, "the run itself, broker, application and a process of that, simulator"
    begun_s = time.monotonic()
    run.process.send_signal(number)
    assert run.wait() == 0, run.output()
    assert time.monotonic() - begun_s < ENDING_S
    assert strays(tmp_path) == []
    assert run.output().endswith("Ended. The next run goes on from here.\n")
    if behaviour == "well":
        assert (tmp_path / ".headrace" / "application.log").read_text().endswith("drained\n")


def test_a_signal_while_it_starts_ends_everything(runs: list[Run], tmp_path: Path) -> None:
    run = start(runs, tmp_path, "well")
    run.wait_for("Starting the broker")
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.output()
    assert strays(tmp_path) == []


def test_an_application_that_cannot_start_ends_the_run_with_its_reason(runs: list[Run], tmp_path: Path) -> None:
    run = start(runs, tmp_path, "deploy failed")
    assert run.wait() == 1
    assert "the application cannot start; Serve says:\nConfigError: args.topics.source is missing" in run.output()
    assert strays(tmp_path) == []


def test_a_part_that_ends_by_itself_ends_the_run_with_its_last_words(runs: list[Run], tmp_path: Path) -> None:
    run = start(runs, tmp_path, "ends")
    assert run.wait() == 1
    assert "the application ended with status 1" in run.output()
    assert run.output().endswith("no room for an object store\n")


def test_a_broker_that_dies_ends_the_run(runs: list[Run], tmp_path: Path) -> None:
    run = start(runs, tmp_path, "well")
    run.wait_for("events/s in")
    broker = next(each for each in run.process.children() if "broker" in each.cmdline())
    broker.kill()
    assert run.wait() == 1
    assert "the broker ended with status -9" in run.output()


def test_a_port_in_use_is_said_and_another_taken(runs: list[Run], tmp_path: Path) -> None:
    run = start(runs, tmp_path, "well", "--duration", "1", "--rate", "10")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = (tmp_path / "fraud.yaml").read_text()
        port = taken.getsockname()[1]
        (tmp_path / "fraud.yaml").write_text(config.replace(f"port: {run.port}", f"port: {port}"))
        assert run.wait() == 0, run.output()
    assert f"Port {port} is in use; the application takes " in run.output()
    assert f"Live page      http://127.0.0.1:{port}/" not in run.output()


def test_a_second_run_at_the_same_time_is_refused(runs: list[Run], tmp_path: Path) -> None:
    first = start(runs, tmp_path, "well")
    first.wait_for("events/s in")
    second = start(runs, tmp_path, "well")
    assert second.wait() == 1
    assert first.process.poll() is None
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 0

"""Child processes: what they say when they end, and that none is left."""

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.operate.processes import ProcessEndedError, Processes

PATIENCE_S = 10.0
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
ORPHAN = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", {stubborn!r}], start_new_session=True, stdout=subprocess.PIPE)
left.stdout.readline()
print(left.pid, flush=True)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)
"""


def wait_for_output(processes: Processes, name: str) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while not (said := processes.output(name)).endswith("\n"):
        assert time.monotonic() < deadline_s, f"{name} said only {said!r}"
        time.sleep(0.01)
    return said


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ended_is_reported_with_what_it_said_last(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("broker", [sys.executable, "-c", "print('no room'); raise SystemExit(3)"])
        deadline_s = time.monotonic() + PATIENCE_S
        while processes.exit_status("broker") is None:
            assert time.monotonic() < deadline_s
        with pytest.raises(ProcessEndedError) as ended:
            processes.check("broker", "never started")
    assert str(ended.value) == f"the broker ended with status 3; the end of {tmp_path}/broker.log:\nno room"


def test_a_process_that_heeds_its_signal_ends_by_it(tmp_path: Path) -> None:
    code = "import signal; print('up', flush=True); signal.sigwait([signal.SIGINT]); print('bye', flush=True)"
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); "
    with Processes(tmp_path) as processes:
        processes.start("worker", [sys.executable, "-c", block + code])
        wait_for_output(processes, "worker")
        processes.end("worker", signal.SIGINT, PATIENCE_S)
        assert processes.output("worker") == "up\nbye\n"


def test_a_process_that_heeds_no_signal_is_killed(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("worker", [sys.executable, "-c", STUBBORN])
        wait_for_output(processes, "worker")
        processes.end("worker", signal.SIGTERM, 0.1)
        assert psutil.Process().children(recursive=True) == []


def test_nothing_is_left_when_the_block_ends_not_even_orphans(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("sleeper", SLEEP)
        processes.start("parent", [sys.executable, "-c", ORPHAN.format(stubborn=STUBBORN)])
        wait_for_output(processes, "sleeper")
        orphan = int(wait_for_output(processes, "parent"))
        assert not is_gone(orphan)
    assert is_gone(orphan)
    assert psutil.Process().children(recursive=True) == []


def test_nothing_is_left_when_the_block_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with Processes(tmp_path) as processes:
            processes.start("sleeper", SLEEP)
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        fail()
    assert psutil.Process().children(recursive=True) == []


def test_a_process_gets_the_environment_it_is_given(tmp_path: Path) -> None:
    code = "import os; print(os.environ['BOOTSTRAP'], 'PATH' in os.environ)"
    with Processes(tmp_path) as processes:
        processes.start("worker", [sys.executable, "-c", code], {"BOOTSTRAP": "here:1"})
        assert wait_for_output(processes, "worker") == "here:1 True\n"

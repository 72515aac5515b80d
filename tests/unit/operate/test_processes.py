"""Child processes: what they say when they end, and that none is left.

Each test runs in a process of its own: leaving the block ends every descendant, and pytest may have others.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PRELUDE = """
import signal, sys, time
from pathlib import Path
import psutil
from app.operate.processes import ProcessEndedError, Processes

LOGS = Path(sys.argv[1])
UP = "print('up', flush=True); "
SLEEP = UP + "import time; time.sleep(600)"
STUBBORN = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]; " + SLEEP
ORPHAN = f'''
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
'''

def wait_for(condition):
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)

def start(processes, name, code, environment=None):
    processes.start(name, [sys.executable, "-c", code], environment)
    wait_for(lambda: processes.output(name).endswith("\\n"))
    return processes.output(name)

def descendants():
    return psutil.Process().children(recursive=True)
"""


def check(scenario: str, tmp_path: Path) -> str:
    """Runs the scenario, which asserts for itself, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + scenario, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_that_ended_is_reported_with_what_it_said_last(tmp_path: Path) -> None:
    scenario = """
with Processes(LOGS) as processes:
    start(processes, "broker", "print('no room', flush=True); raise SystemExit(3)")
    wait_for(lambda: processes.exit_status("broker") is not None)
    try:
        processes.check("never started", "broker")
    except ProcessEndedError as ended:
        print(ended, end="")
"""
    said = check(scenario, tmp_path)
    assert said == f"the broker ended with status 3; the end of {tmp_path}/broker.log:\nno room"


def test_a_process_that_heeds_its_signal_ends_by_it(tmp_path: Path) -> None:
    scenario = """
block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); "
with Processes(LOGS) as processes:
    start(processes, "worker", block + UP + "signal.sigwait([signal.SIGINT]); print('bye', flush=True)")
    processes.end("worker", signal.SIGINT, 20)
    assert processes.output("worker") == "up\\nbye\\n"
"""
    check(scenario, tmp_path)


def test_a_process_that_heeds_no_signal_is_killed(tmp_path: Path) -> None:
    scenario = """
with Processes(LOGS) as processes:
    start(processes, "worker", STUBBORN)
    processes.end("worker", signal.SIGTERM, 0.1)
    assert descendants() == []
"""
    check(scenario, tmp_path)


def test_nothing_is_left_when_the_block_ends_not_even_orphans(tmp_path: Path) -> None:
    scenario = """
with Processes(LOGS) as processes:
    start(processes, "sleeper", SLEEP)
    orphan = psutil.Process(int(start(processes, "parent", ORPHAN)))
    wait_for(lambda: processes.exit_status("parent") is not None)
    assert orphan.is_running()
assert not orphan.is_running()
assert descendants() == []
"""
    check(scenario, tmp_path)


def test_nothing_is_left_when_the_block_fails(tmp_path: Path) -> None:
    scenario = """
try:
    with Processes(LOGS) as processes:
        start(processes, "sleeper", SLEEP)
        raise LookupError
except LookupError:
    assert descendants() == []
    print("failed and clean")
"""
    assert check(scenario, tmp_path) == "failed and clean\n"


def test_a_process_gets_the_environment_it_is_given(tmp_path: Path) -> None:
    scenario = """
with Processes(LOGS) as processes:
    code = "import os; print(os.environ['BOOTSTRAP'], 'PATH' in os.environ, flush=True)"
    print(start(processes, "worker", code, {"BOOTSTRAP": "here:1"}), end="")
"""
    assert check(scenario, tmp_path) == "here:1 True\n"

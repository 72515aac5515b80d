"""The short form of `make chaos`: one fault, on the whole running application."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
FAULT = "stream-worker-killed"
MARK = "HEADRACE_TEST_RUN"
COUNTS = ("lost", "decided_twice", "effects_lost", "effects_twice", "features_wrong")


def test_a_killed_worker_loses_nothing_and_repeats_nothing_and_leaves_no_process_behind(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "benchmarks.chaos", "--fault", FAULT, "--rate", "300", "--json", str(file)]
    environment = os.environ | {MARK: str(file)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads(file.read_text())
    assert set(row) == {"fault", *COUNTS, "first_decision_s", "max_latency_ms"}
    assert row["fault"] == FAULT
    assert not any(row[name] for name in COUNTS)
    assert row["first_decision_s"] > 0
    assert [each.cmdline() for each in psutil.process_iter() if marked(each, str(file))] == []


def marked(process: psutil.Process, mark: str) -> bool:
    """Whether it descends from the run, whoever its parent is now: children have their parents' environment."""
    with suppress(psutil.Error):
        return process.environ().get(MARK) == mark
    return False

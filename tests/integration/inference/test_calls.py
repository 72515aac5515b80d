"""Model calls against real Serve replicas, in the fast mode that the configs set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.operate.stack import RAY_ENVIRONMENT
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.ray


def test_poison_is_found_a_call_given_up_is_cancelled_and_a_replica_that_dies_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.inference.driver", str(file)],
        cwd=ROOT,
        env={**os.environ, **RAY_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    found = json.loads(file.read_text())
    assert found["plain"] == {"double": [2.0, 4.0], "failed": {}}
    assert [found["poison"]["double"][row] for row in (0, 2, 3)] == [2.0, 6.0, 8.0]
    raised = "the model 'double' raised ValueError: nine"
    assert found["poison"]["failed"] == {"1": raised, "4": raised}
    assert found["cancelled"] == 1
    assert found["killed"] == ["ModelDiedError", "the model 'double' died twice with the same call"]
    assert found["after"] == {"double": [8.0], "failed": {}}

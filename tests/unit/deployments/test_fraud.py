import asyncio
import subprocess
import sys

import numpy as np
import pytest

from app.event import Columns
from deployments.fraud import FraudScorer
from models.fraud import WEIGHTS, FraudModel, load


def payments(rows: int) -> Columns:
    draw = np.random.default_rng(rows)
    return {name: draw.uniform(1, 60, rows) for name in FraudModel.inputs} | {"time": np.arange(rows)}


@pytest.mark.usefixtures("replica")
def test_a_replica_scores_as_the_shipped_weights_do() -> None:
    async def score() -> None:
        server = FraudScorer.func_or_class()
        await server.reconfigure({})
        await server.check_health()
        answer = await server.score(payments(20))
        expected = load(WEIGHTS)
        assert answer.version == expected.version
        np.testing.assert_array_equal(answer.columns["risk"], expected.predict(payments(20))["risk"])

    asyncio.run(score())


def test_the_deployment_names_the_models_inputs_and_outputs() -> None:
    assert FraudScorer.func_or_class.inputs == FraudModel.inputs
    assert FraudScorer.func_or_class.outputs == FraudModel.outputs


def test_a_worker_that_imports_the_deployment_does_not_load_torch() -> None:
    code = "import sys, deployments.fraud; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

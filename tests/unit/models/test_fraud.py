import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from app.errors import ConfigError
from app.event import Columns
from models import fraud
from models.fraud import WEIGHTS, FraudModel, FraudNetwork, fit, load, save
from models.fraud_signals import INPUTS
from models.metrics import auc_roc


def payments(rows: int, seed: int = 0) -> Columns:
    draw = np.random.default_rng(seed)
    columns: Columns = {name: draw.uniform(1, 60, rows) for name in INPUTS}
    return columns | {"time": draw.integers(0, 2_000_000_000_000, rows)}


def test_fit_finds_what_makes_a_fraud() -> None:
    columns, later = payments(6_000), payments(2_000, seed=1)
    network = fit(columns, columns["amount"] > 40, epochs=4, batch_rows=256)
    risk = FraudModel(network, "").predict(later)["risk"]
    assert auc_roc(later["amount"] > 40, risk) > 0.98


def test_fit_is_the_same_for_the_same_seed() -> None:
    columns = payments(500)
    first, second = (fit(columns, columns["amount"] > 40, epochs=1) for _ in range(2))
    np.testing.assert_array_equal(
        FraudModel(first, "").predict(columns)["risk"], FraudModel(second, "").predict(columns)["risk"]
    )


def test_risk_is_a_probability_for_each_row() -> None:
    risk = load(WEIGHTS).predict(payments(100))["risk"]
    assert risk.shape == (100,)
    assert risk.dtype == np.float32
    assert ((risk >= 0) & (risk <= 1)).all()


def test_no_rows_have_no_risks() -> None:
    assert load(WEIGHTS).predict(payments(0))["risk"].shape == (0,)


def test_a_payment_has_the_same_risk_alone_and_among_others() -> None:
    model, columns = load(WEIGHTS), payments(50)
    alone = [
        model.predict({name: column[row : row + 1] for name, column in columns.items()})["risk"][0] for row in range(50)
    ]
    np.testing.assert_allclose(model.predict(columns)["risk"], alone, rtol=1e-5)


def test_predict_takes_arrays_that_must_not_be_written_to() -> None:
    columns = payments(10)
    for column in columns.values():
        column.flags.writeable = False
    assert len(load(WEIGHTS).predict(columns)["risk"]) == 10


def test_weights_read_back_predict_the_same(tmp_path: Path) -> None:
    columns = payments(30)
    network = fit(columns, columns["amount"] > 40, epochs=1)
    version = save(network, tmp_path / "weights.safetensors", {})
    read = load(tmp_path / "weights.safetensors")
    assert read.version == version
    np.testing.assert_array_equal(read.predict(columns)["risk"], FraudModel(network, "").predict(columns)["risk"])


def test_other_weights_have_another_version(tmp_path: Path) -> None:
    versions = {save(FraudNetwork(), tmp_path / f"{number}.safetensors", {}) for number in range(3)}
    assert len(versions) == 3


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.numpy.save({"layers.0.bias": np.zeros(8, np.float32)}))
    with pytest.raises(ConfigError, match=r"other\.safetensors holds no weights of this network"):
        load(path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"broken\.safetensors holds no weights of this network"):
        load(path)


def test_the_shipped_weights_are_those_that_their_card_describes() -> None:
    card = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert card["version"] == load(WEIGHTS).version
    assert tuple(card["inputs"]) == fraud.INPUTS
    assert card["metrics"]["auc_roc"] > 0.6
    assert WEIGHTS.stat().st_size < 200_000

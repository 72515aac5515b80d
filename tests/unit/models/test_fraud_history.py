from pathlib import Path

import numpy as np
import pytest

from app.pipelines.fraud import RISKY
from models.fraud import WEIGHTS, load
from models.fraud_history import read_history, simulate_history
from models.handbook import History

CSV = """\
transaction_id,tx_datetime,customer_id,terminal_id,tx_amount,tx_fraud,tx_fraud_scenario
0,2022-03-01 00:08:21,7,484,10.0,0,0
1,2022-03-01 23:25:59,7,515,30.5,1,1
2,2022-03-02 12:00:00,8,515,12,0,0
3,2022-03-04 00:00:00,7,515,19.5,0,0
"""


@pytest.fixture(scope="module")
def simulated() -> History:
    return simulate_history(seed=11, day_count=35)


def test_recorded_payments_get_labels_days_and_features(tmp_path: Path) -> None:
    path = tmp_path / "payments.csv"
    path.write_text(CSV)
    history = read_history(path)
    assert history.fraud.tolist() == [False, True, False, False]
    assert history.day.tolist() == [0, 0, 1, 3]
    assert history.columns["card"].tolist() == ["7", "7", "8", "7"]
    assert history.columns["time"][0] == 1_646_093_301_000
    assert history.columns["payments_1d"].tolist() == [1, 2, 1, 1]
    assert history.columns["payments_7d"].tolist() == [1, 2, 1, 3]
    np.testing.assert_allclose(history.columns["mean_amount_30d"], [10, 20.25, 12, 20])


def test_the_pipeline_holds_between_half_a_percent_and_two_percent_of_payments(simulated: History) -> None:
    risk = load(WEIGHTS).predict(simulated.columns)["risk"]
    held = risk[simulated.day >= 21] > RISKY
    assert 0.005 < held.mean() < 0.02


def test_a_held_payment_is_fraud_thirty_times_as_often_as_any(simulated: History) -> None:
    risk = load(WEIGHTS).predict(simulated.columns)["risk"]
    assert simulated.fraud[risk > RISKY].mean() > 30 * simulated.fraud.mean()

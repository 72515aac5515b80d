from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import auc_roc, average_precision, card_precision

ranked = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40).map(
    lambda rows: (np.array([row[0] for row in rows]), np.array([row[1] / 8 for row in rows]))
)


@given(ranked)
def test_the_area_is_the_share_of_pairs_in_the_right_order(
    payments: tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]],
) -> None:
    labels, scores = payments
    pairs = [(fraud > genuine) + (fraud == genuine) / 2 for fraud, genuine in product(scores[labels], scores[~labels])]
    if pairs:
        assert auc_roc(labels, scores) == pytest.approx(np.mean(pairs))
    else:
        assert np.isnan(auc_roc(labels, scores))


@given(ranked)
def test_average_precision_sums_precision_over_the_recall_that_each_threshold_adds(
    payments: tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]],
) -> None:
    labels, scores = payments
    if not labels.any():
        assert np.isnan(average_precision(labels, scores))
        return
    expected, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        flagged = scores >= threshold
        recall = labels[flagged].sum() / labels.sum()
        expected += labels[flagged].mean() * (recall - recall_before)
        recall_before = recall
    assert average_precision(labels, scores) == pytest.approx(expected)


def test_a_card_counts_by_its_riskiest_payment() -> None:
    day = np.zeros(4, np.int64)
    card = np.array(["a", "a", "b", "c"], dtype=object)
    fraud = np.array([False, True, False, True])
    assert card_precision(day, card, fraud, np.array([0.1, 0.9, 0.8, 0.2]), top=2) == 0.5
    assert card_precision(day, card, fraud, np.array([0.9, 0.1, 0.2, 0.8]), top=2) == 1.0


def test_a_card_caught_once_makes_room_for_others_on_later_days() -> None:
    day = np.array([0, 0, 1, 1])
    card = np.array(["a", "b", "a", "b"], dtype=object)
    fraud = np.array([True, False, False, True])
    scores = np.array([0.9, 0.1, 0.9, 0.1])
    assert card_precision(day, card, fraud, scores, top=1) == 1.0

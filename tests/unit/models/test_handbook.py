import numpy as np
import pytest

from app.errors import ConfigError
from models.handbook import FOLDS, SHORTEST_DAYS, History, first_training_end, judge

CARDS = 40


def history_of(day_count: int, fraud_share: float = 0.02) -> History:
    """Every card pays once a day; frauds fall at random."""
    draw = np.random.default_rng(3)
    rows = day_count * CARDS
    card = np.array([f"card-{number}" for number in range(CARDS)] * day_count, dtype=object)
    columns = {"card": card, "row": np.arange(rows), "amount": draw.random(rows)}
    return History(columns, draw.random(rows) < fraud_share, np.repeat(np.arange(day_count), CARDS))


def test_nothing_is_judged_within_a_week_after_training() -> None:
    history = history_of(80)
    judged: list[int] = []
    judge(history, lambda columns: judged.extend(history.day[columns["row"]]) or columns["amount"])  # type: ignore[func-returns-value]
    assert min(judged) == first_training_end(history) + 7
    assert max(judged) == 79
    assert len(set(judged)) == 7 * FOLDS


def test_cards_known_to_be_compromised_are_not_judged() -> None:
    history = history_of(SHORTEST_DAYS)
    weeks: list[list[int]] = []
    judge(history, lambda columns: weeks.append(columns["row"].tolist()) or columns["amount"])  # type: ignore[func-returns-value]
    for fold, rows in enumerate(weeks):
        training_start = SHORTEST_DAYS - 21 - 7 * (FOLDS - 1 - fold)
        expected = []
        for day in range(training_start + 14, training_start + 21):
            known_days = range(training_start, max(training_start + 7, day - 7))
            known = set(history.columns["card"][history.fraud & np.isin(history.day, known_days)])
            rows_of_day = np.flatnonzero(history.day == day).tolist()
            expected += [row for row in rows_of_day if history.columns["card"][row] not in known]
        assert rows == expected


def test_a_perfect_score_is_judged_perfect() -> None:
    history = history_of(70)
    quality = judge(history, lambda columns: history.fraud[columns["row"]].astype(np.float64))
    assert quality.auc_roc == 1.0
    assert quality.average_precision == 1.0


def test_a_history_too_short_to_judge_by_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"{SHORTEST_DAYS - 1} days are too short"):
        judge(history_of(SHORTEST_DAYS - 1), lambda columns: columns["amount"])

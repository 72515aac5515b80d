"""The evaluation protocol of the Fraud Detection Handbook: train on the past, wait for the labels, judge a week."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.errors import ConfigError
from app.event import Columns
from models.metrics import Labels, Scores, auc_roc, average_precision, card_precision

WEEK_DAYS = 7
DELAY_DAYS = 7
"""Labels of a day are known this much later, so nothing is trained on the week before the judged one."""
FOLDS = 4
SHORTEST_DAYS = 2 * WEEK_DAYS + DELAY_DAYS + FOLDS * WEEK_DAYS


@dataclass(frozen=True)
class History:
    """Past payments with their labels, in the order of their time. `day` counts from the first, int64."""

    columns: Columns
    fraud: Labels
    day: npt.NDArray[np.int64]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "History":
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return History(columns, self.fraud[chosen], self.day[chosen])


class Quality(NamedTuple):
    """Each measure in [0, 1], higher is better."""

    auc_roc: float
    average_precision: float
    card_precision_100: float


def first_training_end(history: History) -> int:
    """The first day that a model judged by `judge` must not have seen."""
    return _training_weeks(history)[0] + WEEK_DAYS


def judge(history: History, score: Callable[[Columns], Scores]) -> Quality:
    """The mean over the last FOLDS weeks. Cards already known to be compromised are left out, as published."""
    return Quality(*np.mean([_judge_week(week, score) for week in _judged_weeks(history)], axis=0).tolist())


def _training_weeks(history: History) -> list[int]:
    last = int(history.day[-1]) + 1 - WEEK_DAYS - DELAY_DAYS - WEEK_DAYS
    if history.day[-1] + 1 < SHORTEST_DAYS:
        raise ConfigError(
            f"{history.day[-1] + 1} days are too short a history to judge by; take {SHORTEST_DAYS} or more"
        )
    return [last - WEEK_DAYS * fold for fold in reversed(range(FOLDS))]


def _judged_weeks(history: History) -> Iterator[History]:
    day, card = history.day, history.columns["card"]
    for start in _training_weeks(history):
        known = set(card[history.fraud & (day >= start) & (day < start + WEEK_DAYS)])
        chosen = np.zeros(len(day), dtype=bool)
        for judged in range(start + WEEK_DAYS + DELAY_DAYS, start + WEEK_DAYS + DELAY_DAYS + WEEK_DAYS):
            known.update(card[history.fraud & (day == judged - DELAY_DAYS - 1)])
            rows = np.flatnonzero(day == judged)
            chosen[rows] = [each not in known for each in card[rows]]
        yield history.where(chosen)


def _judge_week(week: History, score: Callable[[Columns], Scores]) -> Quality:
    scores = score(week.columns)
    return Quality(
        auc_roc(week.fraud, scores),
        average_precision(week.fraud, scores),
        card_precision(week.day, week.columns["card"], week.fraud, scores),
    )

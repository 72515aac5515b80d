"""How well a score ranks frauds: the three measures of the Fraud Detection Handbook.

Labels are bool, scores float, one per payment; a higher score is more suspicious. Measures are in [0, 1], and
NaN where there is nothing to rank: no fraud, or, for the area, nothing but fraud.
"""

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating]


def auc_roc(labels: Labels, scores: Scores) -> float:
    """The chance that a random fraud scores above a random genuine payment; a tie counts half."""
    _, tie, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    frauds, genuine = labels.sum(), (~labels).sum()
    if frauds == 0 or genuine == 0:
        return float("nan")
    above = mean_rank[tie][labels].sum() - frauds * (frauds + 1) / 2
    return float(above / (frauds * genuine))


def average_precision(labels: Labels, scores: Scores) -> float:
    """Precision at each threshold, weighted by the recall that it adds; equal scores stand or fall together."""
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(labels[order])[ends]
    precision = found / (ends + 1)
    return float((precision * np.diff(found, prepend=0)).sum() / labels.sum())


def card_precision(
    day: npt.NDArray[np.int64],
    card: npt.NDArray[np.object_],
    labels: Labels,
    scores: Scores,
    top: int = 100,
) -> float:
    """The share of defrauded cards among the `top` riskiest of each day, mean over the days.

    A card counts with its riskiest payment of the day, and no more after the day on which it was caught.
    """
    caught: set[str] = set()
    precision = []
    for each in np.unique(day):
        rows = np.flatnonzero(day == each)
        riskiest: set[str] = set()
        for row in rows[np.argsort(-scores[rows], kind="stable")]:
            if card[row] not in caught:
                riskiest.add(card[row])
            if len(riskiest) == top:
                break
        defrauded = set(card[rows[labels[rows]]]) & riskiest
        precision.append(len(defrauded) / top)
        caught |= defrauded
    return float(np.mean(precision))

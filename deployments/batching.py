"""Several requests, one prediction: the arithmetic of it, without Serve."""

from collections.abc import Callable, Sequence

import numpy as np

from app.errors import InferenceError
from app.event import Columns

Predict = Callable[[Columns], Columns]


def predict_merged(predict: Predict, requests: Sequence[Columns]) -> list[Columns | Exception]:
    """Predicts all requests in one call and gives each its rows of the result, in order.

    When that fails, each request is predicted by itself: one that fails then has its error in the place of
    its result, and the others are unharmed.
    """
    if len(requests) > 1:
        try:
            return _predict_together(predict, requests)
        except Exception:  # noqa: BLE001, S110 - whose fault it is shows when each is predicted by itself
            pass
    return [_predict_alone(predict, request) for request in requests]


def _predict_together(predict: Predict, requests: Sequence[Columns]) -> list[Columns | Exception]:
    merged = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    ends = np.cumsum([_rows(request) for request in requests])
    result = _checked(predict(merged), int(ends[-1]))
    parts = {name: np.split(column, ends[:-1]) for name, column in result.items()}
    return [{name: part[at] for name, part in parts.items()} for at in range(len(requests))]


def _predict_alone(predict: Predict, request: Columns) -> Columns | Exception:
    try:
        return _checked(predict(request), _rows(request))
    except Exception as error:  # noqa: BLE001 - travels to the caller as the request's answer
        return error


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _checked(result: Columns, rows: int) -> Columns:
    for name, column in result.items():
        if len(column) != rows:
            raise InferenceError(f"the model gave {len(column)} rows of {name!r} for {rows} rows of input")
    return result

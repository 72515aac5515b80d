import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InferenceError
from app.event import Columns
from deployments.batching import predict_merged

POISON = -1.0

numbers = st.lists(st.integers(0, 99).map(float), max_size=6)
requests_of_rows = st.lists(numbers, min_size=1, max_size=8)


class Doubler:
    """Doubles `x`, cannot stand POISON, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, columns: Columns) -> Columns:
        self.calls += 1
        if POISON in columns["x"]:
            raise ValueError("poison")
        return {"y": columns["x"] * 2, "tag": columns["tag"]}


def request(values: list[float]) -> Columns:
    return {"x": np.array(values, np.float64), "tag": np.array([f"tag-{value}" for value in values], object)}


@given(requests_of_rows)
def test_every_request_gets_what_it_would_get_alone(rows: list[list[float]]) -> None:
    model = Doubler()
    answers = predict_merged(model.predict, [request(values) for values in rows])
    assert model.calls == 1
    for answer, values in zip(answers, rows, strict=True):
        alone = Doubler().predict(request(values))
        assert isinstance(answer, dict)
        assert {name: column.tolist() for name, column in answer.items()} == {
            name: column.tolist() for name, column in alone.items()
        }


@given(requests_of_rows, st.data())
def test_a_request_that_fails_fails_alone(rows: list[list[float]], data: st.DataObject) -> None:
    poisoned = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    sent = [[*values, POISON] if at in poisoned else values for at, values in enumerate(rows)]
    answers = predict_merged(Doubler().predict, [request(values) for values in sent])
    for at, (answer, values) in enumerate(zip(answers, sent, strict=True)):
        if at in poisoned:
            assert isinstance(answer, ValueError)
        else:
            assert isinstance(answer, dict)
            assert answer["y"].tolist() == [2 * value for value in values]


def test_a_request_without_a_column_fails_alone() -> None:
    whole, part = request([1.0]), {"x": np.ones(1)}
    for order in ([whole, part], [part, whole]):
        answers = predict_merged(Doubler().predict, order)
        assert [isinstance(answer, KeyError) for answer in answers] == [each is part for each in order]


def test_an_answer_of_another_length_is_an_error() -> None:
    answers = predict_merged(lambda columns: {"y": np.ones(1)}, [request([1.0, 2.0]), request([3.0])])
    assert isinstance(answers[0], InferenceError)
    assert str(answers[0]) == "the model gave 1 rows of 'y' for 2 rows of input"
    assert isinstance(answers[1], dict)


@pytest.mark.parametrize("count", [1, 3])
def test_arrays_that_must_not_be_written_to_are_merged(count: int) -> None:
    frozen = request([1.0, 2.0])
    frozen["x"].flags.writeable = False
    for answer in predict_merged(Doubler().predict, [frozen] * count):
        assert isinstance(answer, dict)
        assert answer["y"].tolist() == [2, 4]

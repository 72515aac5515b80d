"""Stacks as text."""

import traceback

from app.runtime.stack import MOST_CHARACTERS, describe_stack


def fail(with_what: str) -> None:
    try:
        int(with_what)
    except ValueError as error:
        raise RuntimeError("no number") from error


def descend(depth: int = 0) -> None:
    descend(depth + 1)


def caught(function, *arguments) -> RuntimeError:
    try:
        function(*arguments)
    except RuntimeError as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_calls_stand_as_python_prints_them_with_the_exception_they_came_from() -> None:
    error = caught(fail, "x")
    assert error.__cause__ is not None
    said = describe_stack(error)
    for each in (error.__cause__, error):
        assert "".join(traceback.format_exception_only(each)) in said
        for point in traceback.extract_tb(each.__traceback__):
            assert f'File "{point.filename}", line {point.lineno}, in {point.name}\n    {point.line}\n' in said
    assert said.index("ValueError") < said.index("RuntimeError")


def test_an_exception_that_hides_its_origin_hides_it_here() -> None:
    error = caught(fail, "x")
    error.__cause__ = None
    error.__suppress_context__ = True
    assert "ValueError" not in describe_stack(error)


def test_a_stack_however_deep_leaves_the_letter_room_in_a_record() -> None:
    said = describe_stack(caught(descend))
    assert said.count("in descend") == 10
    assert len(said) < 2_000
    assert len(describe_stack(RuntimeError("x" * 10**6))) == MOST_CHARACTERS

"""Every feature function there is, found by looking: whole batches, single events and the oracle agree."""

import inspect
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import app.features
from app.errors import DeclarationError
from app.event import field_types
from app.features import Features, KeyedState
from app.features.feature import Feature
from tests.unit.features.oracle import assert_answers, features_again, features_of
from tests.unit.features.streams import (
    LATENESS_MS,
    WINDOWS,
    Payment,
    Stream,
    assert_identical,
    busy_stream,
    make_stream,
    run,
    run_whole,
    streams,
    sweep,
)


def feature_functions() -> list[Callable[..., Feature]]:
    public = [getattr(app.features, name) for name in app.features.__all__]
    return [
        each for each in public if inspect.isfunction(each) and inspect.signature(each).return_annotation is Feature
    ]


def declarations() -> Iterator[tuple[str, Feature]]:
    """Each function over each field and window that it takes, by a name that says so."""
    for function in feature_functions():
        parameters = inspect.signature(function).parameters
        for field in Payment.__struct_fields__ if "field" in parameters else [None]:
            for last in (None, WINDOWS[0], list(WINDOWS)):
                options = {"field": field} if field else {}
                name = "_".join(map(str, (function.__name__, field, *(last or ["life"])))).replace(" ", "")
                yield name, function(**options, last=last)


def declare(name: str, body: dict[str, Feature], **options: str) -> type[Features]:
    options = {"by": "card", **options}
    return type(Features)(name, (Features,), body, of=Payment, **options)


def every_class() -> Iterator[type[Features]]:
    """A class for each declaration that is allowed, and some of all of them together."""
    allowed: dict[str, Feature] = {}
    for name, feature in declarations():
        try:
            yield declare(name, {name: feature})
        except DeclarationError:
            continue
        allowed[name] = feature
    yield declare("Everything", allowed)
    yield declare("EverythingByAccount", allowed, by="account")
    yield declare("EverythingForAWhile", allowed, ttl="5s")
    yield declare("EverythingWindowed", {name: each for name, each in allowed.items() if each.last})


CLASSES = {features.__name__: features for features in every_class()}
WIDE = [features for name, features in CLASSES.items() if name.startswith("Everything")]


def test_every_function_is_found() -> None:
    kinds = {column.kind for features in CLASSES.values() for column in features.declared}
    assert kinds == {function.__name__ for function in feature_functions()}
    assert len(kinds) == len(app.features.__all__) - len(["Features", "KeyedState"])
    assert {column.field for column in WIDE[0].declared} == {None, *field_types(Payment)}


@pytest.mark.parametrize("features", CLASSES.values(), ids=CLASSES)
@settings(max_examples=5, deadline=None)
@given(stream=streams())
def test_a_batch_of_n_equals_n_batches_of_one_equals_the_oracle(features: type[Features], stream: Stream) -> None:
    whole = run_whole(features, stream)
    singles = run(
        KeyedState(features, LATENESS_MS), [stream.part(row, row + 1) for row in range(len(stream))] or [stream]
    )
    assert_identical(singles, whole)
    assert_answers(whole, features_of(features, stream.columns, stream.watermark_ms))


@settings(max_examples=20, deadline=None)
@given(stream=streams(), features=st.sampled_from(WIDE), data=st.data())
def test_cuts_sweeps_and_restores_anywhere_change_no_bit(
    stream: Stream, features: type[Features], data: st.DataObject
) -> None:
    whole = run_whole(features, stream)
    parts = stream.cut(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    state = KeyedState(features, LATENESS_MS)
    outs = []
    for part in parts:
        outs.append(state.update(part.columns, part.watermark_ms))
        if len(part) and data.draw(st.booleans()):
            sweep(state, int(part.watermark_ms[-1]))
        if data.draw(st.booleans()):
            state = KeyedState.restore(features, LATENESS_MS, state.snapshot())
    assert_identical({name: np.concatenate([out[name] for out in outs]) for name in whole}, whole)
    assert_answers(whole, features_of(features, stream.columns, stream.watermark_ms))


@settings(max_examples=50, deadline=None)
@given(stream=streams(), features=st.sampled_from(WIDE), data=st.data())
def test_what_comes_again_is_answered_as_of_itself_and_not_added(
    stream: Stream, features: type[Features], data: st.DataObject
) -> None:
    there = stream.part(0, data.draw(st.integers(0, len(stream))))
    rows = rows_that_can_come_again(features, there)
    assume(rows)
    row = data.draw(st.sampled_from(rows))
    state = KeyedState(features, LATENESS_MS)
    state.update(*there)
    before = state.snapshot()
    out = state.update(stream.part(row, row + 1).columns, there.watermark_ms[-1:], np.array([True]))
    assert_answers(out, features_again(features, there.columns, there.watermark_ms, row))
    assert_identical(state.snapshot(), before)


@pytest.mark.parametrize("features", WIDE, ids=lambda features: features.__name__)
def test_what_comes_again_at_the_watermark_still_sees_what_came_before_it(features: type[Features]) -> None:
    times = np.cumsum([0, 4_000, LATENESS_MS])
    stream = make_stream(np.random.default_rng(4), np.diff(times, prepend=0), np.zeros(len(times), np.int64), keys=1)
    assert stream.watermark_ms[-1] == stream.columns["time"][1]
    state = KeyedState(features, LATENESS_MS)
    state.update(*stream)
    sweep(state, int(stream.watermark_ms[-1]))
    out = state.update(stream.part(1, 2).columns, stream.watermark_ms[-1:], np.array([True]))
    assert_answers(out, features_again(features, *stream, row=1))


def rows_that_can_come_again(features: type[Features], stream: Stream) -> list[int]:
    """Those that are not late by now; of several of one key and time the last one."""
    keys, times = stream.columns[features.by].tolist(), stream.columns["time"].tolist()
    last = {(keys[row], times[row]): row for row in range(len(stream))}
    return [row for row in last.values() if times[row] >= stream.watermark_ms[-1]]


@pytest.mark.parametrize("features", WIDE, ids=lambda features: features.__name__)
def test_what_is_said_to_come_again_and_is_not_there_is_added(features: type[Features]) -> None:
    stream = busy_stream(seed=9, size=80, keys=3, step_ms=400)
    added = KeyedState(features, LATENESS_MS)
    out = added.update(*stream, np.ones(len(stream), np.bool_))
    assert_identical(out, run_whole(features, stream))


@pytest.mark.parametrize("features", WIDE, ids=lambda features: features.__name__)
def test_a_restore_at_every_point_changes_no_bit(features: type[Features]) -> None:
    stream = busy_stream(seed=1, size=80, keys=3, step_ms=400)
    whole = run_whole(features, stream)
    state = KeyedState(features, LATENESS_MS)
    for row in range(len(stream)):
        state = KeyedState.restore(features, LATENESS_MS, state.snapshot())
        out = run(state, [stream.part(row, row + 1)])
        assert_identical(out, {name: column[row : row + 1] for name, column in whole.items()})


def _is_hot(value: object) -> bool:
    is_wanted = isinstance(value, Feature) and value.field in (None, "amount", "merchant")
    return is_wanted and value.last != WINDOWS[0]


@pytest.mark.parametrize(("seed", "keys"), [(2, 1), (3, 2), (4, 50)])
def test_hot_keys_with_thousands_of_events_in_a_window_equal_the_oracle(seed: int, keys: int) -> None:
    body = vars(CLASSES["Everything"])
    features = declare("Hot", {name: each for name, each in body.items() if _is_hot(each)})
    stream = busy_stream(seed, size=12_000, keys=keys, step_ms=1)
    whole = run_whole(features, stream)
    state = KeyedState(features, LATENESS_MS)
    outs = []
    for part in stream.cut(list(range(0, len(stream), 1_111))):
        if len(part):
            outs.append(state.update(part.columns, part.watermark_ms))
            sweep(state, int(part.watermark_ms[-1]))
            state = KeyedState.restore(features, LATENESS_MS, state.snapshot())
    assert_identical({name: np.concatenate([out[name] for out in outs]) for name in whole}, whole)
    rows = [*range(40), *range(1_000, len(stream), 2_003), len(stream) - 1]
    assert_answers(whole, features_of(features, stream.columns, stream.watermark_ms, rows))

"""Pipelines: what becomes of an event, declared once and checked when the module is imported."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt

from app.actions.action import Action, Decision, Sink
from app.errors import ConfigError, DeclarationError
from app.event import Columns, Event, field_types
from app.features import Features
from app.units import parse_duration_ms

E = TypeVar("E", bound=Event)
Decide = Callable[..., Iterable[Action]]
When = Callable[[Columns], npt.NDArray[np.bool_]]


class Verdicts(msgspec.Struct, gc=False):
    """What `decide` said of a batch: per row its actions as JSON, or None; and per failed row the error it raised."""

    actions: list[bytes | None]
    count: int
    failed: dict[int, Exception]


class Pipeline(Generic[E]):
    """Source events → features → models → decide → actions, each but the source optional.

    source:   the Event class that the topic's records are.
    features: Features classes over the source, all keyed by one field.
    models:   name → Serve deployment that says `inputs` and `outputs`; the name is one of its outputs.
    decide:   called per event with what its parameters name: the event (annotated with the Event class), features
              (annotated with a Features class), or a column by its name (a score, a feature, a field).
    when:     a condition over columns; `decide` is called only for the rows where it holds.
    fallback: decides like `decide`, without scores, when a model has not answered in time, fails, or sheds the call.
              Without one, the stream waits and asks again, in order.
    deadline: from an event's append to its decision, like "100ms"; when it is near, the fallback decides.
    actions:  Action class → the sinks that carry it out; `Decision` stands for every decision.

    Raises DeclarationError, which names what does not fit, at import.
    """

    def __init__(
        self,
        *,
        source: type[E],
        features: Sequence[type[Features]] = (),
        models: Mapping[str, Any] | None = None,
        decide: Decide | None = None,
        when: When | None = None,
        fallback: Decide | None = None,
        deadline: str | None = None,
        actions: Mapping[type[Action], Sequence[Sink]] | None = None,
    ) -> None:
        self.source = source
        self.features = tuple(features)
        self.models = dict(models or {})
        self.when = when
        self.actions = {action: tuple(sinks) for action, sinks in (actions or {}).items()}
        self.by = _common_key(source, self.features)
        self.fields = field_types(source)
        known = _unique([*self.fields, *(name for each in self.features for name in each.columns())])
        scores = _check_models(self.models, known)
        _unique([*known, *scores])
        self.decide = _Decider(decide, source, self.features, [*known, *scores]) if decide else None
        self.fallback = _Decider(fallback, source, self.features, known) if fallback else None
        self.inputs = frozenset(name for model in self.models.values() for name in model_class(model).inputs)
        self.deadline_ms = _parse_deadline(deadline, fallback)
        _check_sinks(self.actions)

    @property
    def sinks(self) -> dict[str, tuple[type[Action], Sink]]:
        """Each sink by its name, with the type of action it carries out."""
        return {sink.name: (action, sink) for action, sinks in self.actions.items() for sink in sinks}

    def judge(self, events: Sequence[E], columns: Columns, *, fallback: bool = False) -> Verdicts:
        """Decides n events; `columns` holds their fields, features and, unless by fallback, scores.

        An exception of `decide` or `when` concerns its own row alone and comes back in `failed`.
        """
        verdicts = Verdicts([None] * len(events), 0, {})
        decider = self.fallback if fallback else self.decide
        if decider is None:
            return verdicts
        ask_when = self.when is not None and not fallback
        rows = self._rows_of_interest(len(events), columns, verdicts.failed) if ask_when else range(len(events))
        for row in rows:
            try:
                actions = list(decider(events[row], columns, row))
                encoded = encode_actions(actions) if actions else None
            except Exception as error:  # noqa: BLE001 - user code; the row goes to the dead letters with it
                verdicts.failed[row] = error
                continue
            verdicts.actions[row] = encoded
            verdicts.count += len(actions)
        return verdicts

    def _rows_of_interest(self, rows: int, columns: Columns, failed: dict[int, Exception]) -> Sequence[int]:
        try:
            return self._where(columns, rows)
        except Exception:  # noqa: BLE001 - user code; each row is asked by itself to find the ones that fail
            interesting: list[int] = []
        for row in range(rows):
            try:
                alone = self._where({name: column[row : row + 1] for name, column in columns.items()}, 1)
            except Exception as error:  # noqa: BLE001 - user code; the row goes to the dead letters with it
                failed[row] = error
            else:
                interesting += [row] * len(alone)
        return interesting

    def _where(self, columns: Columns, rows: int) -> Sequence[int]:
        assert self.when is not None
        holds = np.asarray(self.when(columns))
        if holds.shape != (rows,) or holds.dtype != np.bool_:
            raise TypeError(f"when gave {holds.dtype} {holds.shape}, not one bool for each of {rows} rows")
        return np.flatnonzero(holds).tolist()


def encode_actions(actions: Sequence[Action]) -> bytes:
    """JSON: `[{"type": "Hold", …}, …]`, in the order in which `decide` gave them."""
    named = [{"type": type(action).__name__} | msgspec.structs.asdict(action) for action in actions]
    return msgspec.json.encode(named, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}, which no JSON holds; give the action text and numbers")


def model_class(model: Any) -> Any:
    """The class behind a Serve deployment; a plain class is itself."""
    return getattr(model, "func_or_class", model)


class _Decider:
    """Calls a decide function with the values that its parameters name."""

    def __init__(
        self, function: Decide, source: type[Event], features: Sequence[type[Features]], names: Sequence[str]
    ) -> None:
        self._function = function
        self._readers = [
            _reader(function, parameter, hint, source, features, names) for parameter, hint in _parameters(function)
        ]

    def __call__(self, event: Event, columns: Columns, row: int) -> Iterable[Action]:
        return self._function(*[read(event, columns, row) for read in self._readers])


Reader = Callable[[Event, Columns, int], Any]


def _parameters(function: Decide) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise DeclarationError(
                f"{function.__name__}() has a parameter {str(parameter)!r} that takes no single place; name plain "
                "parameters, without * and **"
            )
        yield name, hints.get(name)


def _reader(
    function: Decide,
    parameter: str,
    hint: Any,
    source: type[Event],
    features: Sequence[type[Features]],
    names: Sequence[str],
) -> Reader:
    if hint is source:
        return lambda event, columns, row: event
    if hint in features:
        return lambda event, columns, row: hint.row(columns, row)
    if parameter in names:
        return lambda event, columns, row: _scalar(columns[parameter][row])
    raise DeclarationError(
        f"{function.__name__}() has a parameter {parameter!r} that is nothing of this pipeline; annotate it with "
        f"{' or '.join(each.__name__ for each in (source, *features))}, or name one of {', '.join(names)}"
    )


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _common_key(source: type[Event], features: Sequence[type[Features]]) -> str | None:
    for each in features:
        if each.of is not source:
            raise DeclarationError(
                f"{each.__name__} is of {each.of.__name__}, but the pipeline's source is {source.__name__}"
            )
    _unique([each.__name__ for each in features], "Features classes")
    keys = sorted({each.by for each in features})
    if len(keys) > 1:
        raise DeclarationError(
            f"the features are keyed by {' and '.join(keys)}; a pipeline has one key, which its topic is partitioned by"
        )
    return keys[0] if keys else None


def _unique(names: Sequence[str], of: str = "fields, features and scores") -> Sequence[str]:
    for name in names:
        if names.count(name) > 1:
            raise DeclarationError(f"{name!r} names more than one of the pipeline's {of}; rename one")
    return names


def _check_models(models: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    scores: list[str] = []
    for name, model in models.items():
        cls = model_class(model)
        if not (hasattr(cls, "inputs") and hasattr(cls, "outputs")):
            raise DeclarationError(
                f"the model {name!r} ({cls!r}) does not say its columns; give its class `inputs` and `outputs`, "
                "tuples of names"
            )
        missing = [each for each in cls.inputs if each not in known]
        if missing:
            raise DeclarationError(
                f"the model {name!r} ({cls.__name__}) needs {', '.join(missing)}, which no field or feature gives; "
                f"there are {', '.join(known)}"
            )
        if name not in cls.outputs:
            raise DeclarationError(
                f"the model {name!r} ({cls.__name__}) gives {', '.join(cls.outputs)}; name it after one of these"
            )
        scores += cls.outputs
    return scores


def _parse_deadline(deadline: str | None, fallback: Decide | None) -> int | None:
    if deadline is None:
        return None
    if fallback is None:
        raise DeclarationError(
            f"deadline is {deadline!r}, and nothing could decide when it is near; give the pipeline a fallback"
        )
    try:
        return parse_duration_ms(deadline)
    except ConfigError as error:
        raise DeclarationError(f"deadline: {error}") from error


def _check_sinks(actions: Mapping[type[Action], Sequence[Sink]]) -> None:
    names = [sink.name for sinks in actions.values() for sink in sinks]
    for name in names:
        if names.count(name) > 1:
            raise DeclarationError(f"two sinks are called {name!r}; the YAML and the cursors need distinct names")
    for action in actions:
        if not (isinstance(action, type) and issubclass(action, Action)):
            raise DeclarationError(f"{action!r} is no Action class; declare `class Hold(Action)` and name that")
        if "type" in action.__struct_fields__:
            raise DeclarationError(f"{action.__name__}.type hides the action's own name in the log; rename the field")


__all__ = ["Action", "Decision", "Pipeline", "Verdicts"]

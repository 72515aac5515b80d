"""Features classes: declared on an Event by a key, and checked when the module is imported."""

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

from app.errors import ConfigError, DeclarationError
from app.event import Columns, Event, field_types
from app.features.feature import Column, Feature
from app.units import parse_duration_ms

STATE_FORMAT = 1
"""Goes into fingerprints: a state of another layout is another state."""

NUMERIC = ("total", "mean", "std", "minimum", "maximum", "latest")


class _Body(dict[str, Any]):
    """A class body in which no feature is declared twice: Python would keep the second and say nothing."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(self.get(name), Feature):
            raise DeclarationError(f"{name!r} is declared twice in one Features class; rename one of the two")
        super().__setitem__(name, value)


class _FeaturesType(type):
    @classmethod
    def __prepare__(cls, name: str, bases: tuple[type, ...], /, **options: Any) -> _Body:
        return _Body()


class Features(metaclass=_FeaturesType):
    """What a key's events say of it, up to and including each event, as declared in a subclass:

        class CardHistory(Features, of=Payment, by="card", ttl="90d"):
            payments = count(last=["1d", "7d"])
            usual_amount = mean("amount", last="30d")

    A window `last=W` at an event of time t holds the event itself and the key's events before it in the log whose
    times lie in (t - W, t]. A key is forgotten once the watermark is `ttl` past its newest event; the default is
    the longest window, or never if a feature has no window. An instance is one event's features, as floats.

    Raises DeclarationError, which names what does not fit, at import.
    """

    of: ClassVar[type[Event]]
    by: ClassVar[str]
    ttl_ms: ClassVar[int | None]
    declared: ClassVar[tuple[Column, ...]]
    _names: ClassVar[tuple[str, ...]]

    def __init_subclass__(
        cls, *, of: type[Event] | None = None, by: str | None = None, ttl: str | None = None, **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        if of is None or by is None:
            raise DeclarationError(f"{cls.__name__} lacks of= or by=; write class {cls.__name__}(Features, of=…, by=…)")
        cls.of, cls.by = of, by
        _check_key(cls)
        cls.declared = _declared(cls)
        cls._names = tuple(column.name for column in cls.declared)
        _check_columns(cls)
        cls.ttl_ms = _ttl_ms(cls, ttl)

    def __init__(self, **values: float) -> None:
        """A row by hand, for tests of what reads it: `CardHistory(payments_1d=51)`."""
        unknown = values.keys() - set(self._names)
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(self._names)}"
            )
        self.__dict__.update(values)

    if TYPE_CHECKING:  # the columns of a feature with several windows are not in the class body

        def __getattr__(self, name: str) -> float: ...

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({values})"

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of the output columns, in order of declaration."""
        return cls._names

    @classmethod
    def row(cls, columns: Columns, row: int) -> Self:
        """One event's features out of a batch's columns, as floats."""
        features = cls.__new__(cls)
        features.__dict__.update({name: columns[name].item(row) for name in cls._names})
        return features

    @classmethod
    def fingerprint(cls) -> str:
        """A hash of all that the state depends on: key, fields, features, windows, ttl; not the names of classes."""
        types = field_types(cls.of)
        fields = [f"{column!r} {types[column.field].__name__ if column.field else ''}" for column in cls.declared]
        text = "\n".join([str(STATE_FORMAT), cls.by, types[cls.by].__name__, str(cls.ttl_ms), *fields])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _declared(cls: type[Features]) -> tuple[Column, ...]:
    found: dict[str, Feature] = {}
    for base in reversed(cls.__mro__):
        found |= {name: value for name, value in vars(base).items() if isinstance(value, Feature)}
    if not found:
        raise DeclarationError(f"{cls.__name__} declares no feature; add one, like payments_1d = count(last='1d')")
    reserved = sorted(name for name in found if name in dir(Features))
    if reserved:
        raise DeclarationError(f"{cls.__name__}.{reserved[0]} hides what every Features class has; rename it")
    return tuple(column for name, feature in found.items() for column in feature.columns(name))


def _check_key(cls: type[Features]) -> None:
    fields = field_types(cls.of)
    if cls.by not in fields:
        raise DeclarationError(
            f"{cls.__name__} is keyed by {cls.by!r}, which {cls.of.__name__} has not; it has {', '.join(fields)}"
        )
    if get_type_hints(cls.of)[cls.by] not in (str, int):
        raise DeclarationError(
            f"{cls.__name__} is keyed by {cls.of.__name__}.{cls.by}, which is not always a str or an int; "
            "key it by a field that is"
        )


def _check_columns(cls: type[Features]) -> None:
    fields = field_types(cls.of)
    for column in cls.declared:
        if cls._names.count(column.name) > 1:
            raise DeclarationError(f"two features of {cls.__name__} make a column {column.name!r}; rename one")
        if column.name in fields:
            raise DeclarationError(
                f"{cls.__name__}.{column.name} is named like a field of {cls.of.__name__}; rename the feature"
            )
        if column.field is not None:
            _check_field(cls, column, fields)
        if column.kind == "distinct" and column.window_ms is None:
            raise DeclarationError(f"{cls.__name__}.{column.name} would remember every value for ever; give it last=")


def _check_field(cls: type[Features], column: Column, fields: dict[str, type]) -> None:
    if column.field not in fields:
        raise DeclarationError(
            f"{cls.__name__}.{column.name} is over {column.field!r}, which {cls.of.__name__} has not; "
            f"it has {', '.join(fields)}"
        )
    if column.kind in NUMERIC and fields[column.field] is str:
        raise DeclarationError(
            f"{cls.__name__}.{column.name} is the {column.kind} of {cls.of.__name__}.{column.field}, "
            "which is a str; name a field of numbers, or count its distinct() values"
        )


def _ttl_ms(cls: type[Features], ttl: str | None) -> int | None:
    windows = [column.window_ms for column in cls.declared if column.window_ms is not None]
    if ttl is None:
        return max(windows) if len(windows) == len(cls.declared) else None
    try:
        ttl_ms = parse_duration_ms(ttl)
    except ConfigError as error:
        raise DeclarationError(f"{cls.__name__} has ttl={ttl!r}: {error}") from error
    if ttl_ms < max(windows, default=0):
        raise DeclarationError(
            f"{cls.__name__} has ttl={ttl!r}, shorter than its longest window, which would lose events that "
            "it still holds; make it at least as long, or leave it out"
        )
    return ttl_ms

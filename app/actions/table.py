"""Tables: the actions of one type as rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from app.actions.action import Action, Decision, Delivery
from app.actions.database import Database, quote
from app.errors import DeclarationError, RetryableActionError

KEY_COLUMN = "idempotency_key"
TYPES: Mapping[Any, str] = {str: "text", int: "integer", float: "real", bool: "boolean"}


class Column(NamedTuple):
    """`type` is text, integer, real, boolean or json."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True)
class Table:
    """A row for each value of `key`: the latest action that has it."""

    name: str
    columns: Sequence[Column]
    key: str

    def prepare(self, database: Database) -> None:
        """Creates the table when it is missing. Raises RetryableActionError when it lacks a column."""
        if not database.has_table(self.name):
            database.execute(self._create(database.types) + database.table_option)
        existing = database.columns(self.name)
        for column in self.columns:
            if column.name not in existing:
                raise RetryableActionError(
                    f"the table {self.name} has no column {column.name}; "
                    f"ALTER TABLE {quote(self.name)} ADD COLUMN {quote(column.name)} {database.types[column.type]}"
                )

    def _create(self, types: Mapping[str, str]) -> str:
        columns = [
            f"{quote(column.name)} {types[column.type]}{'' if column.nullable else ' NOT NULL'}"
            for column in self.columns
        ]
        return f"CREATE TABLE {quote(self.name)} ({', '.join(columns)}, PRIMARY KEY ({quote(self.key)}))"

    @property
    def upsert(self) -> str:
        """The statement; its parameters are what `row` returns."""
        updates = [f"{quote(column.name)} = excluded.{quote(column.name)}" for column in self.columns]
        return f"{self._insert} DO UPDATE SET {', '.join(updates)}"

    @property
    def insert_if_missing(self) -> str:
        """Takes the same parameters as `upsert`."""
        return f"{self._insert} DO NOTHING"

    @property
    def _insert(self) -> str:
        names = [quote(column.name) for column in self.columns]
        return (
            f"INSERT INTO {quote(self.name)} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
            f"ON CONFLICT ({quote(self.key)})"
        )

    @property
    def select_key(self) -> str:
        """The idempotency key of the row whose `key` is the parameter: what `row` has at `key_index`."""
        return f"SELECT {quote(KEY_COLUMN)} FROM {quote(self.name)} WHERE {quote(self.key)} = ?"

    @property
    def key_index(self) -> int:
        return [column.name for column in self.columns].index(self.key)

    def row(self, delivery: Delivery) -> list[Any]:
        values = {**delivery.fields, KEY_COLUMN: delivery.key}
        return [_cell(values.get(column.name), column.type) for column in self.columns]


def _cell(value: Any, kind: str) -> Any:
    if kind == "json" or isinstance(value, (list, dict)):
        return msgspec.json.encode(value).decode()
    return value


def table_of(action: type[Action], name: str, key: str, scores: Sequence[str]) -> Table:
    """The table of an action's fields, and the idempotency key. `scores` are the columns of a Decision's models.

    Raises DeclarationError when `key` is no field, or a field is called idempotency_key.
    """
    if action is Decision:
        columns = [Column("id", "text", False), Column("time", "integer", False)]
        columns += [Column(score, "real", True) for score in scores]
        columns.append(Column("reason", "text", False))
    else:
        columns = [_column(field, hint) for field, hint in get_type_hints(action).items()]
    if any(column.name == KEY_COLUMN for column in columns):
        raise DeclarationError(f"{action.__name__}.{KEY_COLUMN} is a column that Upsert itself adds; rename the field")
    columns.append(Column(KEY_COLUMN, "text", False))
    names = [column.name for column in columns]
    if key not in names:
        raise DeclarationError(
            f"Upsert({name!r}, key={key!r}): {action.__name__} has no field {key!r}; it has {', '.join(names)}"
        )
    return Table(name, columns, key)


def _column(name: str, hint: Any) -> Column:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    concrete = [option for option in options if option is not NoneType]
    kind = TYPES.get(concrete[0], "json") if len(concrete) == 1 else "json"
    return Column(name, kind, NoneType in options)

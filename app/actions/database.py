"""Databases: what Upsert asks of one, PostgreSQL or SQLite."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from app.actions.attempts import FailedAttemptError
from app.errors import ActionError, RetryableActionError, SinkAwayError


class RefusedRowError(ActionError):
    """The database will not take this row, however often it is asked: a wrong type, out of range, a constraint."""


class Database(ABC):
    """One connection, opened when it is needed and dropped when it fails, so that the next use opens a new one.

    Every method raises SinkAwayError when the database is away or busy, FailedAttemptError when it failed on the
    statement itself (a trigger that raises, a timeout), and RetryableActionError when it cannot do it as things are
    (no table, no rights), each with what the database said. SQL is written with `?` for the parameters, and in what
    both databases understand.
    """

    types: ClassVar[Mapping[str, str]]
    """What text, integer, real, boolean and json are called here."""
    table_option: ClassVar[str]
    """Ends a CREATE TABLE."""
    lock: ClassVar[str]
    """Ends a SELECT that keeps others from the row until the transaction ends."""
    begin: ClassVar[str]
    errors: ClassVar[type[Exception]]
    refusals: ClassVar[tuple[type[Exception], ...]]
    """Which errors concern the values of a row alone."""
    failures: ClassVar[tuple[type[Exception], ...]]
    """Which errors can be the fault of a row, or of what the database does with it."""

    def __init__(self) -> None:
        self._connection: Any = None

    @abstractmethod
    def connect(self) -> Any:
        """A connection of the Python DB API without transactions of its own."""

    @abstractmethod
    def has_table(self, name: str) -> bool: ...

    @abstractmethod
    def is_away(self, error: Exception) -> bool:
        """Whether it failed at once whatever it was asked: no connection, no disk, no room, shutting down."""

    def translate(self, sql: str) -> str:
        """The statement with the parameters written as this database's driver wants them."""
        return sql

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of the answer; [] for a statement that gives none."""
        with self._cursor() as cursor:
            cursor.execute(self.translate(sql), parameters)
            return cursor.fetchall() if cursor.description else []

    def write(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Executes the statement for each row. Raises RefusedRowError when one of them is no good."""
        with self._cursor() as cursor:
            try:
                cursor.executemany(self.translate(sql), rows)
            except self.refusals as error:
                raise RefusedRowError(_one_line(error)) from error

    def columns(self, table: str) -> list[str]:
        with self._cursor() as cursor:
            cursor.execute(f"SELECT * FROM {quote(table)} LIMIT 0")
            return [column[0] for column in cursor.description]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits at the end; rolls back when anything is raised."""
        self.execute(self.begin)
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            self._roll_back("ROLLBACK")
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Within a transaction: what is raised undoes this part alone, if the connection is still there."""
        self.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._roll_back("ROLLBACK TO SAVEPOINT part")
            raise
        self.execute("RELEASE SAVEPOINT part")

    def _roll_back(self, sql: str) -> None:
        if self._connection is not None:  # a dropped connection has rolled back by itself
            self.execute(sql)

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        try:
            if self._connection is None:
                self._connection = self.connect()
            yield self._connection.cursor()
        except self.failures as error:
            raise FailedAttemptError(f"the database failed on it: {_one_line(error)}") from error
        except self.errors as error:
            self.close()
            away = SinkAwayError if self.is_away(error) else RetryableActionError
            raise away(f"the database says: {_one_line(error)}") from error


def quote(name: str) -> str:
    """A name of a table or column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

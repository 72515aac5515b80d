"""Upsert: a row per key in a table of PostgreSQL or SQLite."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, field_validator

from app.actions.action import Delivery, Sink
from app.actions.database import Database, RefusedRowError, quote
from app.actions.dead_letters import DeadLetters
from app.actions.position import Position
from app.actions.table import KEY_COLUMN, Table
from app.actions.writer import Batch, Outcome, SinkWriter
from app.config import Settings
from app.errors import BrokerError, ConfigError, RetryableActionError

CURSORS = "headrace_cursors"
SQLITE = "sqlite:///"


class Upsert(Sink, frozen=True):
    """A row for each value of `key`, one of the action's fields: inserted, or overwritten by a later action.

    Without `key` every action is a row of its own. The table is made when it is missing, with a column for each field
    and one for the idempotency key; one that is there needs these columns, and a unique key. Exactly once: rows and
    cursor are written in one transaction, which only one worker can make. A row that the database refuses becomes
    a dead letter; a database that is away is waited for without end.
    """

    key: str = KEY_COLUMN


class UpsertSettings(Settings):
    """dsn:   postgresql://user:password@host/database, or sqlite:///path; "off" does not run the sink.
    table: the sink's name with "_" for "-", if not given.
    """

    dsn: Annotated[str, Field(pattern=r"^(postgresql://|postgres://|sqlite:///.)")]
    table: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]

    @field_validator("dsn")
    @classmethod
    def _is_understood(cls, dsn: str) -> str:
        try:
            database_of(dsn)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return dsn


def database_of(dsn: str) -> Database:
    """Imports only the driver that the DSN asks for. Raises ConfigError when PostgreSQL does not understand it."""
    if dsn.startswith(SQLITE):
        from app.actions.sqlite import Sqlite

        return Sqlite(dsn.removeprefix(SQLITE))
    from app.actions.postgres import Postgres

    return Postgres(dsn)


class Upserter(SinkWriter[Delivery]):
    """See Upsert. The cursor is a row of the table headrace_cursors, named `cursor`, for each partition; what the
    consumer group has is for Kafka's tools alone."""

    def __init__(self, cursor: str, database: Database, table: Table, dead_letters: DeadLetters) -> None:
        self._cursor = cursor
        self._database = database
        self._table = table
        self._dead_letters = dead_letters
        self._applied: dict[int, int | None] = {}

    def resume(self, saved: Mapping[int, Position | None]) -> dict[int, Position]:
        self._create_cursors()
        self._table.prepare(self._database)
        positions = {partition: self._load(partition) for partition in saved}
        self._applied |= {partition: position.applied for partition, position in positions.items()}
        return positions

    def _create_cursors(self) -> None:
        if not self._database.has_table(CURSORS):
            types = self._database.types
            self._database.execute(
                f"CREATE TABLE {quote(CURSORS)} (sink {types['text']}, partition {types['integer']}, "
                f"applied {types['integer']}, log_offset {types['integer']} NOT NULL, "
                f"PRIMARY KEY (sink, partition)){self._database.table_option}"
            )

    def _load(self, partition: int) -> Position:
        self._database.execute(
            f"INSERT INTO {quote(CURSORS)} (sink, partition, log_offset) VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
            [self._cursor, partition],
        )
        [(applied, log_offset)] = self._database.execute(
            f"SELECT applied, log_offset FROM {quote(CURSORS)} WHERE sink = ? AND partition = ?",
            [self._cursor, partition],
        )
        return Position(applied, log_offset)

    def write(self, batches: Sequence[Batch[Delivery]]) -> list[Outcome]:
        """A transaction for each partition."""
        return [self._write_or_fail(batch) for batch in batches]

    def _write_or_fail(self, batch: Batch[Delivery]) -> Outcome:
        try:
            try:
                refused = self._write(batch, one_by_one=False)
            except RefusedRowError:
                refused = self._write(batch, one_by_one=True)
        except (RetryableActionError, BrokerError) as error:
            return Outcome(batch.start, error)
        self._applied[batch.partition] = batch.end.applied
        return Outcome(batch.end, None, refused)

    def _write(self, batch: Batch[Delivery], *, one_by_one: bool) -> int:
        """How many rows were refused. They are dead letters before the cursor passes them."""
        with self._database.transaction():
            self._take_cursor(batch.partition)
            if one_by_one:
                refused = sum(self._is_refused(delivery) for delivery in batch.deliveries)
            else:
                refused = 0
                self._upsert(batch.deliveries)
            self._database.execute(
                f"UPDATE {quote(CURSORS)} SET applied = ?, log_offset = ? WHERE sink = ? AND partition = ?",
                [*batch.end, self._cursor, batch.partition],
            )
        return refused

    def _take_cursor(self, partition: int) -> None:
        found = self._database.execute(
            f"SELECT applied FROM {quote(CURSORS)} WHERE sink = ? AND partition = ?{self._database.lock}",
            [self._cursor, partition],
        )
        if found != [(self._applied[partition],)]:
            raise RetryableActionError(
                f"the cursor of {self._cursor}, partition {partition}, stands at {found}, not where this worker left "
                f"it, at {self._applied[partition]}: another worker has gone on from there"
            )

    def _upsert(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._database.write(self._table.upsert, [self._table.row(each) for each in deliveries])

    def _is_refused(self, delivery: Delivery) -> bool:
        try:
            with self._database.savepoint():
                self._upsert([delivery])
        except RefusedRowError as error:
            self._dead_letters.send(delivery, f"the database refused the row: {error}", 1)
            return True
        return False

    def close(self) -> None:
        self._database.close()
        self._dead_letters.close()

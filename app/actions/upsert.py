"""Upsert: a row per key in a table of PostgreSQL or SQLite."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Annotated

from pydantic import Field, field_validator

from app.actions.action import Delivery, Sink, is_later
from app.actions.attempts import Attempts, FailedAttemptError
from app.actions.database import Database, RefusedRowError, quote
from app.actions.position import Position, Saved
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
    a dead letter at once; one that it fails on (a trigger that raises, a statement that takes longer than 30 s) after
    `attempts`. A database that is away or lacks something (a table, a right) is waited for without end.
    """

    key: str = KEY_COLUMN


class UpsertSettings(Settings):
    """dsn:      postgresql://user:password@host/database, or sqlite:///path; "off" does not run the sink.
    table:    the sink's name with "_" for "-", if not given.
    attempts: how often a row is tried that the database fails on, before it becomes a dead letter.
    """

    dsn: Annotated[str, Field(pattern=r"^(postgresql://|postgres://|sqlite:///.)")]
    table: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]

    attempts: int = Field(default=20, ge=1)

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

    def __init__(self, cursor: str, database: Database, table: Table, attempts: Attempts) -> None:
        self._cursor = cursor
        self._database = database
        self._table = table
        self._attempts = attempts
        self._failing: set[int] = set()
        self._applied: dict[int, int | None] = {}

    def resume(self, saved: Mapping[int, Saved | None]) -> dict[int, Position]:
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
        """A transaction for each partition; of one that has failed on a row, up to that row."""
        return [self._write_or_fail(batch) for batch in batches]

    def _write_or_fail(self, batch: Batch[Delivery]) -> Outcome:
        try:
            outcome = self._write_or_split(batch)
        except (RetryableActionError, BrokerError) as error:
            if isinstance(error, FailedAttemptError):
                self._failing.add(batch.partition)  # to be split the next time: a timeout has taken half a minute
            return Outcome(batch.start, error)
        self._applied[batch.partition] = outcome.position.applied
        if outcome.error is None:
            self._failing.discard(batch.partition)
        return outcome

    def _write_or_split(self, batch: Batch[Delivery]) -> Outcome:
        if batch.partition not in self._failing:
            try:
                return self._write(batch, self._upsert_all)
            except RefusedRowError:
                pass
        return self._write(batch, self._upsert_by_event)

    def _write(self, batch: Batch[Delivery], upsert: Callable[[Batch[Delivery]], Outcome]) -> Outcome:
        """Rows and cursor. Those that are given up are dead letters before the cursor passes them."""
        with self._database.transaction():
            self._take_cursor(batch.partition)
            outcome = upsert(batch)
            self._database.execute(
                f"UPDATE {quote(CURSORS)} SET applied = ?, log_offset = ? WHERE sink = ? AND partition = ?",
                [*outcome.position, self._cursor, batch.partition],
            )
        return outcome

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

    def _upsert_all(self, batch: Batch[Delivery]) -> Outcome:
        if batch.deliveries:
            self._database.write(self._table.upsert, [self._table.row(each) for each in batch.deliveries])
        return Outcome(batch.end)

    def _upsert_by_event(self, batch: Batch[Delivery]) -> Outcome:
        """Row by row, all those of an event or none, up to the first that is to be tried again."""
        dead_letters = 0
        for _, of_event in groupby(batch.deliveries, key=lambda delivery: delivery.offset):
            deliveries = list(of_event)
            try:
                with self._database.savepoint():
                    dead_letters += sum(map(self._gives_up, deliveries))
            except FailedAttemptError as error:
                return Outcome(batch.before(deliveries[0]), error, dead_letters)
        return Outcome(batch.end, None, dead_letters)

    def _gives_up(self, delivery: Delivery) -> bool:
        if self._attempts.is_given_up(delivery):
            return False
        try:
            with self._database.savepoint():
                self._database.write(self._table.upsert, [self._table.row(delivery)])
        except FailedAttemptError as error:
            self._attempts.failed(delivery, error)
        except RefusedRowError as error:
            self._attempts.refused(delivery, f"the database refused the row: {error}")
        else:
            return False
        return True

    def deliver(self, delivery: Delivery) -> None:
        """A row that a later action of the same partition has written in the meantime stays as it is."""
        with self._database.transaction():
            self._table.prepare(self._database)
            row = self._table.row(delivery)
            self._database.write(self._table.insert_if_missing, [row])  # the row is there, so it can be locked
            [(key,)] = self._database.execute(
                f"{self._table.select_key}{self._database.lock}", [row[self._table.key_index]]
            )
            if not is_later(key or "", than=delivery.key):
                self._database.write(self._table.upsert, [row])

    def close(self) -> None:
        self._database.close()
        self._attempts.close()

"""PostgreSQL, by psycopg 3."""

from typing import Any, ClassVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from app.actions.database import Database
from app.errors import ConfigError

DEFAULTS = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "application_name": "headrace"}
AWAY_STATES = ("08", "53", "57P")
LIMITS = (
    "SET lock_timeout = '5s'",
    "SET statement_timeout = '30s'",
    "SET idle_in_transaction_session_timeout = '30s'",
)
"""A worker that freezes within a transaction holds the row of its cursor: so long, and no longer."""


class Postgres(Database):
    """`dsn` is a libpq URI; what it sets goes before DEFAULTS. Raises ConfigError when it is none."""

    types: ClassVar = {
        "text": "text",
        "integer": "bigint",
        "real": "double precision",
        "boolean": "boolean",
        "json": "jsonb",
    }
    table_option = ""
    lock = " FOR UPDATE"
    begin = "BEGIN"
    errors = psycopg.Error
    refusals = (
        psycopg.DataError,
        psycopg.IntegrityError,
        psycopg.errors.DatatypeMismatch,
        psycopg.errors.ProgramLimitExceeded,  # a text too long for its index
    )
    failures = (psycopg.errors.RaiseException, psycopg.errors.QueryCanceled)

    def __init__(self, dsn: str) -> None:
        super().__init__()
        try:
            self._parameters: dict[str, Any] = {**DEFAULTS, **conninfo_to_dict(dsn)}
        except psycopg.ProgrammingError as error:
            raise ConfigError(
                "PostgreSQL does not understand the DSN; write postgresql://user:password@host:port/database, "
                "with special characters percent-encoded"
            ) from error  # which can quote the password

    def connect(self) -> Any:
        connection = psycopg.connect(**self._parameters, autocommit=True)
        for limit in LIMITS:
            connection.execute(limit.encode())
        return connection

    def is_away(self, error: Exception) -> bool:
        """Classes 08, 53 and 57P: no connection, no resources, shutting down. What never arrived has no state."""
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        return state is None or state.startswith(AWAY_STATES)

    def has_table(self, name: str) -> bool:
        return self.execute("SELECT to_regclass(quote_ident(?)) IS NOT NULL", [name])[0][0] is True

    def translate(self, sql: str) -> str:
        return sql.replace("%", "%%").replace("?", "%s")

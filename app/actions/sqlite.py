"""SQLite, by Python's own module."""

import sqlite3
from typing import Any, ClassVar

from app.actions.database import Database

BUSY_TIMEOUT_S = 5.0


class Sqlite(Database):
    """`path` is a file; it is made when missing. Write-ahead logging lets others read meanwhile."""

    types: ClassVar = {"text": "TEXT", "integer": "INTEGER", "real": "REAL", "boolean": "INTEGER", "json": "TEXT"}
    table_option = " STRICT"  # without it a text is stored in an INTEGER column as it is
    lock = ""
    begin = "BEGIN IMMEDIATE"  # takes the file's one write lock at once, so no FOR UPDATE is needed
    errors = sqlite3.Error
    failures = ()  # what a trigger raises is an IntegrityError, and nothing takes longer than the file is locked
    refusals = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeEncodeError)

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def connect(self) -> Any:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        return connection

    def is_away(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.OperationalError)

    def has_table(self, name: str) -> bool:
        found = self.execute("SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?", [name])
        return bool(found)

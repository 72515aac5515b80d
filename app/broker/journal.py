"""A journal: what is known under each of some keys, a line for each change; the newest line of a key counts."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from app.broker.storage import replace_file

LINES_UNTIL_COMPACTED = 10_000


class Journal:
    """Lines of JSON in a file, or nowhere (None): in the page cache when `append` returns, so they survive kill -9."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._lines_since_compaction = 0

    def read(self) -> list[Any]:
        """Everything noted by an earlier process, oldest first."""
        if self._path is None or not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A last line without its end was torn by a crash, and never acknowledged.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append(self, entry: Any) -> bool:
        """Returns whether it is time to `compact`."""
        if self._file is None:
            return False
        self._file.write(_line(entry))
        self._file.flush()
        self._lines_since_compaction += 1
        return self._lines_since_compaction >= LINES_UNTIL_COMPACTED

    def compact(self, entries: Iterable[Any]) -> None:
        """From now on the file holds these alone, and takes more; it takes none before the first call."""
        if self._path is not None:
            self.close()
            replace_file(self._path, "".join(map(_line, entries)))
            self._file = self._path.open("a", encoding="utf-8")
            self._lines_since_compaction = 0

    def flush(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(entry: Any) -> str:
    return json.dumps(entry) + "\n"

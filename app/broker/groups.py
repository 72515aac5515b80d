"""The offsets that consumer groups have committed."""

import json
import os
from pathlib import Path
from typing import NamedTuple, TextIO

from kafka.errors import GroupIdNotFoundError

from app.broker.storage import replace_file

LINES_UNTIL_COMPACTED = 10_000


class CommittedOffset(NamedTuple):
    """The next offset that a group wants of a partition, with the text that it stored beside it."""

    offset: int
    leader_epoch: int
    metadata: str


class Groups:
    """Commits by group and partition. With a file, each is a line of it before it is acknowledged."""

    def __init__(self, path: Path | None) -> None:
        self._offsets: dict[str, dict[tuple[str, int], CommittedOffset]] = {}
        self._path = path
        self._file: TextIO | None = None
        self._lines_since_compaction = 0
        if path:
            self._recover(path)
            self._compact()

    @property
    def names(self) -> list[str]:
        return sorted(self._offsets)

    def committed(self, group: str) -> dict[tuple[str, int], CommittedOffset]:
        return self._offsets.get(group, {})

    def commit(self, group: str, topic: str, partition: int, committed: CommittedOffset) -> None:
        self._offsets.setdefault(group, {})[topic, partition] = committed
        if self._file:
            self._file.write(_line(group, topic, partition, committed))
            self._file.flush()
            self._lines_since_compaction += 1
            if self._lines_since_compaction == LINES_UNTIL_COMPACTED:
                self._compact()

    def delete(self, group: str) -> None:
        """Raises GroupIdNotFoundError."""
        if group not in self._offsets:
            raise GroupIdNotFoundError(f"there is no group {group!r}")
        del self._offsets[group]
        self._compact()

    def forget_topic(self, topic: str) -> None:
        for group, offsets in self._offsets.items():
            self._offsets[group] = {key: kept for key, kept in offsets.items() if key[0] != topic}
        self._compact()

    def flush(self) -> None:
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _compact(self) -> None:
        """Rewrites the file with the newest commits alone."""
        if self._path:
            self.close()
            lines = (
                _line(group, topic, partition, committed)
                for group, offsets in self._offsets.items()
                for (topic, partition), committed in offsets.items()
            )
            replace_file(self._path, "".join(lines))
            self._file = self._path.open("a", encoding="utf-8")
            self._lines_since_compaction = 0

    def _recover(self, path: Path) -> None:
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a last line without its end was torn by a crash, and never acknowledged
                group, topic, partition, *committed = json.loads(line)
                self._offsets.setdefault(group, {})[topic, partition] = CommittedOffset(*committed)


def _line(group: str, topic: str, partition: int, committed: CommittedOffset) -> str:
    return json.dumps([group, topic, partition, *committed]) + "\n"

"""The offsets that consumer groups have committed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kafka.errors import GroupIdNotFoundError

from app.broker.journal import Journal


class CommittedOffset(NamedTuple):
    """The next offset that a group wants of a partition, with the text that it stored beside it."""

    offset: int
    leader_epoch: int
    metadata: str


class Groups:
    """Commits by group and partition. With a file, each is a line of it before it is acknowledged."""

    def __init__(self, path: Path | None) -> None:
        self._offsets: dict[str, dict[tuple[str, int], CommittedOffset]] = {}
        self._journal = Journal(path)
        for group, topic, partition, *committed in self._journal.read():
            self._offsets.setdefault(group, {})[topic, partition] = CommittedOffset(*committed)
        self._compact()

    @property
    def names(self) -> list[str]:
        return sorted(self._offsets)

    def committed(self, group: str) -> dict[tuple[str, int], CommittedOffset]:
        return self._offsets.get(group, {})

    def commit(self, group: str, topic: str, partition: int, committed: CommittedOffset) -> None:
        self._offsets.setdefault(group, {})[topic, partition] = committed
        if self._journal.append([group, topic, partition, *committed]):
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
        self._journal.flush()

    def close(self) -> None:
        self._journal.close()

    def _compact(self) -> None:
        """Rewrites the file with the newest commits alone."""
        self._journal.compact(self._entries())

    def _entries(self) -> Iterator[list[Any]]:
        for group, offsets in self._offsets.items():
            for (topic, partition), committed in offsets.items():
                yield [group, topic, partition, *committed]

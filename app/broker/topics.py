"""The topics of a broker, in memory or in a folder."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kafka.errors import (
    InvalidPartitionsError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

from app.broker.config import parse_config
from app.broker.partition import Partition
from app.broker.storage import replace_file

LEGAL_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
DESCRIPTION = "topic.json"


class Topic:
    """A name, its settings and its partitions."""

    def __init__(self, name: str, count: int, settings: Mapping[str, str | None], directory: Path | None):
        self.name = name
        self.settings = dict(settings)
        self.config = parse_config(settings)
        self._directory = directory
        self.partitions: list[Partition] = []
        self.grow(count)

    def check_growth(self, count: int) -> None:
        """Raises InvalidPartitionsError."""
        if count <= len(self.partitions):
            held = len(self.partitions)
            raise InvalidPartitionsError(f"{self.name} has {held} partitions; write more, not {count}")

    def grow(self, count: int) -> None:
        """Adds partitions up to `count`. After a crash the topic has all of the new ones or none."""
        for index in range(len(self.partitions), count):
            self.partitions.append(Partition(self._directory / str(index) if self._directory else None))
        if self._directory:
            description = json.dumps({"partitions": count, "settings": self.settings})
            replace_file(self._directory / DESCRIPTION, description)

    def drop_expired(self, now_ms: int) -> None:
        for partition in self.partitions:
            partition.drop_expired(self.config, now_ms)

    def flush(self) -> None:
        for partition in self.partitions:
            partition.flush()

    def close(self) -> None:
        for partition in self.partitions:
            partition.close()

    def delete(self) -> None:
        """The description goes first: a folder without one is a deleted topic."""
        if self._directory:
            (self._directory / DESCRIPTION).unlink()
        for partition in self.partitions:
            partition.delete()
        if self._directory:
            shutil.rmtree(self._directory)


class Topics:
    """All topics by name. With a folder, each has its own in it, and is there again after a restart."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._topics: dict[str, Topic] = {}
        if directory:
            directory.mkdir(parents=True, exist_ok=True)
            for found in sorted(directory.iterdir()):
                self._recover(found)

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics.values())

    def __contains__(self, name: str) -> bool:
        return name in self._topics

    def find(self, name: str) -> Topic:
        """Raises UnknownTopicOrPartitionError."""
        if name not in self._topics:
            raise UnknownTopicOrPartitionError(f"there is no topic {name!r}")
        return self._topics[name]

    def check_new(self, name: str, count: int, settings: Mapping[str, str | None]) -> None:
        """Raises the protocol's error for a topic that cannot be created."""
        if not LEGAL_NAME.fullmatch(name) or name in (".", ".."):
            raise InvalidTopicError(f"{name!r}: write letters, digits, '.', '_' and '-', at most 249")
        if name in self._topics:
            raise TopicAlreadyExistsError(f"topic {name!r} exists")
        if count < 1:
            raise InvalidPartitionsError(f"{count} partitions; write at least 1")
        parse_config(settings)

    def create(self, name: str, count: int, settings: Mapping[str, str | None]) -> None:
        self.check_new(name, count, settings)
        directory = self._directory / name if self._directory else None
        self._topics[name] = Topic(name, count, settings, directory)

    def delete(self, name: str) -> None:
        """Raises UnknownTopicOrPartitionError."""
        self.find(name).delete()
        del self._topics[name]

    def _recover(self, directory: Path) -> None:
        path = directory / DESCRIPTION
        if not path.exists():
            shutil.rmtree(directory)
            return
        described = json.loads(path.read_text(encoding="utf-8"))
        topic = Topic(directory.name, described["partitions"], described["settings"], directory)
        self._topics[topic.name] = topic

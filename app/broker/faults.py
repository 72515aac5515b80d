"""Faults on command: what a broker, a network or a disk does on a bad day, asked for by a test."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.errors import ConfigError


@dataclass(kw_only=True)
class Fault:
    """Strikes requests of one API, by its name in Kafka's protocol: Produce, Fetch, OffsetCommit, …"""

    api: str
    times: int | None = None  # None: until cleared

    def strikes(self, api: str, topic: str, partition: int) -> bool:
        return self.api == api


@dataclass(kw_only=True)
class Delay(Fault):
    """Lets a request wait before it is carried out; other connections go on."""

    delay_ms: int


@dataclass(kw_only=True)
class Cut(Fault):
    """Closes the connection: before the request is carried out or after it, when only the answer is lost."""

    after: bool = True


@dataclass(kw_only=True)
class PartitionFault(Fault):
    """Strikes partitions within a request: one, all of a topic, or all (None)."""

    topic: str | None = None
    partition: int | None = None

    def strikes(self, api: str, topic: str, partition: int) -> bool:
        here = self.topic in (None, topic) and self.partition in (None, partition)
        return here and super().strikes(api, topic, partition)


@dataclass(kw_only=True)
class Refuse(PartitionFault):
    """Answers Produce, Fetch, ListOffsets or OffsetCommit with an error code, and does nothing else."""

    error_code: int


@dataclass(kw_only=True)
class Stall(PartitionFault):
    """The partition stands still until cleared: Fetch finds nothing new, Produce runs into its timeout."""


KINDS: dict[str, type[Fault]] = {"delay": Delay, "cut": Cut, "refuse": Refuse, "stall": Stall}
SomeFault = TypeVar("SomeFault", bound=Fault)


class Faults:
    """The faults in force, oldest first: added in this process, or read from a JSON file when it is replaced.

    The file holds a list such as `[{"fault": "refuse", "api": "Produce", "error_code": 6, "times": 3}]`. Put
    it in place with a rename: the next request meets it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._active: list[Fault] = []
        self._path = path
        self._version: tuple[int, int] | None = None

    def add(self, fault: Fault) -> None:
        self._active.append(fault)

    def clear(self) -> None:
        self._active.clear()

    def find(self, kind: type[SomeFault], api: str, topic: str = "", partition: int = -1) -> SomeFault | None:
        for fault in self._active:
            if isinstance(fault, kind) and fault.strikes(api, topic, partition):
                return fault
        return None

    def take(self, kind: type[SomeFault], api: str, topic: str = "", partition: int = -1) -> SomeFault | None:
        """Finds a fault and counts it: after `times` it is over."""
        fault = self.find(kind, api, topic, partition)
        if fault and fault.times is not None:
            fault.times -= 1
            if fault.times == 0:
                self._active.remove(fault)
        return fault

    def refresh(self) -> None:
        """Reads the file again if it was replaced. Raises ConfigError for what is not a list of faults."""
        if not self._path or not self._path.exists():
            return
        status = self._path.stat()
        version = (status.st_ino, status.st_mtime_ns)
        if version != self._version:
            self._active = parse_faults(self._path.read_text(encoding="utf-8"))
            self._version = version


def parse_faults(text: str) -> list[Fault]:
    try:
        return [_parse_fault(dict(item)) for item in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"not a list of faults: {error}; write [{{'fault': 'cut', 'api': 'Produce'}}, …]") from error


def _parse_fault(item: dict[str, Any]) -> Fault:
    name = item.pop("fault", None)
    if name not in KINDS:
        raise ValueError(f"{name!r} is not one of {', '.join(KINDS)}")
    return KINDS[name](**item)

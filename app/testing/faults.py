"""What can go wrong, as items of a simulation's input: each strikes when the items before it have arrived."""

from dataclasses import dataclass
from typing import Literal

from app.event import Event


@dataclass(frozen=True)
class Record:
    """A record as it stands in the source topic: for what is no event."""

    value: bytes | None
    key: bytes | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing happens for a while."""

    ms: float


@dataclass(frozen=True)
class Crash:
    """A worker is gone without a trace; another process takes its place 5.7 s later. What it had sent and was not
    acknowledged has arrived or not, as the seed says.

    Of several workers it is the one that has the partition of the latest event. `after_operations` (reads and writes
    of logs, statements of databases) lets it live a little, to die in the middle of something.
    """

    worker: Literal["stream", "action"] = "stream"
    after_operations: int = 0


@dataclass(frozen=True)
class CrashBeforeCursor:
    """An action worker dies as soon as it has carried something out and not yet committed how far it is."""


@dataclass(frozen=True)
class Pause:
    """A worker freezes and later goes on as if nothing had happened: silent for more than 3 s it is thought dead, and
    another one has its partitions when it comes back and writes."""

    worker: Literal["stream", "action"] = "stream"
    ms: float = 5_000


@dataclass(frozen=True)
class Slow:
    """The models, or the appends of the stream workers to the decision log, take `by_ms` longer for `ms`."""

    what: Literal["model", "broker"] = "model"
    by_ms: float = 200
    ms: float = 1_000


@dataclass(frozen=True)
class Away:
    """Does not answer for a while: the models, the broker, the coordinator (it starts anew, and knows nothing), or a
    sink by its name."""

    what: str
    ms: float = 2_000


@dataclass(frozen=True)
class Duplicate:
    """The latest record is sent again."""


@dataclass(frozen=True)
class Reorder:
    """The two records that follow arrive in the other order."""


@dataclass(frozen=True)
class Torn:
    """Of the newest checkpoint of each partition only the first half is there."""


CRASH = Crash()
PAUSE = Pause()
SLOW = Slow()
DUPLICATE = Duplicate()
REORDER = Reorder()
TORN = Torn()
ACTION_CRASH = CrashBeforeCursor()
MODEL_AWAY = Away("model")
BROKER_AWAY = Away("broker")
COORDINATOR_SILENT = Away("coordinator")

Fault = Wait | Crash | CrashBeforeCursor | Pause | Slow | Away | Duplicate | Torn
Item = Event | Record | Fault | Reorder

"""Decision logs for tests: drawn by hypothesis with every repetition that crashes and zombies leave, and an oracle."""

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from app.actions.action import Action
from app.log.frame import LATE, DeadLetter, Decided, Frame, FrameHeader, Stages, count_late, encode_frame

PIPELINE = "fraud"
SOURCE = "payments"
DECISIONS = "fraud.decisions"
LETTERS = "fraud.dead-letters"
LATE_EVENTS = "fraud.late"


class Hold(Action, frozen=True):
    payment: str
    risk: float


class Alert(Action, frozen=True):
    card: str


@dataclass(frozen=True)
class Row:
    """What one frame says of one offset: a decision with its actions, a rejection, that the event was late or a
    duplicate, or that it holds no record."""

    offset: int
    kind: str
    risk: float = 0.0
    actions: tuple[str, ...] = ()

    @property
    def payment(self) -> str:
        return f"p{self.offset}"

    @property
    def card(self) -> str:
        return f"c{self.offset % 3}"

    def logged_actions(self) -> list[dict[str, Any]]:
        made = {
            "Hold": {"type": "Hold", "payment": self.payment, "risk": self.risk},
            "Alert": {"type": "Alert", "card": self.card},
        }
        return [made[name] for name in self.actions]


@dataclass(frozen=True)
class Written:
    """A frame as rows: of source offsets without a gap."""

    partition: int
    rows: tuple[Row, ...]
    append_ms: int = 1_000

    def encode(self) -> tuple[tuple[str, bytes], bytes]:
        decided = [row for row in self.rows if row.kind == "decided"]
        letters = [
            DeadLetter(
                row.offset, self.append_ms, f"broken {row.risk}", None, b"{", LATE if row.kind == "late" else "other"
            )
            for row in self.rows
            if row.kind in ("rejected", "late")
        ]
        duplicates = [row.offset for row in self.rows if row.kind == "duplicate"]
        header = FrameHeader(
            pipeline=PIPELINE,
            topic=SOURCE,
            partition=self.partition,
            first=self.rows[0].offset,
            last=self.rows[-1].offset,
            decided=len(decided),
            rejected=len(letters),
            actions=sum(len(row.actions) for row in decided),
            oldest_ms=self.append_ms,
            newest_ms=self.append_ms,
            duplicates=len(duplicates),
            late=count_late(letters),
        )
        columns = Decided(
            offsets=np.array([row.offset for row in decided], dtype=np.int64),
            append_ms=np.full(len(decided), self.append_ms, dtype=np.int64),
            event={
                "id": np.array([row.payment for row in decided], dtype=object),
                "time": np.array([row.offset * 10 for row in decided], dtype=np.int64),
                "card": np.array([row.card for row in decided], dtype=object),
            },
            features={},
            scores={"risk": np.array([row.risk for row in decided], dtype=np.float64)},
            reasons=np.ones(len(decided), dtype=np.int8),
            actions=[msgspec.json.encode(row.logged_actions()) if row.actions else None for row in decided],
            versions={"risk": "1"},
        )
        return encode_frame(Frame(header, Stages(0, 0, 0, 0, 0), columns, letters, duplicates))


@st.composite
def decision_logs(draw: st.DrawFn, partitions: int = 2) -> list[Written]:
    """Frames in log order. Each begins at or before the first undecided offset of its partition, so many repeat or
    overlap what stands before them; and as every frame draws its rows anew, the copies say something else."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    frames: list[Written] = []
    start = draw(st.sampled_from([0, 7]))
    ends = dict.fromkeys(range(partitions), start)
    for _ in range(draw(st.integers(1, 12))):
        partition = rng.randrange(partitions)
        end = ends[partition]
        begun = any(frame.partition == partition for frame in frames)
        first = max(start, end - rng.choice([0, 0, 0, 1, 3, 10])) if begun else end
        last = first + rng.randrange(6)
        frames.append(Written(partition, tuple(draw_row(rng, offset) for offset in range(first, last + 1))))
        ends[partition] = max(end, last + 1)
    return frames


def draw_row(rng: random.Random, offset: int) -> Row:
    kind = rng.choice(["decided"] * 6 + ["rejected", "late", "duplicate", "absent"])
    actions = rng.choice([(), (), ("Hold",), ("Alert",), ("Hold", "Alert"), ("Alert", "Hold", "Hold")])
    return Row(offset, kind, round(rng.random(), 6), actions if kind == "decided" else ())


@dataclass
class Effects:
    """What should come of a log: per partition, in source order, pairs of an idempotency key and the row."""

    holds: dict[int, list[tuple[str, Row]]] = field(default_factory=dict)
    decisions: dict[int, list[tuple[str, Row]]] = field(default_factory=dict)
    rejects: dict[int, list[tuple[str, Row]]] = field(default_factory=dict)
    late: dict[int, list[tuple[str, Row]]] = field(default_factory=dict)


def effects_of(frames: list[Written]) -> Effects:
    """The oracle: for each offset its first row in the log, whatever frame that is in."""
    first: dict[tuple[int, int], Row] = {}
    for frame in frames:
        for row in frame.rows:
            first.setdefault((frame.partition, row.offset), row)
    effects = Effects()
    for (partition, offset), row in sorted(first.items()):
        prefix = f"{PIPELINE}/{partition}/{offset}"
        if row.kind == "rejected":
            effects.rejects.setdefault(partition, []).append((f"{prefix}/rejected", row))
        if row.kind == "late":
            effects.late.setdefault(partition, []).append((f"{prefix}/rejected", row))
        if row.kind == "decided":
            effects.decisions.setdefault(partition, []).append((f"{prefix}/decision", row))
            effects.holds.setdefault(partition, []).extend(
                (f"{prefix}/{index}", row) for index, name in enumerate(row.actions) if name == "Hold"
            )
    return effects

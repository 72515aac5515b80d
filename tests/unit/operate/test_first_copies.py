"""Reading the decision log: the first copy of each decision, once."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from app.config import PipelineArgs
from app.errors import LogError
from app.log.frame import LATE, DeadLetter, Decided, Frame, FrameHeader, Stages, encode_frame
from app.operate.decisions import read_decisions, summarize
from app.operate.options import parse_when
from app.operate.outcomes import Start, count_outcomes, mark_start
from app.testing.clock import Clock
from app.testing.kafka import MemoryConsumer, MemoryKafka

ARGS = PipelineArgs.load(
    {
        "pipeline": "app.pipelines.fraud:fraud",
        "kafka": {"bootstrap": "memory:1"},
        "topics": {"source": "payments"},
        "checkpoints": {"uri": "nowhere"},
    }
)
HELD = msgspec.json.encode([{"type": "Hold", "payment": "p", "risk": 0.5}])


def log_frame(
    broker: MemoryKafka,
    first: int,
    last: int,
    *,
    risk: float = 0.25,
    rejected: int = -1,
    late: int = -1,
    duplicates: Sequence[int] = (),
) -> None:
    """Logs offsets `first` to `last` of partition 0 as decided, odd ones with an action; some as something else."""
    offsets = np.array([each for each in range(first, last + 1) if each not in (rejected, late, *duplicates)])
    actions = [HELD if offset % 2 else None for offset in offsets]
    letters = [DeadLetter(rejected, 5, "no event", None, b"x")] if rejected >= 0 else []
    letters += [DeadLetter(late, 5, "late", None, b"x", LATE)] if late >= 0 else []
    header = FrameHeader(
        "fraud", "payments", 0, first, last, len(offsets), len(letters), sum(each is not None for each in actions)
    )
    ids = np.array([f"p{offset}" for offset in offsets], dtype=object)
    decided = Decided(
        offsets=offsets,
        append_ms=offsets + 1_000,
        event={"id": ids, "time": offsets * 10},
        features={"mean_1d": np.where(offsets == 0, np.nan, 1.5)},
        scores={"risk": np.full(len(offsets), risk)},
        reasons=np.ones(len(offsets), dtype=np.int8),
        actions=actions,
        versions={"risk": "v1"},
    )
    stages = Stages(1.0, 2.0, 3.0, 4.0, 5.0)
    header_field, value = encode_frame(Frame(header, stages, decided, letters, duplicates))
    broker.append("fraud.decisions", 0, value, headers=[header_field])


@pytest.fixture
def broker() -> MemoryKafka:
    found = MemoryKafka(Clock(round(time.time() * 1000)))
    for topic in ("payments", "fraud.decisions"):
        found.create(topic, 1)
    return found


def test_a_decision_has_everything_that_was_known_of_the_event(broker: MemoryKafka) -> None:
    log_frame(broker, 0, 1)
    first, second = read_decisions(MemoryConsumer(broker), ARGS, None)
    assert json.loads(msgspec.json.encode(first))["features"] == {"mean_1d": None}
    assert second == {
        "event_id": "p1",
        "time_ms": 10,
        "topic": "payments",
        "partition": 0,
        "offset": 1,
        "event": {"id": "p1", "time": 10},
        "features": {"mean_1d": 1.5},
        "scores": {"risk": 0.25},
        "versions": {"risk": "v1"},
        "reason": "model",
        "actions": [{"type": "Hold", "key": "fraud/0/1/0", "fields": {"payment": "p", "risk": 0.5}}],
        "times_ms": {
            "appended": 1_001,
            "fetched": 1.0,
            "features": 2.0,
            "queued": 3.0,
            "scored": 4.0,
            "decided": 5.0,
            "logged": broker.clock.now_ms,
        },
    }
    assert summarize(second) == "payments[0]@1 p1: model, risk 0.250, Hold"


def test_only_the_first_copy_of_a_decision_is_read(broker: MemoryKafka) -> None:
    log_frame(broker, 0, 3)
    log_frame(broker, 2, 5, risk=0.75)
    log_frame(broker, 0, 5, risk=0.99)
    decisions = list(read_decisions(MemoryConsumer(broker), ARGS, None))
    assert [(each["offset"], each["scores"]["risk"]) for each in decisions] == [
        (0, 0.25),
        (1, 0.25),
        (2, 0.25),
        (3, 0.25),
        (4, 0.75),
        (5, 0.75),
    ]


def test_a_gap_in_the_log_is_refused(broker: MemoryKafka) -> None:
    log_frame(broker, 0, 3)
    log_frame(broker, 5, 6)
    with pytest.raises(LogError, match=r"offsets 4\.\.4 are in no frame"):
        list(read_decisions(MemoryConsumer(broker), ARGS, None))


def test_since_leaves_out_what_was_logged_before_and_second_copies_of_it(broker: MemoryKafka) -> None:
    log_frame(broker, 0, 3)
    broker.clock.now_ms += 60_000
    log_frame(broker, 2, 4)
    offsets = [each["offset"] for each in read_decisions(MemoryConsumer(broker), ARGS, broker.clock.now_ms)]
    assert offsets == [4]


def test_since_is_a_duration_or_a_time() -> None:
    assert parse_when("10m") == pytest.approx(time.time() * 1000 - 600_000, abs=5_000)
    instant = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp() * 1000
    assert parse_when("2026-01-31T12:00") == parse_when("2026-01-31T13:00+01:00") == instant


@pytest.mark.parametrize("text", ["yesterday", "10min", "-5m", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{text!r} is no time; write 10m or 2026-")):
        parse_when(text)


def test_outcomes_count_each_record_of_the_run_once(broker: MemoryKafka) -> None:
    for _ in range(4):
        broker.append("payments", 0, b"before")
    log_frame(broker, 0, 1)
    start = mark_start(MemoryConsumer(broker), ARGS)
    assert start == Start({0: 4}, {0: 1})
    log_frame(broker, 2, 10, rejected=5, late=6, duplicates=[3, 7, 10])
    log_frame(broker, 3, 12, rejected=5, late=6, duplicates=[3, 7, 10, 12])
    outcomes = count_outcomes(MemoryConsumer(broker), ARGS, start)
    assert outcomes._asdict() == {
        "decisions": 4,
        "dead_letters": 2,
        "duplicates": 3,
        "late": 1,
        "actions": 2,
        "through": {0: 12},
    }


def test_before_anything_is_logged_nothing_is_counted(broker: MemoryKafka) -> None:
    broker.append("payments", 0, b"before")
    log_frame(broker, 0, 0)
    start = mark_start(MemoryConsumer(broker), ARGS)
    assert count_outcomes(MemoryConsumer(broker), ARGS, start) == (0, 0, 0, 0, 0, {0: 0})

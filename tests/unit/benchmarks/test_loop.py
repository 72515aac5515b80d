"""The hand-written loop does the pipeline's job: otherwise comparing the two would say nothing."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from app.log.frame import DeadLetter
from app.pipelines.fraud import CardHistory as PipelineHistory
from app.pipelines.fraud import fraud as pipeline
from app.runtime.task import Slice, Task, TaskSettings
from app.simulate.disturb import Disturbance, disturb
from app.simulate.payments import draw_day, draw_world
from app.simulate.records import Fate, Record
from app.sources import Records
from benchmarks.loop import CardHistory, Score, Scorer
from models import fraud as model

SEED = 3
DISTURBANCE = Disturbance(duplicates=0.05, disorder=0.2, late=0.01, broken=0.05)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    day = draw_day(draw_world(SEED, customers=300, terminals=400), 1)
    return [each for each in disturb(day, DISTURBANCE, SEED) if each.fate is not Fate.FAR_FUTURE]


def admit(records: Sequence[Record]) -> Slice:
    """What a task makes of one partition that holds these records."""
    task = Task(pipeline, TaskSettings("fraud", "payments"), 0, next_offset=0, decided_through=-1)
    admitted = task.admit(
        Records(
            topic="payments",
            partition=0,
            offsets=np.arange(len(records)),
            append_ms=np.full(len(records), 2_000_000_000_000),
            keys=[each.key for each in records],
            values=[each.value for each in records],
            headers=lambda: [[] for _ in records],
        )
    )
    assert admitted is not None
    return admitted


def decode(scores: Sequence[bytes]) -> list[Score]:
    return [msgspec.json.decode(each, type=Score) for each in scores]


def test_the_loop_keeps_the_features_that_the_pipeline_declares() -> None:
    assert CardHistory.fingerprint() == PipelineHistory.fingerprint()


def test_its_scores_are_those_of_the_pipeline_to_the_last_bit(records: list[Record]) -> None:
    fine = [each for each in records if each.fate in (Fate.FINE, Fate.DUPLICATE)]
    admitted = admit(fine)
    risk = model.load(model.WEIGHTS).predict(admitted.inputs)["risk"].tolist()
    scores, rows = Scorer(1).score([each.value for each in fine], np.zeros(len(fine), np.int64))
    expected = list(map(Score, admitted.columns["id"], admitted.columns["time"].tolist(), risk))
    assert decode(scores) == expected
    assert rows == list(range(len(fine)))


def test_it_leaves_out_what_is_no_payment(records: list[Record]) -> None:
    mixed = [each for each in records if each.fate not in (Fate.LATE, Fate.FOREIGN_KEY)]
    rejected: Sequence[DeadLetter] = admit(mixed).rejected
    _, rows = Scorer(1).score([each.value for each in mixed], np.zeros(len(mixed), np.int64))
    assert sorted({*range(len(mixed))} - {*rows}) == [each.offset for each in rejected]
    assert len(rejected) > 10


def test_it_leaves_out_what_comes_too_late(records: list[Record]) -> None:
    timely = [each for each in records if each.fate is Fate.FINE]
    late = [each for each in records if each.fate is Fate.LATE]
    scorer = Scorer(1)
    scorer.score([each.value for each in timely], np.zeros(len(timely), np.int64))
    scores, rows = scorer.score([each.value for each in [*late, timely[-1]]], np.zeros(len(late) + 1, np.int64))
    assert rows == [len(late)]
    assert len(scores) == 1


def test_a_partition_that_lags_behind_the_others_loses_nothing(records: list[Record]) -> None:
    fine = [each for each in records if each.fate is Fate.FINE]
    middle = len(fine) // 2
    scorer = Scorer(2)
    scorer.score([each.value for each in fine[middle:]], np.ones(len(fine) - middle, np.int64))
    scores, _ = scorer.score([each.value for each in fine[:middle]], np.zeros(middle, np.int64))
    assert len(scores) == middle

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
from benchmarks.loop import LATENESS_MS, CardHistory, Score, Scorer
from models import fraud as model

SEED = 3
DISTURBANCE = Disturbance(duplicates=0.05, disorder=0.2, late=0.01, broken=0.05)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    day = draw_day(draw_world(SEED, customers=300, terminals=400), 1)
    return [each for each in disturb(day, DISTURBANCE, SEED) if each.fate is not Fate.FAR_FUTURE]


def admit(records: Sequence[Record]) -> Slice:
    """What a task makes of one partition that holds these records."""
    task = Task(
        pipeline, TaskSettings("fraud", "payments", deduplicate_ms=LATENESS_MS), 0, next_offset=0, decided_through=-1
    )
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
    assert rows == admitted.rows.tolist()
    assert len(rows) == sum(each.fate is Fate.FINE for each in fine) < len(fine)


def test_it_leaves_out_what_is_no_payment(records: list[Record]) -> None:
    mixed = [each for each in records if each.fate not in (Fate.LATE, Fate.FOREIGN_KEY)]
    rejected: Sequence[DeadLetter] = admit(mixed).rejected
    _, rows = Scorer(1).score([each.value for each in mixed], np.zeros(len(mixed), np.int64))
    copies = [at for at, each in enumerate(mixed) if each.fate is Fate.DUPLICATE]
    assert sorted({*range(len(mixed))} - {*rows}) == sorted([*(each.offset for each in rejected), *copies])
    assert len(rejected) > 10


def test_it_leaves_out_what_comes_too_late(records: list[Record]) -> None:
    timely = [each for each in records if each.fate is Fate.FINE]
    late = [each for each in records if each.fate is Fate.LATE]
    scorer = Scorer(1)
    scorer.score([each.value for each in timely[:-1]], np.zeros(len(timely) - 1, np.int64))
    scores, rows = scorer.score([each.value for each in [*late, timely[-1]]], np.zeros(len(late) + 1, np.int64))
    assert rows == [len(late)]
    assert len(scores) == 1


def test_a_copy_is_left_out_in_a_later_poll_too_until_its_id_is_forgotten(records: list[Record]) -> None:
    values = [each.value for each in records if each.fate is Fate.FINE][:100]
    scorer = Scorer(1)

    def scored(values: Sequence[bytes]) -> int:
        return len(scorer.score(list(values), np.zeros(len(values), np.int64))[0])

    later = [msgspec.json.decode(each) for each in values]
    later = [each | {"time": later[-1]["time"] + 7 * LATENESS_MS} for each in later]
    assert scored(values) == 100
    scorer.tidy()
    assert scored(values) == 0
    assert scored([msgspec.json.encode(later[-1] | {"id": "another"})]) == 1
    scorer.tidy()
    assert scored([msgspec.json.encode(each) for each in later]) == 100


def test_a_partition_that_lags_behind_the_others_loses_nothing(records: list[Record]) -> None:
    fine = [each for each in records if each.fate is Fate.FINE]
    middle = len(fine) // 2
    scorer = Scorer(2)
    scorer.score([each.value for each in fine[middle:]], np.ones(len(fine) - middle, np.int64))
    scores, _ = scorer.score([each.value for each in fine[:middle]], np.zeros(middle, np.int64))
    assert len(scores) == middle

"""The oracle of chaos: by examples, and beside the pipeline's own task over disturbed traffic."""

import json
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest

from app.log.frame import Stages
from app.runtime.task import Outcome, Task, TaskSettings, decide
from app.simulate import Disturbance, simulate
from app.sources import Records
from benchmarks.chaos.oracle import DAY_MS, FEATURES, HORIZON_MS, LATENESS_MS, Oracle
from benchmarks.chaos.pipeline import POISON_AMOUNT, chaos
from benchmarks.chaos.traffic import poison

NOW_MS = 1_700_000_000_000


@dataclass
class Source:
    """A record as a plain consumer gives it."""

    offset: int
    value: bytes
    key: bytes | None = b"c"
    partition: int = 0
    timestamp: int = NOW_MS


def payment(offset: int, time_ms: int, amount: float = 10.0, **fields: object) -> Source:
    event = {"id": f"p{offset}", "time": time_ms, "card": "c", "terminal": "t", "amount": amount, **fields}
    return Source(offset, json.dumps(event).encode())


def test_a_payment_sees_those_of_its_card_before_it_and_itself() -> None:
    oracle = Oracle()
    oracle.expect(payment(0, NOW_MS - 8 * DAY_MS, 4.0))
    oracle.expect(payment(1, NOW_MS - DAY_MS, 6.0))
    found = oracle.expect(payment(2, NOW_MS, 20.0)).features
    assert found is not None
    assert dict(zip(FEATURES, found, strict=True)) == {
        "payments_1d": 1,
        "payments_7d": 2,
        "payments_30d": 3,
        "mean_amount_1d": 20,
        "mean_amount_7d": 13,
        "mean_amount_30d": 10,
    }


@pytest.mark.parametrize(
    "record",
    [
        Source(0, b"{"),
        Source(0, b"\xff"),
        payment(0, NOW_MS, amount=float("nan")),
        payment(0, NOW_MS, terminal=None),
        payment(0, NOW_MS, card="another"),
        payment(0, NOW_MS + 2 * DAY_MS),
    ],
)
def test_what_is_no_payment_has_no_features(record: Source) -> None:
    assert Oracle().expect(record).features is None


def test_a_payment_that_comes_too_late_is_none_and_leaves_no_trace() -> None:
    oracle = Oracle()
    oracle.expect(payment(0, NOW_MS))
    assert oracle.expect(payment(1, NOW_MS - LATENESS_MS - 1)).features is None
    after = oracle.expect(payment(2, NOW_MS))
    assert after.features is not None
    assert after.features[0] == 2


def test_poison_counts_for_the_payments_after_it() -> None:
    oracle = Oracle()
    assert oracle.expect(payment(0, NOW_MS, POISON_AMOUNT)).poison
    after = oracle.expect(payment(1, NOW_MS))
    assert not after.poison
    assert after.features is not None
    assert after.features[0] == 2


def test_the_oracle_and_the_pipelines_own_task_agree_on_disturbed_traffic() -> None:
    disturbance = Disturbance(duplicates=0.05, disorder=0.1, late=0.02, broken=0.05)
    drawn = (record for day in simulate("fraud", disturbance=disturbance) for record in day)
    sources = [Source(at, each.value, each.key) for at, each in enumerate(map(poison, islice(drawn, 20_000)))]
    oracle = Oracle()
    expected = [oracle.expect(each) for each in sources]

    settings = TaskSettings("fraud", "payments", deduplicate_ms=HORIZON_MS)
    task = Task(chaos, settings, 0, next_offset=0, decided_through=-1)
    records = Records(
        topic="payments",
        partition=0,
        offsets=np.arange(len(sources)),
        append_ms=np.full(len(sources), NOW_MS),
        keys=[each.key for each in sources],
        values=[each.value for each in sources],
        headers=lambda: [[] for _ in sources],
    )
    part = task.admit(records)
    assert part is not None
    frame = decide(chaos, settings, part, Outcome({}, {}, "fallback-failed"), Stages(0, 0, 0, 0, 0))
    fine = [each for each in expected if each.features is not None and not each.poison]
    assert [each.offset for each in fine] == frame.decided.offsets.tolist()
    for number, name in enumerate(FEATURES):
        right = [each.features[number] for each in fine if each.features]
        np.testing.assert_allclose(frame.decided.features[name], right, rtol=1e-9, err_msg=name)
    assert sum(each.poison for each in expected) > 5

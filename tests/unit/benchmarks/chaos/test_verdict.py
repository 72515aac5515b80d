"""The verdict on a fault: nothing that goes wrong may look right."""

from collections.abc import Sequence

import pytest

from benchmarks.chaos.oracle import Expected
from benchmarks.chaos.verdict import COUNTS, Effects, Outcome, Row, judge

STRUCK_MS = 1_000.0
FEATURES = (1.0, 10.0)
EXPECTED = [
    Expected(0, 0, 900, "a", FEATURES),
    Expected(0, 1, 1_100, "b", FEATURES),
    Expected(0, 2, 1_200),
    Expected(1, 0, 1_100, "c", FEATURES, poison=True),
]
OUTCOMES = [
    Outcome(0, 0, 950, True, "a", FEATURES, holds=1),
    Outcome(0, 1, 4_100, True, "b", FEATURES, holds=2),
    Outcome(0, 2, 4_150, False),
    Outcome(1, 0, 1_150, False),
]
HOLDS = {"fraud/0/0/0": 1, "fraud/0/1/0": 1, "fraud/0/1/1": 1}
REJECTS = {"fraud/0/2/rejected": 1, "fraud/1/0/rejected": 1}


def verdict(
    expected: Sequence[Expected] = EXPECTED,
    outcomes: Sequence[Outcome] = OUTCOMES,
    holds: Effects | None = None,
    rejects: dict[str, int] | None = None,
) -> Row:
    letters = Effects(REJECTS if rejects is None else rejects, of_rejects=True)
    sinks = {"holds": holds or Effects(HOLDS), "dead-letters": letters}
    return judge("fault", STRUCK_MS, expected, outcomes, sinks).row


def counts(row: Row) -> dict[str, int]:
    return {name: getattr(row, name) for name in COUNTS if getattr(row, name)}


def test_what_is_right_is_sound() -> None:
    row = verdict()
    assert counts(row) == {}
    assert row.sound


def test_a_record_without_an_outcome_is_lost() -> None:
    assert counts(verdict(outcomes=OUTCOMES[:3], rejects={"fraud/0/2/rejected": 1})) == {"lost": 1}


def test_a_fine_payment_in_the_dead_letters_is_lost() -> None:
    outcomes = [Outcome(0, 0, 950, False), *OUTCOMES[1:]]
    holds = {key: times for key, times in HOLDS.items() if key != "fraud/0/0/0"}
    assert counts(verdict(outcomes=outcomes, holds=Effects(holds), rejects={**REJECTS, "fraud/0/0/rejected": 1})) == {
        "lost": 1
    }


def test_poison_that_is_decided_all_the_same_is_sound() -> None:
    outcomes = [*OUTCOMES[:3], Outcome(1, 0, 1_150, True, "c", FEATURES)]
    assert verdict(outcomes=outcomes, rejects={"fraud/0/2/rejected": 1}).sound


def test_a_record_with_two_outcomes_is_decided_twice() -> None:
    assert counts(verdict(outcomes=[*OUTCOMES, OUTCOMES[0]])) == {"decided_twice": 1}


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        (OUTCOMES[1:], {}),
        (OUTCOMES, {"decided_twice": 1}),
    ],
)
def test_a_copy_that_is_dropped_needs_no_outcome_and_may_have_none(
    outcomes: Sequence[Outcome], wanted: dict[str, int]
) -> None:
    expected = [EXPECTED[0]._replace(dropped=True), *EXPECTED[1:]]
    holds = {key: times for key, times in HOLDS.items() if outcomes is OUTCOMES or key != "fraud/0/0/0"}
    assert counts(verdict(expected=expected, outcomes=outcomes, holds=Effects(holds))) == wanted


@pytest.mark.parametrize("gone", HOLDS)
def test_an_effect_that_is_asked_for_and_not_there_is_lost(gone: str) -> None:
    holds = {key: times for key, times in HOLDS.items() if key != gone}
    assert counts(verdict(holds=Effects(holds))) == {"effects_lost": 1}
    assert verdict(holds=Effects(holds, refused=frozenset({gone}))).sound


def test_what_is_wrong_is_named() -> None:
    sinks = {"holds": Effects({"fraud/0/0/0": 2, "fraud/0/1/0": 1})}
    verdict = judge("fault", STRUCK_MS, EXPECTED, OUTCOMES[:3], sinks)
    assert verdict.notes == [
        "lost: fraud/1/0",
        "lost by holds: fraud/0/1/1",
        "too many in holds: fraud/0/0/0",
    ]


def test_a_reject_that_does_not_reach_the_dead_letters_is_an_effect_lost() -> None:
    assert counts(verdict(rejects={"fraud/0/2/rejected": 1})) == {"effects_lost": 1}


def test_effects_that_are_there_too_often_or_that_nobody_asked_for_are_too_many() -> None:
    assert counts(verdict(holds=Effects({**HOLDS, "fraud/0/0/0": 3}))) == {"effects_twice": 2}
    assert counts(verdict(holds=Effects({**HOLDS, "fraud/0/2/0": 1}))) == {"effects_twice": 1}


def test_effects_and_outcomes_of_other_records_are_not_looked_at() -> None:
    other = Outcome(3, 7, 5_000, True, "z", (), holds=1)
    assert verdict(outcomes=[*OUTCOMES, other], holds=Effects({**HOLDS, "fraud/3/7/0": 2})).sound


@pytest.mark.parametrize(
    "wrong",
    [
        OUTCOMES[0]._replace(features=(1.0, 10.1)),
        OUTCOMES[0]._replace(features=(1.0, float("nan"))),
        OUTCOMES[0]._replace(id="b"),
    ],
)
def test_a_decision_over_other_features_or_another_payment_is_wrong(wrong: Outcome) -> None:
    assert counts(verdict(outcomes=[wrong, *OUTCOMES[1:]])) == {"features_wrong": 1}


def test_a_decision_about_what_is_no_payment_is_wrong() -> None:
    outcomes = [*OUTCOMES[:2], Outcome(0, 2, 4_150, True, "?", FEATURES), OUTCOMES[3]]
    assert counts(verdict(outcomes=outcomes, rejects={"fraud/1/0/rejected": 1})) == {"features_wrong": 1}


def test_recovery_lasts_until_every_partition_decides_what_came_after_the_fault() -> None:
    row = verdict()
    assert row.first_decision_s == 3.1
    assert row.max_latency_ms == 3_000


def test_a_partition_that_never_decides_again_is_not_sound() -> None:
    row = verdict(outcomes=OUTCOMES[:1])
    assert row.first_decision_s is None
    assert not row.sound


def test_two_runs_of_a_fault_add_up_their_counts_and_keep_the_worse_times() -> None:
    first, second = Row("fault", 1, 0, 0, 2, 0, 3.5, 800), Row("fault", 0, 0, 1, 1, 0, 2.0, 900)
    assert first.merge(second) == Row("fault", 1, 0, 1, 3, 0, 3.5, 900)
    assert first.merge(Row("fault", 0, 0, 0, 0, 0, None, 0)).first_decision_s is None

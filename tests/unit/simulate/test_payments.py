import itertools

import numpy as np
import pytest

from app.simulate.payments import (
    DAY_MS,
    EPOCH_MS,
    World,
    compromised_cards,
    compromised_terminals,
    days,
    draw_day,
    draw_world,
)


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(seed=1)


def test_a_day_is_the_same_wherever_the_stream_began(world: World) -> None:
    from_the_first = next(itertools.islice(days(world), 3, None))
    begun_there = next(days(draw_world(seed=1), start_day=3))
    for name, column in from_the_first.columns.items():
        np.testing.assert_array_equal(column, begun_there.columns[name])
    np.testing.assert_array_equal(from_the_first.scenario, begun_there.scenario)


def test_another_seed_gives_other_payments(world: World) -> None:
    other = draw_day(draw_world(seed=2), 0)
    assert set(other.columns["time"]) != set(draw_day(world, 0).columns["time"])


def test_payments_stand_in_the_order_of_time_within_their_day(world: World) -> None:
    time_ms = draw_day(world, 17).columns["time"]
    assert (np.diff(time_ms) >= 0).all()
    assert time_ms[0] >= EPOCH_MS + 17 * DAY_MS
    assert time_ms[-1] < EPOCH_MS + 18 * DAY_MS


def test_ids_are_unique_across_days(world: World) -> None:
    ids = np.concatenate([day.columns["id"] for day in itertools.islice(days(world), 3)])
    assert len(set(ids)) == len(ids)


def test_about_9600_payments_are_made_a_day(world: World) -> None:
    sizes = [len(day.scenario) for day in itertools.islice(days(world), 10)]
    assert 9_300 < np.mean(sizes) < 10_100


def test_a_card_pays_only_at_terminals_that_it_reaches(world: World) -> None:
    columns = draw_day(world, 0).columns
    cards = {name: number for number, name in enumerate(world.cards)}
    for card, terminal in zip(columns["card"], columns["terminal"], strict=True):
        number = cards[card]
        assert terminal in world.terminals[world.reachable[world.first[number] : world.first[number + 1]]]


def test_customers_without_a_terminal_in_reach_pay_nowhere() -> None:
    lonely = draw_world(seed=3, customers=200, terminals=20)
    without = set(lonely.cards[np.diff(lonely.first) == 0])
    assert without
    assert not without & set(draw_day(lonely, 0).columns["card"])


def test_high_amounts_are_fraud(world: World) -> None:
    day = draw_day(world, 40)
    assert (day.scenario[day.columns["amount"] > 220.01] > 0).all()
    assert (day.columns["amount"][day.scenario == 1] >= 220).all()


def test_every_payment_at_a_compromised_terminal_is_fraud(world: World) -> None:
    day = draw_day(world, 40)
    bad = np.isin(day.columns["terminal"], world.terminals[compromised_terminals(world, 40)])
    assert bad.any()
    assert (day.scenario[bad] >= 2).all()
    assert bad[day.scenario == 2].all()


def test_a_third_of_the_payments_of_compromised_cards_is_fraud_of_five_times_the_amount(world: World) -> None:
    stolen, at_risk, factor = 0, 0, []
    means = dict(zip(world.cards, world.mean_amount, strict=True))
    for day in itertools.islice(days(world, 40), 20):
        theirs = np.isin(day.columns["card"], world.cards[compromised_cards(world, day.number)])
        assert theirs[day.scenario == 3].all()
        stolen += (day.scenario == 3).sum()
        at_risk += theirs.sum()
        factor += [
            amount / means[card]
            for amount, card in zip(
                day.columns["amount"][day.scenario == 3], day.columns["card"][day.scenario == 3], strict=True
            )
        ]
    assert 0.28 < stolen / at_risk < 0.39
    assert 4.5 < np.mean(factor) < 5.5


def test_a_terminal_stays_compromised_for_28_days_and_a_card_for_14(world: World) -> None:
    for compromised, lasting_days in ((compromised_terminals, 28), (compromised_cards, 14)):
        struck = set(compromised(world, 100)) - set(compromised(world, 99))
        still = [struck <= set(compromised(world, 100 + later)) for later in range(lasting_days + 1)]
        assert still[:lasting_days] == [True] * lasting_days
        assert struck
        assert not still[lasting_days]


def test_nothing_is_compromised_before_the_first_day(world: World) -> None:
    assert len(compromised_terminals(world, 0)) == 2
    assert len(compromised_cards(world, 1)) == 6

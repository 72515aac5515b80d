"""Assignment: complete, disjoint, balanced, and no unit moves that could have stayed."""

from itertools import combinations_with_replacement, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from app.runtime.assignment import assign

units = st.integers(0, 14).map(range).map(list)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[int], list[str], dict[int, str]]:
    """Units, the workers that are there, and who had what: some had by workers that are gone, some by nobody."""
    all_units = draw(units)
    had = dict(enumerate(draw(st.text("abcdefgh-", max_size=16))))
    return all_units, sorted(set(draw(st.text("abcdef", max_size=6)))), had


def moves(current: dict[int, str], answer: dict[int, str], there: list[str]) -> int:
    return sum(current.get(unit) in there and current[unit] != worker for unit, worker in answer.items())


def least_moves(all_units: list[int], there: list[str], current: dict[int, str]) -> int:
    """By trying every way to hand out balanced shares: a worker gives away what it holds beyond its share."""
    small, larger = divmod(len(all_units), len(there))
    held = [sum(current.get(unit) == worker for unit in all_units) for worker in there]
    shares = [small + 1] * larger + [small] * (len(there) - larger)
    return min(
        sum(max(0, has - share) for has, share in zip(held, order, strict=True)) for order in set(permutations(shares))
    )


@settings(max_examples=100, deadline=None)
@given(situations())
def test_every_unit_has_one_worker_that_is_there_and_shares_differ_by_one_at_most(
    situation: tuple[list[int], list[str], dict[int, str]],
) -> None:
    all_units, there, current = situation
    answer = assign(all_units, there, current)
    if not there:
        assert answer == {}
        return
    assert sorted(answer) == all_units
    shares = [list(answer.values()).count(worker) for worker in there]
    assert sum(shares) == len(all_units)
    assert max(shares) - min(shares) <= 1


@settings(max_examples=100, deadline=None)
@given(situations().filter(lambda situation: bool(situation[1])))
def test_no_unit_moves_that_could_have_stayed(situation: tuple[list[int], list[str], dict[int, str]]) -> None:
    all_units, there, current = situation
    assert moves(current, assign(all_units, there, current), there) == least_moves(all_units, there, current)


@settings(max_examples=60, deadline=None)
@given(situations(), st.integers(0, 5))
def test_the_order_of_workers_does_not_matter(
    situation: tuple[list[int], list[str], dict[int, str]], turn: int
) -> None:
    all_units, there, current = situation
    for order in (there[::-1], there[turn:] + there[:turn]):
        assert assign(all_units, order, current) == assign(all_units, there, current)


def test_an_answer_given_back_is_the_same_answer() -> None:
    for count in range(1, 6):
        for there in combinations_with_replacement("abc", 2):
            first = assign(range(count), sorted(set(there)), {})
            assert assign(range(count), sorted(set(there)), first) == first


def test_units_may_be_names() -> None:
    assert assign(["holds/0", "holds/1"], ["b", "a"], {"holds/0": "b"}) == {"holds/0": "b", "holds/1": "a"}

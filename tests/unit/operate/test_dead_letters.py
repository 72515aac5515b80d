"""Which letters a call of `dead-letters` means, and how it shows one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.actions.letters import Case, Ledger, Letter, Marker, describe_case
from app.errors import ConfigError
from app.operate.dead_letters import Filter, spell_out, summarize
from app.sources import TopicPartition


def letter(at: int, cause: str = "parse", sink: str | None = None, written_ms: int = 0) -> Letter:
    return Letter(
        id=f"0/{at}" if sink is None else f"0/{at}/0@{sink}",
        idempotency_key=f"fraud/0/{at}/0",
        sink=sink,
        place=TopicPartition("fraud.dead-letters", 1),
        place_offset=at,
        written_ms=written_ms,
        topic="payments",
        partition=0,
        offset=at,
        append_ms=1_000,
        cause=cause,
        reason="no event",
        attempts=1,
        key=None,
        value=b"\xff",
        headers=(("trace", b"1"),),
        stack="Traceback\n  at once",
    )


DRAWN = st.lists(
    st.tuples(st.sampled_from(["parse", "late", "sink"]), st.sampled_from([None, "cases"]), st.integers(0, 9)),
    max_size=8,
)
OPTIONAL_MS = st.none() | st.integers(0, 9)


@given(
    DRAWN,
    st.sampled_from([None, "parse", "late"]),
    st.sampled_from([None, "cases"]),
    OPTIONAL_MS,
    OPTIONAL_MS,
    st.sets(st.integers(0, 7)),
)
def test_a_filter_selects_what_meets_all_of_it_in_the_order_of_writing(drawn, cause, sink, since, until, ids) -> None:
    letters = [letter(at, *each) for at, each in enumerate(drawn)]
    ledger = Ledger()
    for each in letters:
        ledger.add(each)
    named = [letters[at].id for at in ids if at < len(letters)]
    found = [case.letter for case in Filter(tuple(named), cause, sink, since, until).select(ledger)]
    wanted = letters
    if named:
        wanted = [each for each in wanted if each.id in named]
    if cause is not None:
        wanted = [each for each in wanted if each.cause == cause]
    if sink is not None:
        wanted = [each for each in wanted if each.sink == sink]
    if since is not None:
        wanted = [each for each in wanted if since <= each.written_ms]
    if until is not None:
        wanted = [each for each in wanted if each.written_ms < until]
    assert sorted(found, key=id) == sorted(wanted, key=id)
    assert [each.written_ms for each in found] == sorted(each.written_ms for each in wanted)


def test_an_id_that_no_letter_has_is_said() -> None:
    with pytest.raises(ConfigError, match=re.escape("there is no dead letter '0/7'; `python -m app dead-letters ls`")):
        Filter(("0/7",)).select(Ledger())


def test_a_line_says_what_where_when_and_why() -> None:
    doubtful = Case(letter(7, written_ms=1_000), frozenset({Marker("0/7", "replaying", 1)}))
    assert summarize(doubtful) == "0/7  1970-01-01T00:00:01+00:00  parse (in doubt)  payments[0]@7: no event"
    refused = Case(letter(7, "sink", "cases"))
    assert summarize(refused) == "0/7/0@cases  1970-01-01T00:00:00+00:00  sink  cases: no event"


def test_everything_of_a_letter_is_spelt_out() -> None:
    lines = list(spell_out(describe_case(Case(letter(7)))))
    assert "append_ms: 1000 (1970-01-01T00:00:01+00:00)" in lines
    assert "place: fraud.dead-letters/1/7" in lines
    assert lines[-3:] == ["value: 0xff", "header trace: 1", "stack:\nTraceback\n  at once"]

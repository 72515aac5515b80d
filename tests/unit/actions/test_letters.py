"""Dead letters read back from their topic: what they carry, and which are open after whatever was done about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.actions.action import Delivery
from app.actions.letters import (
    REJECTS,
    Case,
    Ledger,
    Letter,
    Marker,
    describe_case,
    marker_message,
    plan_replay,
    read_entries,
)
from app.actions.message import Message, action_message, failure_message, reject_message
from app.actions.selection import Reject
from app.errors import ActionError
from app.log.frame import DeadLetter
from app.sources import TopicPartition
from app.testing.kafka import Stored, to_records
from tests.unit.actions.decision_log import LETTERS

PLACE = TopicPartition(LETTERS, 1)


def read(*messages: Message, pipeline: str = "fraud") -> list[Letter | Marker]:
    stored = [Stored(each.key, each.value, list(each.headers), 5_000) for each in messages]
    return list(read_entries(pipeline, to_records(PLACE, range(7, 7 + len(stored)), stored)))


def rejected(offset: int = 12, letter: DeadLetter | None = None) -> Message:
    letter = letter or DeadLetter(offset, 1_000, "no event", b"k", b"{", "parse", (), 1, None)
    reject = Reject(f"fraud/3/{offset}/rejected", "payments", 3, offset, letter)
    return reject_message(REJECTS, reject)


def refused(delivery: Delivery) -> Message:
    return failure_message(delivery, action_message("cases", delivery), "cases answered 422", 20)


@given(
    st.sampled_from([None, b"", b"\xff\x00", "ä".encode()]),
    st.lists(st.tuples(st.text(max_size=2), st.none() | st.binary(max_size=3)), max_size=3).map(tuple),
    st.sampled_from([None, "Traceback\n  ü"]),
    st.integers(1, 9),
)
def test_a_rejected_record_comes_back_with_all_it_was(raw, headers, stack, attempts: int) -> None:
    [letter] = read(rejected(letter=DeadLetter(12, 1_000, "no évent", raw, raw, "late", headers, attempts, stack)))
    assert letter == Letter(
        id="3/12",
        idempotency_key="fraud/3/12/rejected",
        sink=None,
        place=PLACE,
        place_offset=7,
        written_ms=5_000,
        topic="payments",
        partition=3,
        offset=12,
        append_ms=1_000,
        cause="late",
        reason="no évent",
        attempts=attempts,
        key=raw,
        value=raw,
        headers=headers,
        stack=stack,
    )


def test_a_refused_delivery_comes_back_as_it_was_sent() -> None:
    delivery = Delivery("fraud/3/12/0", "payments", 3, 12, 1_000, "c1", {"type": "Hold", "payment": "p1", "risk": 0.5})
    [letter] = read(refused(delivery))
    assert isinstance(letter, Letter)
    assert letter.delivery == delivery
    assert (letter.id, letter.sink, letter.cause, letter.attempts) == ("3/12/0@cases", "cases", "sink", 20)
    assert (letter.append_ms, letter.reason) == (1_000, "cases answered 422")


@pytest.mark.parametrize("value", [None, b"", b"{", b"[1]", b"\xff"])
def test_a_letter_of_a_sink_that_holds_no_action_says_so(value: bytes | None) -> None:
    message = refused(Delivery("fraud/3/12/0", "payments", 3, 12, 1_000, None, {}))
    [letter] = read(message._replace(value=value))
    assert isinstance(letter, Letter)
    with pytest.raises(ActionError, match="3/12/0@cases holds no action"):
        _ = letter.delivery


def test_letters_written_before_they_carried_more_are_read_all_the_same() -> None:
    new = rejected()
    old = new._replace(headers=[each for each in new.headers if each[0] not in ("cause", "attempts", "append-ms")])
    [letter] = read(old)
    assert isinstance(letter, Letter)
    assert (letter.id, letter.cause, letter.attempts, letter.append_ms) == ("3/12", "other", 1, None)


@pytest.mark.parametrize(
    "foreign",
    [
        Message(b"k", b"v", []),
        Message(b"k", b"{}", [("marker", b"replayed")]),
        Message(b"k", b"no json", [("marker", b"replayed")]),
        Message(None, None, [("marker", b"replayed")]),
        Message(b"k", b"v", [("idempotency-key", b"fraud/0/1/0")]),
        Message(b"k", b"v", [("idempotency-key", b"\xff"), ("sink", b"cases")]),
        rejected()._replace(headers=[*rejected().headers, ("source-headers", b"{}")]),
        rejected()._replace(headers=[*rejected().headers, ("source-offset", b"many")]),
    ],
)
def test_what_is_neither_letter_nor_marker_is_left_out(foreign: Message) -> None:
    [found] = read(foreign, rejected())
    assert isinstance(found, Letter)
    assert found.place_offset == 8


def test_bytes_that_are_no_text_are_shown_as_hex() -> None:
    [letter] = read(rejected(letter=DeadLetter(12, 1, "r", None, b"\xff\x00", "parse", (("h", b"\xfe"),))))
    assert isinstance(letter, Letter)
    shown = describe_case(Case(letter))
    assert (shown["key"], shown["value"], shown["headers"]) == (None, "0xff00", [{"name": "h", "value": "0xfe"}])


# What is open.


@dataclass
class Model:
    """One letter as an operator with a notebook would keep it: step by step, in the order of the events."""

    state: str = "open"
    replays: int = 0
    entries: list[Letter | Marker] = field(default_factory=list)

    def apply(self, what: str, letter: Letter) -> None:
        name, number = letter.id, self.replays + 1
        if what == "copy":
            self.entries.append(letter)
        elif self.state == "in doubt" and what in ("replay", "interrupt", "refuse"):
            self.entries.append(Marker(name, "replayed", self.replays))  # first of all it is brought to its end
            self.state = "replayed"
        elif what == "replay":
            self.entries += [Marker(name, "replaying", number, 3), Marker(name, "replayed", number)]
            self.state, self.replays = "replayed", number
        elif what == "interrupt":
            self.entries.append(Marker(name, "replaying", number, 3))
            self.state, self.replays = "in doubt", number
        elif what == "refuse":
            self.entries.append(Marker(name, "refused", number, reason="no"))
            self.replays = number
        elif what == "drop":
            self.entries.append(Marker(name, "dropped", self.replays))
            self.state = "replayed" if "replayed" in self.kinds else "dropped"

    @property
    def kinds(self) -> set[str]:
        return {each.kind for each in self.entries if isinstance(each, Marker)}


def letter(offset: int, attempts: int = 1) -> Letter:
    [made] = read(rejected(offset, DeadLetter(offset, 1, "r", b"k", b"{", "late", (), attempts)))
    assert isinstance(made, Letter)
    return made


STEPS = st.tuples(st.integers(0, 3), st.sampled_from(["copy", "replay", "interrupt", "refuse", "drop"]))


@given(st.lists(STEPS, max_size=25), st.randoms(use_true_random=False))
def test_the_open_letters_are_those_an_operator_would_know_however_the_partitions_are_read(
    steps: Sequence[tuple[int, str]], random
) -> None:
    models = {at: Model(entries=[letter(at)]) for at in range(4)}
    for at, what in steps:
        models[at].apply(what, letter(at))
    entries = [entry for model in models.values() for entry in model.entries]
    random.shuffle(entries)
    ledger = Ledger()
    for entry in entries:
        ledger.add(entry)
    assert len(ledger) == 4
    assert {case.letter.offset: (case.state, case.replays) for case in ledger} == {
        at: (model.state, model.replays) for at, model in models.items()
    }
    assert {case.letter.offset for case in ledger if case.is_open} == {
        at for at, model in models.items() if model.state in ("open", "in doubt")
    }


def test_markers_of_a_letter_that_has_expired_say_nothing() -> None:
    ledger = Ledger()
    ledger.add(Marker("3/1", "replayed", 1))
    assert list(ledger) == []
    assert ledger.find("3/1") is None


def test_a_marker_comes_back_from_the_topic_as_it_was_written() -> None:
    for marker in (Marker("3/12", "replaying", 2, 99), Marker("3/12/0@cases", "refused", 1, reason="answered 422")):
        assert read(marker_message(marker, letter(12))) == [marker]


def test_the_oldest_is_forgotten_with_its_markers() -> None:
    ledger = Ledger()
    for entry in (letter(1), letter(2), Marker("3/1", "dropped", 0)):
        ledger.add(entry)
    assert ledger.forget_oldest().id == "3/1"
    assert [case.letter.id for case in ledger] == ["3/2"]
    ledger.add(letter(1))
    assert [case.state for case in ledger] == ["open", "open"]


# What may be replayed.


def case(*markers: Marker, attempts: int = 1) -> Case:
    return Case(letter(12, attempts), frozenset(markers))


REPLAYED = (Marker("3/12", "replaying", 1, 3), Marker("3/12", "replayed", 1))


@pytest.mark.parametrize(
    ("given_case", "again", "expected"),
    [
        (case(), False, "anew"),
        (case(*REPLAYED), False, "it was replayed before; --again sends it all the same"),
        (case(*REPLAYED), True, "anew"),
        (case(Marker("3/12", "dropped", 0)), False, "it was dropped before; --again sends it all the same"),
        (case(Marker("3/12", "dropped", 0)), True, "anew"),
        (case(Marker("3/12", "replaying", 1, 3)), False, "begun"),
        (case(*REPLAYED, Marker("3/12", "replaying", 2, 3)), False, "begun"),
        (case(attempts=4), False, "anew"),
        (case(attempts=5), False, "it was tried 5 times; drop it, or raise --most-attempts"),
        (case(attempts=5), True, "it was tried 5 times; drop it, or raise --most-attempts"),
        (case(Marker("3/12", "refused", 4)), True, "it was tried 5 times; drop it, or raise --most-attempts"),
    ],
)
def test_a_replay_takes_what_is_open_and_has_attempts_left(given_case: Case, again: bool, expected: str) -> None:
    begun, anew, refusals = plan_replay([given_case], again=again, most_attempts=5)
    found = ["begun"] * len(begun) + ["anew"] * len(anew) + [each.why for each in refusals]
    assert found == [expected]


def test_the_tries_of_a_sink_are_no_replays() -> None:
    delivery = Delivery("fraud/3/12/0", "payments", 3, 12, 1_000, "c1", {"type": "Hold"})
    [found] = read(refused(delivery))
    assert isinstance(found, Letter)
    assert Case(found).replays == 0

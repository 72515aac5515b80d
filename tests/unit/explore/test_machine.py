"""The application as a state machine: hypothesis makes up events and faults, and shrinks what breaks a promise."""

from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.actions.publish import Publisher
from app.testing import CRASH, DUPLICATE, TORN, Away, Crash, Pause, Record, Simulation, Slow
from app.testing.clock import START_MS
from app.testing.faults import ACTION_CRASH, COORDINATOR_SILENT
from tests.explore.explorer import finish, open_simulation
from tests.explore.oracle import ViolationError
from tests.explore.pipelines import Payment
from tests.explore.schedules import AMOUNTS, AWAY_MS, CARDS, PAUSES_MS, SINKS, SLOW_MS, TIMES_MS, Item, draw_tuning
from tests.unit.explore.test_bugs import transact_twice

KINDS = st.sampled_from(["stream", "action"])


class Application(RuleBasedStateMachine):
    """Every rule lets a little happen; at the end everything that is promised has to hold."""

    simulation: Simulation

    @initialize(
        random=st.randoms(use_true_random=False),
        seed=st.integers(0, 999),
        with_fallback=st.booleans(),
        deduplicate=st.booleans(),
    )
    def start(self, random: Any, seed: int, with_fallback: bool, deduplicate: bool) -> None:
        self.simulation = open_simulation(
            seed, draw_tuning(random), with_fallback=with_fallback, deduplicate=deduplicate
        )
        self.simulation.wait_until_ready()
        self.items: list[Item] = []

    def take(self, item: Item) -> None:
        self.items.append(item)
        self.simulation.take(item)

    @rule(
        card=st.sampled_from(CARDS),
        amount=st.sampled_from(AMOUNTS),
        behind_ms=st.sampled_from(TIMES_MS),
        step_ms=st.sampled_from([0, 500, 3_000]),
    )
    def pay(self, card: str, amount: float, behind_ms: int, step_ms: int) -> None:
        number = len(self.items)
        self.take(Payment(id=f"p{number}", time=START_MS + number * step_ms + behind_ms, card=card, amount=amount))

    @rule(value=st.sampled_from([b"{", b"[]", None]))
    def send_something_broken(self, value: bytes | None) -> None:
        self.take(Record(value, b"a"))

    @rule(kind=KINDS, after_operations=st.integers(0, 40))
    def crash(self, kind: Any, after_operations: int) -> None:
        self.take(Crash(kind, after_operations))

    @rule(kind=KINDS, ms=st.sampled_from(PAUSES_MS))
    def pause(self, kind: Any, ms: float) -> None:
        self.take(Pause(kind, ms))

    @rule(what=st.sampled_from(["model", "broker", *SINKS]), ms=st.sampled_from(AWAY_MS))
    def take_away(self, what: str, ms: float) -> None:
        self.take(Away(what, ms))

    @rule(what=st.sampled_from(["model", "broker"]), by_ms=st.sampled_from(SLOW_MS), ms=st.sampled_from(AWAY_MS))
    def slow_down(self, what: Any, by_ms: float, ms: float) -> None:
        self.take(Slow(what, by_ms, ms))

    @rule(fault=st.sampled_from([ACTION_CRASH, COORDINATOR_SILENT, CRASH, DUPLICATE, TORN]))
    def strike(self, fault: Any) -> None:
        self.take(fault)

    @rule(ms=st.sampled_from([1, 5, 20, 100, 700, 3_200]))
    def let_pass(self, ms: float) -> None:
        self.simulation.run_for(ms)

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            with self.simulation:
                finish(self.simulation)


def test_whatever_happens_in_whatever_order_every_promise_holds() -> None:
    run_state_machine_as_test(Application, settings=settings(max_examples=40, stateful_step_count=25))  # type: ignore[no-untyped-call]


def test_it_finds_a_bug_that_is_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "_transact", transact_twice)
    without_shrinking = settings(max_examples=200, database=None, derandomize=True, phases=[Phase.generate])
    with pytest.raises(ViolationError, match=r"^(holds|dead-letters|late): \d+ effects were repeated"):
        run_state_machine_as_test(Application, settings=without_shrinking)  # type: ignore[no-untyped-call]

"""The roster over any course of events: workers that come, go, freeze, wake and die, answers that are lost, and a
coordinator that is started anew at any point.

At every moment: no two workers have their hands on one unit, unless one of them was unheard of for so long that its
units went to others. In the end: every unit has exactly one worker, and the shares differ by one at most.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.runtime.heartbeat import INTERVAL_S, TIMEOUT_S
from app.runtime.roster import SETTLE_MS, SILENCE_MS, Heartbeat, Roster

UNITS = [str(partition) for partition in range(5)]
MOST_WORKERS = 4
GAP_MS = int((INTERVAL_S + TIMEOUT_S) * 1000)
"""Between two heartbeats of a worker that is alive: the first may have had to be given up."""
picks = st.integers(0, 11)


@dataclass
class Worker:
    """Holds what it was given until it has handed it over, which takes `drain_beats` heartbeats.

    `lost` are the units that it still holds from before it was silent for too long: others have them by right.
    `heard_by` is the roster that has heard of it.
    """

    name: str
    drain_beats: int
    heard_ms: int
    draining: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    frozen: bool = False
    heard_by: Roster | None = None

    def take(self, given: list[str]) -> None:
        for unit in self.held - set(given):
            self.draining[unit] = self.draining.get(unit, self.drain_beats) - 1
        let_go = {unit for unit, beats in self.draining.items() if beats < 0 and unit not in given}
        self.draining = {unit: beats for unit, beats in self.draining.items() if unit not in let_go | set(given)}
        self.held = (self.held | set(given)) - let_go
        self.lost &= self.held


class Coordination(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.roster: Roster | None = Roster("fraud", {})
        self.roster_ms: int | None = None
        self.workers: list[Worker] = []
        self.joined = 0

    @initialize(workers=st.integers(0, 3), drain_beats=st.integers(0, 2))
    def the_pipeline_has_run_for_a_while(self, workers: int, drain_beats: int) -> None:
        for _ in range(workers):
            self.a_worker_joins(drain_beats)
        for _ in range(20):
            self.everyone_beats()

    # What happens.

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule(drain_beats=st.integers(0, 3))
    def a_worker_joins(self, drain_beats: int) -> None:
        self.joined += 1
        self.workers.append(Worker(f"w{self.joined}", drain_beats, self.now_ms))

    @precondition(lambda self: self.awake)
    @rule(pick=picks)
    def a_worker_sends_a_heartbeat(self, pick: int) -> None:
        self.beat(self.awake[pick % len(self.awake)])

    @precondition(lambda self: self.awake)
    @rule(pick=picks)
    def the_answer_to_a_heartbeat_is_lost(self, pick: int) -> None:
        self.beat(self.awake[pick % len(self.awake)], answer_arrives=False)

    @rule(wait_ms=st.sampled_from([10, 100, 250, 1_000, SILENCE_MS]))
    def time_passes(self, wait_ms: int) -> None:
        """Everyone who is awake sends a heartbeat in time."""
        end_ms = self.now_ms + wait_ms
        while (due := min(self.awake, key=lambda each: each.heard_ms, default=None)) is not None:
            if due.heard_ms + GAP_MS > end_ms:
                break
            self.now_ms = max(self.now_ms, due.heard_ms + GAP_MS)
            self.beat(due)
        self.now_ms = end_ms

    @precondition(lambda self: self.awake)
    @rule(pick=picks)
    def a_worker_freezes(self, pick: int) -> None:
        self.awake[pick % len(self.awake)].frozen = True

    @precondition(lambda self: any(each.frozen for each in self.workers))
    @rule(pick=picks)
    def a_frozen_worker_wakes(self, pick: int) -> None:
        frozen = [each for each in self.workers if each.frozen]
        worker = frozen[pick % len(frozen)]
        worker.frozen = False
        self.beat(worker)

    @precondition(lambda self: self.workers)
    @rule(pick=picks)
    def a_worker_is_killed(self, pick: int) -> None:
        self.workers.pop(pick % len(self.workers))

    @precondition(lambda self: self.awake)
    @rule(pick=picks)
    def a_worker_leaves(self, pick: int) -> None:
        worker = self.awake[pick % len(self.awake)]
        self.workers.remove(worker)
        worker.held = set()
        self.hear(self.heartbeat(worker, leaving=True))

    @rule()
    def the_coordinator_is_killed(self) -> None:
        self.roster, self.roster_ms = None, None

    @precondition(lambda self: self.roster is None)
    @rule()
    def the_coordinator_is_there_again(self) -> None:
        """Whoever is awake is heard by it within the gap of two heartbeats."""
        self.roster, self.roster_ms = Roster("fraud", {}), None
        for worker in self.awake:
            worker.heard_ms = max(worker.heard_ms, self.now_ms)

    @rule(pick=picks)
    def the_coordinator_is_replaced_and_hears_one_worker_first(self, pick: int) -> None:
        self.the_coordinator_is_there_again()
        if self.awake:
            self.beat(self.awake[pick % len(self.awake)])

    # What must hold.

    @invariant()
    def no_unit_is_in_two_hands_unless_one_was_silent_for_too_long(self) -> None:
        for unit in UNITS:
            rightful = [each.name for each in self.workers if unit in each.held - each.lost]
            assert len(rightful) <= 1, f"{unit} is held by {rightful}"

    def teardown(self) -> None:
        if self.roster is None:
            self.the_coordinator_is_there_again()
        for worker in self.workers:
            worker.frozen = False
        if not self.workers:
            self.a_worker_joins(0)
        for _ in range(40):
            self.everyone_beats()
        assert sorted(unit for worker in self.workers for unit in worker.held) == UNITS
        shares = [len(worker.held) for worker in self.workers]
        assert max(shares) - min(shares) <= 1
        before = {worker.name: set(worker.held) for worker in self.workers}
        for worker in reversed(self.workers):
            self.beat(worker)
        assert {worker.name: set(worker.held) for worker in self.workers} == before, "nothing moves without a reason"

    # How.

    @property
    def awake(self) -> list[Worker]:
        return [each for each in self.workers if not each.frozen]

    def everyone_beats(self) -> None:
        self.now_ms += int(INTERVAL_S * 1000)
        for worker in self.workers:
            self.beat(worker)
            self.no_unit_is_in_two_hands_unless_one_was_silent_for_too_long()

    def beat(self, worker: Worker, *, answer_arrives: bool = True) -> None:
        """Units that a worker kept over a silence of 3 s, or over the first 1.5 s of a new roster, are lost to it: they
        may be others' by now."""
        given = self.hear(self.heartbeat(worker))
        has_settled = self.roster_ms is not None and self.now_ms - self.roster_ms >= SETTLE_MS
        for each in self.workers:
            if self.now_ms - each.heard_ms > SILENCE_MS or (has_settled and each.heard_by is not self.roster):
                each.lost |= each.held
        worker.heard_ms, worker.heard_by = self.now_ms, self.roster
        for each in self.workers:  # who was silent has back by right what a new roster hears of from it first
            if each.heard_by is not self.roster:
                each.lost |= each.held & worker.lost & set(given)
        if answer_arrives and self.roster is not None:
            worker.lost -= set(given)
            worker.take(given)

    def hear(self, heartbeat: Heartbeat) -> list[str]:
        if self.roster is None:
            return []
        self.roster_ms = self.now_ms if self.roster_ms is None else self.roster_ms
        return self.roster.hear(heartbeat, self.now_ms)

    def heartbeat(self, worker: Worker, **more: Any) -> Heartbeat:
        held = sorted(worker.held)
        return Heartbeat(worker.name, "stream", UNITS, held, [], {}, {}, 0.5, **more)


TestCoordination = Coordination.TestCase
TestCoordination.settings = settings(max_examples=150, stateful_step_count=40)

"""The roster: workers come, freeze and go; every unit is worked on, and no worker is sent to where another one is."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.latency import StageLatency
from app.runtime.roster import SETTLE_MS, SILENCE_MS, Heartbeat, Roster

UNITS = [str(partition) for partition in range(6)]
BEAT_MS = 250


def beat(worker: str, held: list[str] | None = None, **more: Any) -> Heartbeat:
    """A stream worker's heartbeat, with a standing for each unit held."""
    held = held or []
    standing = [{"partition": int(unit), "offset": 100} for unit in held if unit in UNITS]
    defaults: dict[str, Any] = {
        "kind": "stream",
        "units": UNITS,
        "standing": standing,
        "totals": {},
        "latency": {},
        "busy": 0.5,
    }
    return Heartbeat(worker=worker, held=held, **defaults | more)


def settled() -> Roster:
    """A roster that has listened for long enough."""
    roster = Roster("fraud", {})
    roster.hear(beat("nobody", leaving=True), -SETTLE_MS)
    return roster


class Worker:
    """Does as it is told: takes up at once what it is given, and hands over what it is not at its next beat."""

    def __init__(self, name: str, hands_over_slowly: bool = False) -> None:
        self.name = name
        self.held: list[str] = []
        self.events = 0
        self._slow = hands_over_slowly
        self._leaving: list[str] = []

    def beat(self, roster: Roster, now_ms: int, **more: Any) -> list[str]:
        self.events += 10 * len(self.held)
        totals = {"events": self.events}
        given_units = roster.hear(beat(self.name, list(self.held), totals=totals, **more), now_ms)
        going = [unit for unit in self.held if unit not in given_units]
        still = [unit for unit in going if self._slow and unit not in self._leaving]
        self._leaving = still
        self.held = [*given_units, *still]
        return given_units


def shares(workers: list[Worker]) -> list[int]:
    return sorted(len(worker.held) for worker in workers)


def run(roster: Roster, workers: list[Worker], start_ms: int, beats: int = 12) -> int:
    for now_ms in range(start_ms, start_ms + beats * BEAT_MS, BEAT_MS):
        for worker in workers:
            worker.beat(roster, now_ms)
    return start_ms + beats * BEAT_MS


def test_units_are_given_out_only_when_a_new_roster_has_listened_for_a_while() -> None:
    roster = Roster("fraud", {})
    assert roster.hear(beat("a"), 0) == []
    assert roster.hear(beat("a"), SETTLE_MS - 1) == []
    assert roster.hear(beat("a"), SETTLE_MS) == UNITS


def test_a_unit_goes_over_only_when_its_holder_has_let_go() -> None:
    roster = settled()
    a, b = Worker("a", hands_over_slowly=True), Worker("b")
    a.beat(roster, 0)
    assert a.held == UNITS
    assert b.beat(roster, 10) == []
    a.beat(roster, 20)
    assert len(a.held) == 6  # told to go on with three, the others on their way out
    assert b.beat(roster, 30) == []
    a.beat(roster, 40)
    a.beat(roster, 50)
    assert len(b.beat(roster, 60)) == 3
    assert set(a.held) | set(b.held) == set(UNITS)


def test_a_silent_worker_loses_its_units_to_the_others() -> None:
    roster = settled()
    a, b = Worker("a"), Worker("b")
    now_ms = run(roster, [a, b], 0)
    assert shares([a, b]) == [3, 3]
    run(roster, [b], now_ms, beats=SILENCE_MS // BEAT_MS + 1)
    assert len(b.held) == 6


def test_a_worker_that_leaves_hands_its_units_over_at_once() -> None:
    roster = settled()
    a, b = Worker("a"), Worker("b")
    now_ms = run(roster, [a, b], 0)
    roster.hear(beat("a", leaving=True), now_ms)
    assert b.beat(roster, now_ms + 1) == UNITS


def test_a_frozen_worker_that_wakes_takes_nothing_away_from_those_who_went_on() -> None:
    roster = settled()
    frozen, b = Worker("frozen"), Worker("b")
    now_ms = run(roster, [frozen, b], 0)
    now_ms = run(roster, [b], now_ms, beats=SILENCE_MS // BEAT_MS + 1)
    assert len(b.held) == 6
    frozen.beat(roster, now_ms)
    assert len(b.beat(roster, now_ms + 1)) == 3
    run(roster, [frozen, b], now_ms + BEAT_MS)
    assert shares([frozen, b]) == [3, 3]


def test_a_frozen_worker_that_wakes_is_not_given_what_the_others_hold() -> None:
    roster = settled()
    frozen, b = Worker("frozen"), Worker("b")
    now_ms = run(roster, [frozen, b], 0)
    kept = list(b.held)
    now_ms = run(roster, [b], now_ms, beats=SILENCE_MS // BEAT_MS + 1)
    assert not set(frozen.beat(roster, now_ms)) & set(kept)


def test_two_workers_that_wake_one_after_the_other_never_both_own_a_unit() -> None:
    roster = settled()
    a, b = Worker("a", hands_over_slowly=True), Worker("b", hands_over_slowly=True)
    now_ms = run(roster, [a, b], 0) + SILENCE_MS
    assert a.beat(roster, now_ms) == UNITS
    for beat_ms in range(now_ms + 1, now_ms + 12 * BEAT_MS, BEAT_MS):
        assert not set(b.beat(roster, beat_ms)) & set(a.held)
        a.beat(roster, beat_ms + 1)
    assert shares([a, b]) == [3, 3]


def test_a_restarted_roster_learns_who_has_what_and_moves_nothing() -> None:
    for order in itertools.permutations("abc"):
        before = settled()
        workers = {name: Worker(name) for name in "abc"}
        run(before, list(workers.values()), 0)
        had = {name: list(worker.held) for name, worker in workers.items()}
        after = Roster("fraud", {})
        for now_ms in range(0, 10 * BEAT_MS, BEAT_MS):
            for name in order:
                workers[name].beat(after, now_ms)
                assert sorted(workers[name].held) == sorted(had[name])


def test_action_workers_share_units_of_their_own() -> None:
    roster = settled()
    sinks = ["holds/0", "holds/1"]
    assert roster.hear(beat("stream"), 0) == UNITS
    assert roster.hear(beat("action", kind="action", units=sinks), 1) == sinks
    assert roster.hear(beat("stream", UNITS), 2) == UNITS


def test_partitions_that_one_worker_sees_first_are_given_out_and_stay_while_the_others_have_not_seen_them() -> None:
    roster = settled()
    behind, ahead = Worker("behind"), Worker("ahead")
    now_ms = run(roster, [behind, ahead], 0)
    grown = [*UNITS, "6", "7"]
    for at in range(5):
        ahead.beat(roster, now_ms + at, units=grown)
        behind.beat(roster, now_ms + at)
    assert shares([behind, ahead]) == [4, 4]
    assert roster.status(now_ms + 5)["partitions"][-1]["partition"] == 7


class Cluster:
    """Workers that come, freeze, wake and leave, over a roster that may be started anew.

    `heard` is what the roster can know: when each worker was heard last, and what it held or was given then.
    """

    def __init__(self) -> None:
        self.now_ms = 0
        self.roster = Roster("fraud", {})
        self.workers: dict[str, Worker] = {}
        self.joined: list[Worker] = []
        self.frozen: set[str] = set()
        self.heard: dict[str, tuple[int, set[str]]] = {}

    def act(self, what: str, pick: int) -> None:
        awake = sorted(self.workers.keys() - self.frozen)
        if what == "join" and len(self.workers) < 5:
            self.joined.append(Worker(f"w{len(self.joined)}", hands_over_slowly=pick % 2 == 0))
            self.workers[self.joined[-1].name] = self.joined[-1]
        elif what == "freeze" and awake:
            self.frozen.add(awake[pick % len(awake)])
        elif what == "wake" and self.frozen:
            self.frozen.discard(sorted(self.frozen)[pick % len(self.frozen)])
        elif what == "leave" and awake:
            leaving = self.workers.pop(awake[pick % len(awake)])
            leaving.beat(self.roster, self.now_ms, leaving=True)
            self.heard.pop(leaving.name, None)
        elif what == "restart":
            self.roster, self.heard = Roster("fraud", {}), {}
        elif what == "wait":
            self.now_ms += SILENCE_MS // 2

    def everyone_beats(self, order: int) -> None:
        """One after the other, in the order of that number."""
        self.now_ms += BEAT_MS
        awake = sorted(self.workers.keys() - self.frozen)
        random.Random(order).shuffle(awake)
        for name in awake:
            held = set(self.workers[name].held)
            given_units = set(self.workers[name].beat(self.roster, self.now_ms))
            self.heard[name] = (self.now_ms, held | given_units)
            for other, (heard_ms, others) in self.heard.items():
                if other != name and self.now_ms - heard_ms <= SILENCE_MS:
                    assert not (given_units - held) & others, "sent to where a living worker has its hands on"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "join", "freeze", "wake", "leave", "restart", "wait", "beat"]), st.integers(0, 9)
        ),
        max_size=25,
    )
)
def test_workers_come_freeze_and_go_and_in_the_end_every_unit_has_one_of_them(story: list[tuple[str, int]]) -> None:
    cluster = Cluster()
    cluster.act("join", 0)
    for what, pick in story:
        cluster.act(what, pick)
        cluster.everyone_beats(pick)
    cluster.frozen.clear()
    cluster.act("join", 0)
    for order in range(20):
        cluster.everyone_beats(order)
    workers = list(cluster.workers.values())
    assert sorted(unit for worker in workers for unit in worker.held) == UNITS
    assert max(shares(workers)) - min(shares(workers)) <= 1
    if "restart" not in dict(story):
        assert cluster.roster.status(cluster.now_ms)["totals"]["events"] == sum(each.events for each in cluster.joined)


def test_totals_add_up_over_workers_and_count_nothing_twice() -> None:
    roster = settled()
    roster.hear(beat("a", totals={"events": 10, "decisions": 9}), 0)
    roster.hear(beat("b", totals={"events": 5}), 1)
    roster.hear(beat("a", totals={"events": 12, "decisions": 11}), 2)
    totals = roster.status(3)["totals"]
    assert (totals["events"], totals["decisions"], totals["actions"]) == (17, 11, 0)


def test_a_worker_that_was_silent_or_left_is_not_counted_twice() -> None:
    roster = settled()
    roster.hear(beat("a", totals={"events": 10}), 0)
    roster.status(SILENCE_MS + 1)
    roster.hear(beat("a", totals={"events": 12}), SILENCE_MS + 2)
    assert roster.status(SILENCE_MS + 3)["totals"]["events"] == 12
    roster.hear(beat("a", totals={"events": 13}, leaving=True), SILENCE_MS + 4)
    roster.hear(beat("a", totals={"events": 13}), SILENCE_MS + 5)
    assert roster.status(SILENCE_MS + 6)["totals"]["events"] == 13


def test_what_workers_that_are_gone_have_done_stays_counted() -> None:
    roster = settled()
    roster.hear(beat("a", totals={"events": 10}), 0)
    assert roster.status(10 * SILENCE_MS)["totals"]["events"] == 10


def test_throughput_is_what_was_done_lately() -> None:
    roster = settled()
    for now_ms in range(0, 10_000, BEAT_MS):
        events = now_ms // 10
        standing = [{"partition": 0, "offset": now_ms // 20}]
        roster.hear(beat("a", totals={"events": events, "decisions": 0}, standing=standing), now_ms)
    status = roster.status(10_000)
    assert status["throughput"] == {"events_per_s": 100.0, "decisions_per_s": 0.0}
    assert [row["events_per_s"] for row in status["partitions"] if row["worker"]] == [50.0]


def test_a_restarted_roster_takes_no_worker_s_past_for_throughput() -> None:
    roster = Roster("fraud", {})
    for now_ms, worker in enumerate("abc"):
        roster.hear(beat(worker, totals={"events": 1_000_000}), now_ms * 100)
    assert roster.status(300)["throughput"]["events_per_s"] == 0.0
    assert roster.status(300)["totals"]["events"] == 3_000_000


def test_throughput_is_nothing_when_all_workers_are_gone() -> None:
    roster = settled()
    roster.hear(beat("a", totals={"events": 0}), 0)
    roster.hear(beat("a", totals={"events": 1_000}), 1_000)
    assert roster.status(1_000)["throughput"]["events_per_s"] > 0
    assert roster.status(60_000)["throughput"]["events_per_s"] == 0.0


SINKS = ["holds/0", "holds/1"]


def carry(units: list[str]) -> dict[str, Any]:
    standing = [{"sink": unit.split("/")[0], "partition": int(unit.split("/")[1]), "offset": 1} for unit in units]
    return {"kind": "action", "units": SINKS, "standing": standing}


@pytest.mark.parametrize(
    ("beats", "ready"),
    [
        ([], False),
        ([beat("s", UNITS)], False),
        ([beat("s", UNITS), beat("a", SINKS, **carry(SINKS))], True),
        ([beat("s", UNITS[:-1]), beat("a", SINKS, **carry(SINKS))], False),
        ([beat("s", UNITS), beat("a", SINKS, **carry(SINKS[:1]))], False),
        ([beat("s", UNITS[:3]), beat("t", UNITS[3:]), beat("a", SINKS, **carry(SINKS))], True),
        ([beat("s", UNITS, standing=[]), beat("a", SINKS, **carry(SINKS))], False),
        ([beat("s", UNITS), beat("a", SINKS, **carry(SINKS)), beat("s", UNITS, leaving=True)], False),
    ],
)
def test_it_is_ready_when_every_partition_and_every_sink_is_worked_on(beats: list[Heartbeat], ready: bool) -> None:
    roster = settled()
    for at, each in enumerate(beats):
        roster.hear(each, at)
    assert roster.status(10)["ready"] is ready


def test_status_names_each_partition_s_worker_and_forgets_those_who_are_silent() -> None:
    roster = settled()
    roster.hear(beat("a", ["2", "0"]), 0)
    roster.hear(beat("b", ["1"]), 2_000)
    status = roster.status(2_500)
    assert [(row["partition"], row["worker"]) for row in status["partitions"]] == [
        (0, "a"),
        (1, "b"),
        (2, "a"),
        *((partition, None) for partition in (3, 4, 5)),
    ]
    assert [(each["id"], each["heartbeat_age_ms"]) for each in status["workers"]] == [("a", 2_500), ("b", 500)]
    assert [each["id"] for each in roster.status(SILENCE_MS + 1)["workers"]] == ["b"]


def test_status_says_how_checkpoints_are_and_why_a_worker_cannot_take_up_what_it_was_given() -> None:
    roster = settled()
    standing = {
        "partition": 0,
        "offset": 1,
        "checkpoint_age_ms": 5.0,
        "checkpoint_bytes": 9,
        "checkpoint_error": "full",
    }
    roster.hear(beat("a", ["0"], standing=[standing], error="payments/1 is refused"), 0)
    status = roster.status(1)
    names = ("checkpoint_age_ms", "checkpoint_bytes", "checkpoint_error")
    assert [[row[name] for name in names] for row in status["partitions"][:2]] == [[5.0, 9, "full"], [None] * 3]
    assert [each["error"] for each in status["workers"]] == ["payments/1 is refused"]


def test_latencies_of_all_workers_become_one_board() -> None:
    roster = settled()
    for worker in "ab":
        latency = StageLatency()
        latency.observe_batch("scored", 8.0, 10)
        roster.hear(beat(worker, latency=latency.take()), 0)
    assert roster.status(1)["stages"]["scored"]["count"] == 20
    assert roster.check_budgets(1) == []

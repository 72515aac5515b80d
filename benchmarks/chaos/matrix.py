"""One fault after the other on one running application, each judged by what the logs and the sinks hold behind it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.oracle import Expected, Oracle
from benchmarks.chaos.scene import SOURCE, Scene
from benchmarks.chaos.sinks import REJECTS, DeadLetters, open_sinks
from benchmarks.chaos.topics import DecisionLog, TopicReader
from benchmarks.chaos.traffic import Traffic
from benchmarks.chaos.verdict import Effects, Outcome, Row, judge
from benchmarks.site import Site


class Load(NamedTuple):
    """`rate` payments a second, from `before_s` before a fault to `after_s` behind it."""

    rate: float = 500.0
    before_s: float = 5.0
    after_s: float = 12.0


class Matrix:
    """Strikes and judges. What comes between two judgements belongs to the second."""

    def __init__(self, scene: Scene, load: Load, seed: int) -> None:
        bootstrap = scene.site.bootstrap
        self._scene = scene
        self._load = load
        self._traffic = Traffic(scene.site.kafka, SOURCE, load.rate, seed)
        self._source = TopicReader(bootstrap, SOURCE)
        self._log = DecisionLog(bootstrap, "fraud.decisions")
        self._letters = DeadLetters(bootstrap)
        self._oracle = Oracle()

    def run(self, fault: str) -> Row:
        """One row. An application that does not settle is judged as it is, and a new one takes its place."""
        scene, console = self._scene, self._scene.site.console
        console.renew(f"{fault}: under load …")
        with self._traffic:
            scene.wait(self._load.before_s)
            FAULTS[fault](scene)
            console.renew(f"{fault}: over; the load goes on …")
            scene.wait(self._load.after_s)
        console.renew(f"{fault}: waiting until everything is done …")
        missing = scene.settle()
        row = self._judge(fault)
        if missing:
            console.say(f"{fault}: not settled: {missing}")
            scene.stop()
            scene.start()
        return row

    def _judge(self, fault: str) -> Row:
        expected = [self._oracle.expect(record) for record in self._source.read()]
        outcomes = self._log.read()
        verdict = judge(fault, self._scene.struck_ms, expected, outcomes, self._effects())
        for line in [describe(verdict.row, expected, outcomes), *verdict.notes]:
            self._scene.site.console.say(line)
        return verdict.row

    def _effects(self) -> dict[str, Effects]:
        letters = self._letters.read()
        refused = {name: frozenset(keys) for name, keys in letters.items()}
        holds = {sink.name: Effects(sink.done(), refused.get(sink.name, frozenset())) for sink in self._scene.sinks}
        return {**holds, REJECTS: Effects(letters.get(REJECTS, {}), of_rejects=True)}


def describe(row: Row, expected: Sequence[Expected], outcomes: Sequence[Outcome]) -> str:
    """One line: the verdict, and how much it is about."""
    holds = sum(each.holds for each in outcomes)
    letters = sum(not each.decided for each in outcomes)
    verdict = "sound" if row.sound else "NOT SOUND"
    said = ", ".join(f"{name} {value}" for name, value in asdict(row).items() if name != "fault")
    scope = f"{len(expected):,} records, {holds:,} holds, {letters:,} dead letters"
    return f"{row.fault}: {verdict}: {said} ({scope})"


@contextmanager
def open_matrix(site: Site, nodes: int, load: Load, seed: int) -> Iterator[Matrix]:
    """Starts an application with its sinks, on so many Ray nodes, and ends it behind."""
    site.make_topics(SOURCE, "holds")
    cluster = Cluster(site) if nodes > 1 else None
    if cluster:
        cluster.start()
    with open_sinks(site.data, site.bootstrap) as sinks:
        scene = Scene(site, sinks, cluster)
        scene.start()
        try:
            yield Matrix(scene, load, seed)
        finally:
            scene.stop()

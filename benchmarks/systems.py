"""The systems under test: each takes payments from one topic and leaves something in another."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from app.errors import HeadraceError
from app.operate.config_file import find_application, read_config
from app.operate.run import who_is_behind
from app.operate.stack import APPLICATION, APPLICATION_PATIENCE_S, Stack
from benchmarks.loop import READY
from benchmarks.site import PARTITIONS, Site

CONFIG = Path("config", "fraud.yaml")
START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 300.0
LOOP = "loop"


class System(Protocol):
    """`scores_all`: whether the target gets a record for each payment, or only for those that are held."""

    name: str
    scores_all: bool

    def start(self, site: Site, source: str, target: str, linger_ms: int) -> None:
        """Returns when it is ready to take payments. A run of its own: it begins at the beginning of the source."""

    def wait_until_done(self, site: Site, source: str, target: str) -> None:
        """Returns when all that the source holds now is through."""

    def status(self) -> Mapping[str, Any]:
        """What the system says of itself; {} when it says nothing."""

    def stop(self, site: Site) -> None: ...


class Loop:
    """The hand-written loop."""

    name = "hand-written loop"
    scores_all = True

    def start(self, site: Site, source: str, target: str, linger_ms: int) -> None:
        command = [sys.executable, "-m", "benchmarks.loop", "--bootstrap", site.bootstrap, "--source", source]
        site.processes.start(LOOP, [*command, "--target", target, "--linger-ms", str(linger_ms)])
        site.wait(lambda: READY in site.processes.output(LOOP), self.name, LOOP, START_TIMEOUT_S)

    def wait_until_done(self, site: Site, source: str, target: str) -> None:
        events = sum(site.end_offsets(source).values())
        site.wait(
            lambda: sum(site.end_offsets(target).values()) >= events, f"{self.name}: to drain", LOOP, DRAIN_TIMEOUT_S
        )

    def status(self) -> Mapping[str, Any]:
        return {}

    def stop(self, site: Site) -> None:
        site.processes.end(LOOP, signal.SIGTERM, APPLICATION_PATIENCE_S)


class Headrace:
    """The whole pipeline as `serve run` starts it; with scores_all a record per decision, else one per hold."""

    def __init__(self, workers: int, *, scores_all: bool) -> None:
        self.workers = workers
        self.scores_all = scores_all
        what = "a record per decision" if scores_all else "a record per hold"
        self.name = f"Headrace, {workers} worker{'s' if workers > 1 else ''}, {what}"
        self._stack: Stack | None = None

    def start(self, site: Site, source: str, target: str, linger_ms: int) -> None:
        data = site.data / target
        data.mkdir()
        config = data / CONFIG.name
        config.write_text(yaml.safe_dump(self._config(site, source, target), sort_keys=False))
        stack = Stack(config, "fraud", data, site.processes, site.console, site.stopping)
        stack.bootstrap = site.bootstrap
        stack.start_application()
        self._stack = stack

    def _config(self, site: Site, source: str, target: str) -> dict[str, Any]:
        """config/fraud.yaml with other topics, workers and sinks; everything that decides its speed stays."""
        config = read_config(CONFIG)
        application = find_application(config, "fraud")
        args = application["args"]
        args["name"] = "fraud"
        args["kafka"]["client"] = site.client
        names = {"decisions": "decisions", "dead_letters": "dead-letters", "late": "late"}
        logs = {key: f"{target}.{name}" for key, name in names.items()}
        args["topics"] = {"source": source, "partitions": PARTITIONS, **logs}
        if self.scores_all:
            args["pipeline"], args["sinks"] = "benchmarks.pipelines:scores", {"scores": {"topic": target}}
        else:
            off = {"case-system": {"url": "off"}, "held_payments": {"dsn": "off"}}
            args["sinks"] = {"holds": {"topic": target}, **off}
        workers = next(each for each in application["deployments"] if each["name"] == "StreamWorker")
        workers["num_replicas"] = self.workers
        return config

    def wait_until_done(self, site: Site, source: str, target: str) -> None:
        ends = site.end_offsets(source)
        site.wait(lambda: not self._behind(ends), f"{self.name}: to drain", APPLICATION, DRAIN_TIMEOUT_S)

    def _behind(self, ends: Mapping[int, int]) -> list[str]:
        try:
            return who_is_behind(self.status(), ends)
        except HeadraceError as error:  # a replica of the API may be restarting
            return [str(error)]

    def status(self) -> Mapping[str, Any]:
        return self._stack.status() if self._stack else {}

    def stop(self, site: Site) -> None:
        site.processes.end(APPLICATION, signal.SIGINT, APPLICATION_PATIENCE_S)


def systems(quick: bool) -> list[System]:
    """Whom the tables compare."""
    if quick:
        return [Loop(), Headrace(1, scores_all=True)]
    return [
        Loop(),
        *(Headrace(workers, scores_all=scores_all) for scores_all in (False, True) for workers in (1, 2)),
    ]

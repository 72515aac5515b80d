"""The pipeline under test: started as a user starts it, with the handles that the faults take hold of."""

import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx
import psutil
import yaml

from app.errors import HeadraceError
from app.operate.config_file import find_application, read_config
from app.operate.ports import free_port
from app.operate.run import who_is_behind
from app.operate.stack import APPLICATION, APPLICATION_PATIENCE_S, BROKER, Stack
from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.sinks import Sinks
from benchmarks.site import PARTITIONS, Site
from benchmarks.systems import CONFIG

SOURCE = "payments"
FIRST_HTTP_PORT = 24_000
WORKERS = {"StreamWorker": 2, "ActionWorker": 2}
KINDS = {"StreamWorker": "stream", "ActionWorker": "action"}
CHECKPOINT_INTERVAL = "2s"
SETTLE_TIMEOUT_S = 240.0
BROKER_PATIENCE_S = 20.0
DEPLOY_TIMEOUT_S = 30.0


class Scene:
    """One application, and everything that it has to do with. Its waits end with KeyboardInterrupt when the run is to
    stop."""

    def __init__(self, site: Site, sinks: Sinks, cluster: Cluster | None) -> None:
        self.site = site
        self.sinks = sinks
        self.cluster = cluster
        self.checkpoints = site.data / "checkpoints"
        self._file = site.data / CONFIG.name
        self._config = self._configure()
        self._stack: Stack | None = None
        self.struck_ms = 0.0

    def _configure(self) -> dict[str, Any]:
        """config/fraud.yaml with the pipeline, the sinks and the number of workers that chaos wants."""
        config = read_config(CONFIG)
        config["http_options"]["port"] = free_port(FIRST_HTTP_PORT)
        application = find_application(config, "fraud")
        args = application["args"]
        args |= {"pipeline": "benchmarks.chaos.pipeline:chaos", "name": "fraud"}
        args["kafka"] |= {"bootstrap": self.site.bootstrap, "client": self.site.client}
        args["topics"] = {"source": SOURCE, "partitions": PARTITIONS}
        args["checkpoints"] = {"uri": str(self.checkpoints)}
        args["sinks"] = {sink.name: dict(sink.settings()) for sink in self.sinks}
        for deployment in application["deployments"]:
            if deployment["name"] in WORKERS:
                deployment["num_replicas"] = WORKERS[deployment["name"]]
            if deployment["name"] == "StreamWorker":
                deployment["user_config"]["checkpoint_interval"] = CHECKPOINT_INTERVAL
        return config

    def start(self) -> None:
        self._file.write_text(yaml.safe_dump(self._config, sort_keys=False))
        site = self.site
        address = self.cluster.address if self.cluster else "local"
        stack = Stack(self._file, "fraud", site.data, site.processes, site.console, site.stopping, address)
        stack.bootstrap = site.bootstrap
        stack.start_application()
        self._stack = stack

    def stop(self) -> None:
        if self._stack is None:
            return
        self._stack = None
        self.site.processes.end(APPLICATION, signal.SIGINT, APPLICATION_PATIENCE_S)

    def deploy(self, deployment: str, **changes: Any) -> None:
        """Does what `serve deploy` does: `user_config` is merged into what it is, everything else replaced."""
        assert self._stack is not None
        [found] = [each for each in self._config["applications"][0]["deployments"] if each["name"] == deployment]
        found["user_config"] = {**found.get("user_config", {}), **changes.pop("user_config", {})}
        found |= changes
        answer = httpx.put(
            f"{self._stack.dashboard}/api/serve/applications/", json=self._config, timeout=DEPLOY_TIMEOUT_S
        )
        answer.raise_for_status()

    def struck(self) -> None:
        """Says that the fault has just struck: what is appended from now on meets it."""
        self.struck_ms = time.time() * 1000

    def wait(self, seconds: float) -> None:
        if self.site.stopping.wait(seconds):
            raise KeyboardInterrupt

    def settle(self) -> str | None:
        """Waits until all that the source holds is decided and acted upon, by as many workers as there should be.

        Returns what is still missing after 4 minutes; None when nothing is.
        """
        ends = self.site.end_offsets(SOURCE)
        with suppress(HeadraceError):
            self.site.wait(
                lambda: not self._behind(ends), "the pipeline: to settle", APPLICATION, timeout_s=SETTLE_TIMEOUT_S
            )
            return None
        return "; ".join(self._behind(ends))

    def _behind(self, ends: Mapping[int, int]) -> list[str]:
        assert self._stack is not None
        try:
            status = self._stack.status()
        except HeadraceError as error:  # a replica of the API may be restarting
            return [str(error)]
        short = [
            f"{len(found)} of {wanted} {name}s are there"
            for name, wanted in WORKERS.items()
            if len(found := [each for each in status["workers"] if each["kind"] == KINDS[name]]) != wanted
        ]
        return [*short, *who_is_behind(status, ends)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas. Raises HeadraceError when there is none."""
        return self.processes(f"ServeReplica:fraud:{deployment}")

    def processes(self, title: str) -> list[psutil.Process]:
        """The processes of the application with this in their command line. Raises HeadraceError for none."""
        found = [each for each in psutil.Process().children(recursive=True) if title in _command(each)]
        if not found:
            raise HeadraceError(f"no process of the application is called {title!r}")
        return found

    def broker(self) -> psutil.Process:
        """The one, of a cluster of one."""
        return next(each for each in psutil.Process().children() if self.site.apart.get(each.pid) == BROKER)

    def stop_broker(self, number: signal.Signals, name: str = BROKER) -> None:
        self.site.processes.end(name, number, BROKER_PATIENCE_S)

    def start_broker(self, name: str = BROKER) -> None:
        """On the same port, with the same data."""
        self.site.start_brokers(name)


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""

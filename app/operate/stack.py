"""Broker, application and simulator on one machine: how each is started, known to be ready, and ended."""

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from app.errors import HeadraceError
from app.operate.config_file import find_application, read_config
from app.operate.console import Console
from app.operate.ports import free_port
from app.operate.processes import Processes
from app.operate.status import fetch_status, open_client

T = TypeVar("T")
SERVE = [str(Path(sys.executable).with_name("serve"))]
BROKER, APPLICATION, SIMULATOR = "broker", "application", "simulator"
BROKER_ADDRESS = re.compile(r"not for production: (\S+),")
DASHBOARD_ADDRESS = re.compile(r"dashboard at \S*?http://([^\s\x1b]+)")  # between the codes of a colour
HTTP_PORT, DASHBOARD_PORT = 8000, 8265
START_TIMEOUT_S = 120.0
POLL_S = 0.25
# All three, and Ray's own processes behind the application, have to be gone 15 s after a Ctrl-C.
SIMULATOR_PATIENCE_S, APPLICATION_PATIENCE_S, BROKER_PATIENCE_S = 1.0, 8.0, 1.0
RAY_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",  # for Ray's own processes, as the config has it for the application's
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "RAY_AUTH_MODE": "disabled",  # everything is on loopback; the dashboard needs no token
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # 30 s by default, for load balancers to notice the end
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets the broker starve the workers
}


class Stack:
    """Starts the parts one after the other and says on the console what it waits for.

    Its methods raise HeadraceError with the reason when a part does not come up, and KeyboardInterrupt when they are
    to stop. `address` is that of the Ray cluster, "local" starts one.
    """

    def __init__(
        self,
        config: Path,
        pipeline: str,
        data: Path,
        processes: Processes,
        console: Console,
        stopping: threading.Event,
        address: str = "local",
    ) -> None:
        self._config = config
        self._application = find_application(read_config(config), pipeline)
        self._pipeline = pipeline
        self._data = data
        self._processes = processes
        self._console = console
        self._stopping = stopping
        self._address = address
        self._client = open_client()
        self.bootstrap = ""
        self.url = ""
        self.dashboard = ""

    def start_broker(self) -> None:
        self._processes.start(BROKER, _python("broker", "--port", "0", "--dir", str(self._data / "broker")))
        self.bootstrap = self._wait(lambda: self._found(BROKER, BROKER_ADDRESS), "the broker")

    def start_application(self) -> None:
        """Runs `serve run`, and returns when every worker has its partitions."""
        environment = RAY_ENVIRONMENT | {"KAFKA_BOOTSTRAP": self.bootstrap, "HEADRACE_DATA": str(self._data)}
        config = self._claim_port()
        self._processes.start(APPLICATION, [*SERVE, "run", "--address", self._address, str(config)], environment)
        self.dashboard = "http://" + self._wait(lambda: self._found(APPLICATION, DASHBOARD_ADDRESS), "Ray")
        if not self.dashboard.endswith(f":{DASHBOARD_PORT}"):
            self._console.say(f"Port {DASHBOARD_PORT} is in use; the Ray dashboard is at {self.dashboard}.")
        self._wait(self._running, "the application")
        self._wait(self._ready, "the workers")

    def start_simulator(self, rate: float, events: int | None) -> None:
        topic = self._application["args"]["topics"]["source"]
        command = ["simulate", "--pipeline", self._pipeline, "--topic", topic, "--config", str(self._config)]
        command += ["--bootstrap", self.bootstrap, "--rate", f"{rate:g}", "--resume", "--json"]
        command += ["--disorder", "0.05", "--duplicates", "0.01", "--broken", "0.001"]
        self._processes.start(SIMULATOR, _python(*command, *([] if events is None else ["--events", str(events)])))

    def status(self) -> dict[str, Any]:
        """The status document. Raises HeadraceError when the application does not answer."""
        return fetch_status(self._client, self.url, self._pipeline)

    def check(self) -> None:
        """Raises ProcessEndedError when the broker or the application has ended by itself."""
        self._processes.check(BROKER, APPLICATION)

    def tail(self) -> str:
        """The end of what the application said."""
        return self._processes.tail(APPLICATION)

    def sent(self) -> int | None:
        """How many records the broker has acknowledged to the simulator, once that has sent all; None before.

        Raises ProcessEndedError when it has failed.
        """
        if (status := self._processes.exit_status(SIMULATOR)) is None:
            return None
        if status != 0:
            self._processes.check(SIMULATOR)
        return int(json.loads(self._processes.output(SIMULATOR).splitlines()[-1])["acknowledged"])

    def stop_simulator(self) -> None:
        self._processes.end(SIMULATOR, signal.SIGINT, SIMULATOR_PATIENCE_S)

    def stop(self) -> None:
        """Ends the application, which drains, and then the broker, which keeps the log."""
        self._processes.end(APPLICATION, signal.SIGINT, APPLICATION_PATIENCE_S)
        self._processes.end(BROKER, signal.SIGTERM, BROKER_PATIENCE_S)
        self._client.close()

    def _claim_port(self) -> Path:
        """The config itself, or a copy with another HTTP port when its own is taken."""
        config = read_config(self._config)
        http_options = config.setdefault("http_options", {})
        wanted = http_options.get("port", HTTP_PORT)
        port = http_options["port"] = free_port(wanted)
        self.url = f"http://127.0.0.1:{port}"
        if port == wanted:
            return self._config
        self._console.say(f"Port {wanted} is in use; the application takes {port}.")
        copy = self._data / self._config.name
        copy.write_text(yaml.safe_dump(config, sort_keys=False))
        return copy

    def _found(self, name: str, address: re.Pattern[str]) -> str | None:
        found = address.search(self._processes.output(name))
        return found and found[1]

    def _running(self) -> bool | None:
        """Raises HeadraceError when Serve has given up on the application; it would stay up without it."""
        application = self._serve_status()
        deployments: Mapping[str, Any] = application.get("deployments", {})
        starting = [name for name, each in deployments.items() if each["status"] != "HEALTHY"]
        if application.get("status") == "DEPLOY_FAILED":
            reasons = [application["message"], *(deployments[name]["message"] for name in starting)]
            reason = "\n".join(filter(None, dict.fromkeys(reasons)))
            raise HeadraceError(f"the application cannot start; Serve says:\n{reason}")
        self._console.renew(f"Starting {', '.join(starting) or 'the application'} …")
        return True if application.get("status") == "RUNNING" else None

    def _serve_status(self) -> dict[str, Any]:
        try:
            answer = self._client.get(f"{self.dashboard}/api/serve/applications/")
            return dict(answer.raise_for_status().json()["applications"].get(self._application["name"], {}))
        except httpx.HTTPError:  # the dashboard, too, is still starting
            return {}

    def _ready(self) -> bool | None:
        try:
            status = self.status()
        except HeadraceError:
            return None
        owned = sum(row["worker"] is not None for row in status["partitions"])
        self._console.renew(f"Starting the workers: {owned} of {len(status['partitions'])} partitions have one …")
        return True if status["ready"] else None

    def _wait(self, condition: Callable[[], T | None], what: str) -> T:
        self._console.renew(f"Starting {what} …")
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            self.check()
            if (value := condition()) is not None:
                return value
            if time.monotonic() > deadline_s:
                name = BROKER if not self.bootstrap else APPLICATION
                raise HeadraceError(f"{what} is not ready after {START_TIMEOUT_S:.0f} s; {self._processes.tail(name)}")
            if self._stopping.wait(POLL_S):
                raise KeyboardInterrupt


def _python(command: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "app", command, *arguments]

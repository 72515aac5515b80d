"""The whole application, started as a user starts it: `serve run` on a config of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from app.operate.stack import DASHBOARD_ADDRESS, RAY_ENVIRONMENT
from app.operate.status import open_client
from tests.integration.conftest import ROOT, free_port, wait_until

START_DEADLINE_S = 120
STOP_DEADLINE_S = 60
POLL_S = 0.2
"""How often the status is asked for, which takes 10 ms of CPU."""


@dataclass
class Application:
    """A running application of the fraud pipeline. `config` may be changed and deployed anew."""

    folder: Path
    config: dict[str, Any]
    port: int
    process: subprocess.Popen[bytes]
    client: httpx.Client = field(default_factory=open_client)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/fraud"

    @property
    def args(self) -> dict[str, Any]:
        args: dict[str, Any] = self.config["applications"][0]["args"]
        return args

    def status(self) -> dict[str, Any]:
        try:
            answer = self.client.get(f"{self.url}/status", timeout=5)
            return dict(answer.json()) if answer.status_code == 200 else {}
        except httpx.HTTPError:
            return {}

    def wait(self, holds: Callable[[dict[str, Any]], Any], what: str, deadline_s: float = START_DEADLINE_S) -> None:
        """Until the status document is as wanted."""

        def met() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"serve run has ended: {self.output[-3_000:]}")
            status = self.status()
            return bool(status and holds(status))

        wait_until(met, what, deadline_s, POLL_S)

    def deploy(self) -> None:
        """Does what `serve deploy` does, with the config as it is now."""
        dashboard = DASHBOARD_ADDRESS.search(self.output)
        assert dashboard is not None
        self.client.put(
            f"http://{dashboard[1]}/api/serve/applications/", json=self.config, timeout=30
        ).raise_for_status()

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if f"ServeReplica:fraud:{deployment}" in "".join(each.cmdline())]

    def logs(self, deployment: str) -> list[str]:
        """What each replica of a deployment has logged so far."""
        paths = [Path(file.path) for each in self.replicas(deployment) for file in each.open_files()]
        return [path.read_text() for path in paths if path.name.startswith("replica_")]

    @property
    def output(self) -> str:
        return (self.folder / "serve.log").read_text(errors="replace")

    def stop(self) -> None:
        """As Ctrl-C does; whatever is left then is a failure of the product, and killed."""
        self.client.close()
        if self.process.poll() is not None:
            return
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_DEADLINE_S)
        finally:
            _, left = psutil.wait_procs(family, timeout=5)
            for each in left:
                each.kill()


def start(
    folder: Path, bootstrap: str, changes: Mapping[str, Any], tuning: Mapping[str, Mapping[str, Any] | None]
) -> Application:
    """`changes` are merged into the args of config/fraud.yaml, `tuning` into its deployments, by name; None removes."""
    config = yaml.safe_load((ROOT / "config" / "fraud.yaml").read_text())
    port = free_port()
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    application["args"] |= changes
    application["args"]["kafka"]["bootstrap"] = bootstrap
    application["args"]["checkpoints"] = {"uri": str(folder / "checkpoints")}
    merged = [each | (tuning.get(each["name"], {}) or {}) for each in application["deployments"]]
    kept = [each for each in merged if tuning.get(each["name"], {}) is not None]
    application["deployments"] = [{key: value for key, value in each.items() if value is not None} for each in kept]
    path = folder / "fraud.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, **RAY_ENVIRONMENT}
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(path)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Application(folder, config, port, process)
    try:
        running.wait(lambda status: status["ready"], "the application is ready")
    except BaseException:
        running.stop()
        raise
    return running

"""A Ray cluster of two nodes on this machine, so that one of them can be lost."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil

from app.operate.ports import free_port
from app.operate.stack import RAY_ENVIRONMENT
from benchmarks.site import Site, accepts, start

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, NODE = "ray-head", "ray-node"
FIRST_PORT = 21_000
CORES = 2
"""That each node says it has, whatever the machine has: all replicas fit on one of them."""
START_TIMEOUT_S = 90.0
RUNNING = "Ray runtime started."


class Cluster:
    """The head has Serve's controller; the other node has whatever replicas Serve puts there."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._port = free_port(FIRST_PORT)
        self._node_pid = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        dashboard = free_port(self._port + 1)
        self._start(HEAD, "--head", "--port", str(self._port), "--dashboard-port", str(dashboard))
        self._site.wait(lambda: accepts(self._port), "Ray's head", HEAD, START_TIMEOUT_S)
        self._node_pid = self._start(NODE, "--address", self.address)

    def kill_node(self) -> None:
        """Its raylet and all that it has started, as a machine that loses its power."""
        node = psutil.Process(self._node_pid)
        for process in [node, *node.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _start(self, name: str, *options: str) -> int:
        """`ray start` with ports of its own: the defaults are one node's only."""
        site = self._site
        first = self._port + (100 if name == HEAD else 200)
        ports = {
            "--dashboard-agent-listen-port": free_port(first),
            "--dashboard-agent-grpc-port": free_port(first + 20),
            "--runtime-env-agent-port": free_port(first + 40),
            "--metrics-export-port": free_port(first + 60),
            "--ray-client-server-port": free_port(first + 80),
            "--min-worker-port": 0,
            "--max-worker-port": 0,
        }
        if name == NODE:
            del ports["--ray-client-server-port"]
        chosen = [part for option, port in ports.items() for part in (option, str(port))]
        command = [RAY, "start", *options, *chosen, "--num-cpus", str(CORES), "--block"]
        pid = start(site.processes, name, command, RAY_ENVIRONMENT)
        site.wait(lambda: RUNNING in site.processes.output(name), name, name, START_TIMEOUT_S)
        return pid

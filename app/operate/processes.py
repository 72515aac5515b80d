"""The processes of a run: each in a session of its own, its output in a file, none left behind at the end."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from app.errors import HeadraceError

PR_SET_CHILD_SUBREAPER = 36
TAIL_LINES = 15


class ProcessEndedError(HeadraceError):
    """A process of the run ended by itself; the message has the end of what it said."""


class Processes:
    """Starts processes and, when the block is left, ends what is left of them, grandchildren included.

    What they started is found by descent: an orphan comes to this process instead of to init.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._running):
            self.end(name, signal.SIGTERM, patience_s=2.0)
        end_descendants()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts a process that no Ctrl-C of the terminal reaches: it ends when it is told to."""
        with self.log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def output(self, name: str) -> str:
        return self.log(name).read_text(errors="replace")

    def tail(self, name: str) -> str:
        """The last lines of what a process said, under the name of the file that has them all."""
        lines = self.output(name).rstrip().splitlines()[-TAIL_LINES:]
        return "\n".join([f"the end of {self.log(name)}:", *lines])

    def exit_status(self, name: str) -> int | None:
        """None while it runs."""
        return self._running[name].poll()

    def check(self, *names: str) -> None:
        """Raises ProcessEndedError when one of them was started and has ended."""
        for name in names:
            if name in self._running and (status := self.exit_status(name)) is not None:
                raise ProcessEndedError(f"the {name} ended with status {status}; {self.tail(name)}")

    def end(self, name: str, number: signal.Signals, patience_s: float) -> None:
        """Sends the signal and waits; what is still there after `patience_s` is killed."""
        process = self._running.pop(name)
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_descendants(patience_s: float = 1.0) -> None:
    """Ends, by their ids, all processes that descend from this one; those that do not heed TERM are killed."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):  # a dying parent may start one more
        left = psutil.Process().children(recursive=True)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(left, timeout=patience_s)

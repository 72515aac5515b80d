"""What a system under test uses: CPU seconds and memory of its processes, whichever come and go meanwhile."""

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import psutil

CPU_INTERVAL_S = 0.5
MEMORY_EVERY = 10
"""Memory costs some 10 ms a process to look at, in which that process cannot map memory: every 5 s."""
MIB = 1 << 20


class Memory(NamedTuple):
    """Of one process: what it alone holds, and that with its share of what it shares. MiB."""

    uss: float
    pss: float


class Sample(NamedTuple):
    """CPU seconds per kind of process so far, processes that have ended included, and memory per process if it was
    looked at."""

    time_s: float
    cpu_s: dict[str, float]
    memory: dict[str, Memory] | None


class Meter(threading.Thread):
    """Samples the processes that descend from this one, less the trees of those `apart`, until the block is left.

    Or the tree of `root` alone. Times are the wall clock's, as the broker's timestamps are.
    """

    def __init__(self, apart: Collection[int] = (), root: int | None = None) -> None:
        super().__init__(name="meter", daemon=True)
        self.samples: list[Sample] = []
        self._apart = apart
        self._root = root
        self._cpu_s: dict[int, tuple[str, float]] = {}
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self.join()

    def run(self) -> None:
        number = 0
        while not self._ending.wait(CPU_INTERVAL_S):
            self.samples.append(self._look(number % MEMORY_EVERY == 0))
            number += 1

    def _look(self, at_memory: bool) -> Sample:
        processes = list(tree(self._root) if self._root else outside(self._apart))
        memory = {}
        for process in processes:
            with suppress(psutil.Error), process.oneshot():
                cpu, name = process.cpu_times(), label(process)
                self._cpu_s[process.pid] = (name, cpu.user + cpu.system)
                if at_memory:
                    full = process.memory_full_info()
                    memory[f"{name} {process.pid}"] = Memory(full.uss / MIB, full.pss / MIB)
        total: dict[str, float] = defaultdict(float)
        for name, seconds in self._cpu_s.values():
            total[name] += seconds
        return Sample(time.time(), total, memory if at_memory else None)

    def cpu_s(self, begin_s: float, end_s: float) -> dict[str, float]:
        """CPU seconds between two times, per kind of process, the busiest first."""
        times = [each.time_s for each in self.samples]
        names = self.samples[-1].cpu_s
        used = {}
        for name in names:
            series = [each.cpu_s.get(name, 0.0) for each in self.samples]
            used[name] = float(np.interp(end_s, times, series) - np.interp(begin_s, times, series))
        return dict(sorted(used.items(), key=lambda item: -item[1]))

    def peak_mib(self) -> float:
        """The most memory that all of them had together: what each alone holds, and the shared pages once."""
        return max(sum(each.pss for each in sample.memory.values()) for sample in self.samples if sample.memory)


def tree(root: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        yield process
        yield from process.children(recursive=True)


def outside(apart: Collection[int]) -> Iterator[psutil.Process]:
    for child in psutil.Process().children():
        if child.pid not in apart:
            yield from tree(child.pid)


def label(process: psutil.Process) -> str:
    """What a process is for: Ray writes it over its command line, with the method that it runs just now."""
    command = process.cmdline()
    return command[0].partition(".")[0] if command and command[0].startswith("ray::") else process.name()

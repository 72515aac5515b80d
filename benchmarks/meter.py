"""What a system under test uses: CPU seconds and memory of its processes, whichever come and go meanwhile."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import psutil

CPU_INTERVAL_S = 0.5
MEMORY_INTERVAL_S = 5.0
"""Memory costs some 10 ms a process to look at, in which that process cannot map memory."""
MIB = 1 << 20
SYSTEM, HERE = "system", "benchmark"


class Memory(NamedTuple):
    """Of one process: what it alone holds, and that with its share of what it shares. MiB."""

    uss: float
    pss: float


class Usage(NamedTuple):
    """A process that was seen: the part it belongs to, what it is for, and the CPU seconds of its life so far."""

    part: str
    name: str
    cpu_s: float


class Sample(NamedTuple):
    """`usage` by process id, processes that have ended included; `busy_s` is the CPU time of the whole machine;
    `memory` of each process of the system, if it was looked at."""

    time_s: float
    usage: Mapping[int, Usage]
    busy_s: float
    memory: Mapping[str, Memory] | None


class Meter(threading.Thread):
    """Samples the processes that descend from this one until the block is left.

    `apart` says by their ids which trees of processes are another part than the system: the broker, the traffic. It
    may grow meanwhile. Times are the wall clock's, as the broker's timestamps are.
    """

    def __init__(self, apart: Mapping[int, str], memory_interval_s: float = MEMORY_INTERVAL_S) -> None:
        super().__init__(name="meter", daemon=True)
        self.samples: list[Sample] = []
        self._apart = apart
        self._memory_every = round(memory_interval_s / CPU_INTERVAL_S)
        self._usage: dict[int, Usage] = {}
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
            self.samples.append(self._look(number % self._memory_every == 0))
            number += 1

    def _look(self, at_memory: bool) -> Sample:
        memory = {}
        for process, part in descendants(self._apart):
            with suppress(psutil.Error), process.oneshot():
                cpu, name = process.cpu_times(), label(process)
                self._usage[process.pid] = Usage(part, name, cpu.user + cpu.system)
                if at_memory and part == SYSTEM:
                    full = process.memory_full_info()
                    memory[f"{name} {process.pid}"] = Memory(full.uss / MIB, full.pss / MIB)
        return Sample(time.time(), dict(self._usage), machine_busy_s(), memory if at_memory else None)

    def cpu_s(self, begin_s: float, end_s: float, part: str = SYSTEM) -> dict[str, float]:
        """CPU seconds between two times, per kind of process, the busiest first."""
        used: dict[str, float] = {}
        for pid, last in self.samples[-1].usage.items():
            if last.part == part:
                used[last.name] = used.get(last.name, 0.0) + self._cpu_s_of(pid, begin_s, end_s)
        return dict(sorted(used.items(), key=lambda item: -item[1]))

    def _cpu_s_of(self, pid: int, begin_s: float, end_s: float) -> float:
        return self._between(
            begin_s, end_s, [each.usage[pid].cpu_s if pid in each.usage else 0.0 for each in self.samples]
        )

    def foreign_cores(self, begin_s: float, end_s: float) -> float:
        """How many cores processes that have nothing to do with the benchmark kept busy meanwhile."""
        ours = sum(self._cpu_s_of(pid, begin_s, end_s) for pid in self.samples[-1].usage)
        busy = self._between(begin_s, end_s, [each.busy_s for each in self.samples])
        return max(0.0, (busy - ours) / (end_s - begin_s))

    def _between(self, begin_s: float, end_s: float, series: list[float]) -> float:
        times = [each.time_s for each in self.samples]
        return float(np.interp(end_s, times, series) - np.interp(begin_s, times, series))

    def peak_mib(self) -> float:
        """The most memory that all of the system had together: what each alone holds, and the shared pages once."""
        return max(sum(each.pss for each in sample.memory.values()) for sample in self.samples if sample.memory)


def descendants(apart: Mapping[int, str]) -> Iterator[tuple[psutil.Process, str]]:
    """This process and all that descend from it, parents first, each with the part it belongs to."""
    me = psutil.Process()
    yield me, HERE
    parts: dict[int, str] = {}
    for process in me.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            parent = process.ppid()
            parts[process.pid] = apart.get(process.pid) or parts.get(parent, SYSTEM)
            yield process, parts[process.pid]


def machine_busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def label(process: psutil.Process) -> str:
    """What a process is for: Ray writes it over its command line, with the method that it runs just now."""
    command = process.cmdline()
    return command[0].partition(".")[0] if command and command[0].startswith("ray::") else process.name()

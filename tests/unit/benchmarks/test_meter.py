import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.meter import HERE, SYSTEM, Memory, Meter, Sample, Usage, descendants

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint('burnt', flush=True)"
WAIT = "\ninput()"


@pytest.fixture
def burner() -> Iterator["subprocess.Popen[str]"]:
    """A process that has used 0.3 s of CPU and waits."""
    command = [sys.executable, "-c", BURN + WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.communicate("\n")


def sample(time_s: float, *usage: Usage, busy_s: float = 0.0, memory: dict[str, Memory] | None = None) -> Sample:
    return Sample(time_s, dict(enumerate(usage)), busy_s, memory)


def test_it_counts_the_cpu_seconds_and_the_memory_of_a_child(burner: "subprocess.Popen[str]") -> None:
    meter = Meter({})
    with meter:
        deadline_s = time.monotonic() + 20
        while not meter.samples and time.monotonic() < deadline_s:
            time.sleep(0.01)
    taken = meter.samples[0]
    assert taken.usage[burner.pid].part == SYSTEM
    assert taken.usage[burner.pid].cpu_s >= 0.3
    assert taken.memory is not None
    assert all(0 < each.uss <= each.pss for each in taken.memory.values())


def test_a_tree_that_stands_apart_is_another_part(burner: "subprocess.Popen[str]") -> None:
    parts = {process.pid: part for process, part in descendants({burner.pid: "broker"})}
    assert parts[burner.pid] == "broker"
    assert parts[os.getpid()] == HERE


def test_what_a_part_used_between_two_times_is_interpolated() -> None:
    meter = Meter({})
    meter.samples = [
        sample(10, Usage(SYSTEM, "a", 1.0)),
        sample(20, Usage(SYSTEM, "a", 3.0), Usage(SYSTEM, "b", 4.0), Usage("broker", "java", 9.0)),
    ]
    assert meter.cpu_s(10, 15) == {"b": 2.0, "a": 1.0}
    assert meter.cpu_s(10, 20, "broker") == {"java": 9.0}


def test_processes_of_one_kind_count_together() -> None:
    meter = Meter({})
    meter.samples = [sample(0), sample(1, Usage(SYSTEM, "worker", 1.0), Usage(SYSTEM, "worker", 2.0))]
    assert meter.cpu_s(0, 1) == {"worker": 3.0}


def test_what_others_use_of_the_machine_is_seen() -> None:
    meter = Meter({})
    meter.samples = [
        sample(0, Usage(SYSTEM, "worker", 0.0), Usage(HERE, "python", 0.0), busy_s=50.0),
        sample(10, Usage(SYSTEM, "worker", 9.0), Usage(HERE, "python", 1.0), busy_s=65.0),
    ]
    assert meter.foreign_cores(0, 10) == 0.5


def test_the_peak_is_that_of_all_processes_together() -> None:
    meter = Meter({})
    first, second = {"a": Memory(1, 10), "b": Memory(1, 1)}, {"a": Memory(1, 6), "b": Memory(1, 6)}
    meter.samples = [sample(1, memory=first), sample(2), sample(3, memory=second)]
    assert meter.peak_mib() == 12

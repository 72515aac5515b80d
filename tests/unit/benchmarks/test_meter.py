import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.meter import Memory, Meter, Sample, outside

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


def metered(meter: Meter) -> Sample:
    """The first sample that it takes."""
    with meter:
        deadline_s = time.monotonic() + 20
        while not meter.samples and time.monotonic() < deadline_s:
            time.sleep(0.01)
    return meter.samples[0]


def test_it_counts_the_cpu_seconds_and_the_memory_of_a_child(burner: "subprocess.Popen[str]") -> None:
    sample = metered(Meter(root=burner.pid))
    assert sum(sample.cpu_s.values()) >= 0.3
    assert sample.memory is not None
    assert all(0 < each.uss <= each.pss for each in sample.memory.values())


def test_a_tree_that_stands_apart_is_not_counted(burner: "subprocess.Popen[str]") -> None:
    assert burner.pid in {each.pid for each in outside(())}
    assert burner.pid not in {each.pid for each in outside({burner.pid})}
    assert os.getpid() not in {each.pid for each in outside(())}


def test_what_a_process_used_between_two_times_is_interpolated() -> None:
    meter = Meter()
    meter.samples = [Sample(10, {"a": 1.0}, None), Sample(20, {"a": 3.0, "b": 4.0}, None)]
    assert meter.cpu_s(10, 15) == {"b": 2.0, "a": 1.0}


def test_the_peak_is_that_of_all_processes_together() -> None:
    meter = Meter()
    first, second = {"a": Memory(1, 10), "b": Memory(1, 1)}, {"a": Memory(1, 6), "b": Memory(1, 6)}
    meter.samples = [Sample(1, {}, first), Sample(2, {}, None), Sample(3, {}, second)]
    assert meter.peak_mib() == 12

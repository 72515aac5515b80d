"""Simulated time, and threads that run in it."""

from random import Random

import pytest

from app.testing.clock import Clock
from app.testing.kafka import Crash, MemoryKafka
from app.testing.process import Process, Signal, SteppedExecutor, Thread


class Diary:
    """A process whose threads write down when they ran."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.deaths: list[Process] = []
        self.process = Process("p", MemoryKafka(self.clock), Random(0), self.deaths.append)
        self.entries: list[float] = []

    def write(self) -> None:
        self.entries.append(self.clock.now_ms)

    def run_until(self, until_ms: float) -> None:
        while self.clock.run_next(until_ms):
            pass


@pytest.fixture
def diary() -> Diary:
    return Diary()


def test_timers_run_when_they_are_due_and_those_of_one_moment_in_the_order_of_asking() -> None:
    clock, ran = Clock(0.0), list[tuple[str, float]]()
    for name, delay_ms in (("c", 20.0), ("a", 10.0), ("b", 10.0), ("never", 31.0)):
        clock.after(delay_ms, lambda name=name: ran.append((name, clock.now_ms)))  # type: ignore[misc]
    while clock.run_next(30.0):
        pass
    assert ran == [("a", 10.0), ("b", 10.0), ("c", 20.0)]
    assert clock.now_ms == 30.0


def test_a_thread_rests_as_long_as_it_says_or_until_it_is_woken(diary: Diary) -> None:
    def step() -> None:
        diary.write()
        thread.wait(100.0)

    thread = Thread(diary.process, step)
    diary.clock.after(150.0, thread.wake)
    diary.run_until(260.0)
    assert diary.entries == [0.0, 100.0, 150.0, 250.0]


def test_a_frozen_process_does_nothing_and_then_goes_on(diary: Diary) -> None:
    thread = Thread(diary.process, diary.write, step_ms=10.0)
    diary.process.freeze(500.0)
    thread.wake()
    diary.run_until(501.0)
    assert diary.entries == [500.0]


def test_a_process_dies_of_what_a_thread_raises_and_runs_no_more(diary: Diary) -> None:
    def step() -> None:
        diary.write()
        raise ValueError("broken")

    Thread(diary.process, step)
    diary.run_until(1_000.0)
    assert diary.entries == [0.0]
    assert [str(process.error) for process in diary.deaths] == ["broken"]


def test_a_process_is_killed_after_as_many_operations_as_it_has_left(diary: Diary) -> None:
    def step() -> None:
        diary.process.kafka.survive()
        diary.write()

    diary.process.operations_left = 3
    Thread(diary.process, step)
    diary.run_until(1_000.0)
    assert len(diary.entries) == 3
    assert diary.deaths == [diary.process]
    diary.process.kafka.survive()  # nobody else's operations are counted


def test_a_job_is_done_later_and_its_error_is_the_futures(diary: Diary) -> None:
    executor = SteppedExecutor(diary.process, diary.write, delay_ms=10.0)
    done, failed = executor.submit(lambda: 5), executor.submit(lambda: 1 // 0)
    assert not done.done()
    diary.run_until(100.0)
    assert done.result() == 5
    assert isinstance(failed.exception(), ZeroDivisionError)
    assert len(diary.entries) == 2


def test_a_job_can_be_the_end_of_its_process(diary: Diary) -> None:
    def die() -> None:
        raise Crash

    executor = SteppedExecutor(diary.process, diary.write, delay_ms=10.0)
    executor.submit(die)
    left = executor.submit(lambda: 5)
    diary.run_until(100.0)
    assert diary.deaths == [diary.process]
    assert not left.done()


def test_a_signal_that_is_set_is_not_waited_for() -> None:
    waits: list[float] = []
    woken: list[bool] = []
    signal = Signal(waits.append, lambda: woken.append(True))
    signal.wait(0.02)
    signal.set()
    signal.wait(0.02)
    signal.clear()
    signal.wait(0.01)
    assert (waits, woken) == ([20.0, 10.0], [True])

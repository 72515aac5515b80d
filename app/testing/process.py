"""Processes in simulated time: threads that run when they are due, and what ends or freezes all of them at once."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from random import Random
from typing import Any

from app.testing.clock import Clock
from app.testing.kafka import Crash, MemoryKafka


class Process:
    """A worker process. It dies of what one of its threads raises, without a trace, and `on_death` is told.

    `operations_left` is after how many operations it is killed, in the middle of whatever it does then.
    """

    def __init__(self, name: str, kafka: MemoryKafka, random: Random, on_death: Callable[["Process"], None]) -> None:
        self.name = name
        self.kafka = kafka
        self.clock: Clock = kafka.clock
        self.random = random
        self.alive = True
        self.error: Exception | None = None
        self.died_ms = 0.0
        self.operations_left: int | None = None
        self.frozen_until_ms = 0.0
        self._on_death = on_death

    @property
    def frozen(self) -> bool:
        return self.clock.now_ms < self.frozen_until_ms

    def run(self, step: Callable[[], None]) -> None:
        self.kafka.operations_left = self.operations_left
        try:
            step()
        except Crash:
            self.die()
        except Exception as error:  # noqa: BLE001 - the process's edge: Serve starts another one, whatever it was
            self.die(error)
        finally:
            self.operations_left, self.kafka.operations_left = self.kafka.operations_left, None

    def die(self, error: Exception | None = None) -> None:
        """As kill -9 does; with an error: as a loop that has ended."""
        if self.alive:
            self.alive, self.error, self.died_ms = False, error, self.clock.now_ms
            self.bury()
            self._on_death(self)

    def freeze(self, duration_ms: float) -> None:
        """As SIGSTOP does, and after a while SIGCONT."""
        self.frozen_until_ms = self.clock.now_ms + duration_ms

    def bury(self) -> None:
        """What the operating system does for a process that is gone."""


class Thread:
    """Does its step whenever it is due. A step says by `wait` when it has nothing to do; `wake` ends that.

    A step takes one to three times `step_ms`; it begins up to `delay_ms` after it was woken.
    """

    def __init__(
        self, process: Process, step: Callable[[], None], *, step_ms: float = 0.5, delay_ms: float = 0.0
    ) -> None:
        self._process = process
        self._step = step
        self._step_ms = step_ms
        self._delay_ms = delay_ms
        self._rest_ms = 0.0
        self._due_ms = float("inf")
        self._earliest_ms = process.clock.now_ms
        self.wake()

    def wait(self, duration_ms: float) -> None:
        self._rest_ms = max(self._rest_ms, duration_ms)

    def wake(self) -> None:
        delay_ms = self._delay_ms * self._process.random.random()
        self._plan(max(self._earliest_ms, self._process.clock.now_ms + delay_ms))

    def _plan(self, when_ms: float) -> None:
        clock = self._process.clock
        when_ms = max(when_ms, clock.now_ms)
        if when_ms < self._due_ms:
            self._due_ms = when_ms
            clock.after(when_ms - clock.now_ms, partial(self._run, when_ms))

    def _run(self, due_ms: float) -> None:
        process, clock = self._process, self._process.clock
        if due_ms != self._due_ms or not process.alive:
            return
        self._due_ms = float("inf")
        if process.frozen:
            self._plan(process.frozen_until_ms)
            return
        self._rest_ms = 0.0
        self._earliest_ms = clock.now_ms + self._step_ms * process.random.uniform(1, 3)
        process.run(self._step)
        self._plan(max(self._earliest_ms, clock.now_ms + self._rest_ms))


class Signal:
    """The event that a loop waits on: to wait costs the thread simulated time, and nobody else any."""

    def __init__(self, wait: Callable[[float], None], wake: Callable[[], None]) -> None:
        self._wait = wait
        self._wake = wake
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        self._wake()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float) -> None:
        if not self._is_set:
            self._wait(timeout * 1000)


class SteppedExecutor(Executor):
    """An executor with one thread, which does a job when it is due."""

    def __init__(self, process: Process, done: Callable[[], None], delay_ms: float) -> None:
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._done = done
        self._thread = Thread(process, self._work, delay_ms=delay_ms)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self._jobs.append((future, partial(function, *args, **kwargs)))
        self._thread.wake()
        return future

    def _work(self) -> None:
        self._thread.wait(0 if len(self._jobs) > 1 else float("inf"))
        if not self._jobs:
            return
        settle(*self._jobs.popleft())
        self._done()


class InlineExecutor(Executor):
    """Does what it is given before `submit` returns."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        settle(future, partial(function, *args, **kwargs))
        return future


def settle(future: "Future[Any]", job: Callable[[], Any]) -> None:
    """Does the job; the future carries its result, or what it raised."""
    try:
        future.set_result(job())
    except Exception as error:  # noqa: BLE001 - for whoever asks the future
        future.set_exception(error)

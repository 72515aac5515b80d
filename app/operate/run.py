"""Runs a whole pipeline on this machine: development broker, application and simulated traffic, until Ctrl-C.

What it keeps lies in .headrace, where the next run goes on. With --duration it ends by itself: it lets everything drain
and prints, as its last line, one JSON object about the events of this run.
"""

import argparse
import json
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from app.config import PipelineArgs
from app.errors import HeadraceError
from app.operate.config_file import read_args
from app.operate.console import Console
from app.operate.options import parse_rate
from app.operate.outcomes import Outcomes, count_outcomes, end_offsets, mark_start
from app.operate.processes import Processes
from app.operate.sending import stop_on_signals
from app.operate.stack import Stack
from app.sources import Consumer, open_consumer

DATA = Path(".headrace")
DEFAULT_RATE = 200.0
RENEW_S = 0.5
DRAIN_TIMEOUT_S = 60.0
LAST_WORK_S = 1.5
"""How long the last events have to get through when somebody stops the run; the rest is the next run's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", default="fraud", help="(default: fraud)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="(default: config/PIPELINE.yaml)")
    parser.add_argument("--duration", type=parse_rate, metavar="S", help="seconds of traffic (default: until Ctrl-C)")
    parser.add_argument(
        "--rate", type=parse_rate, default=DEFAULT_RATE, metavar="R", help="events/s (default: %(default)g)"
    )


def run(options: argparse.Namespace) -> int:
    console = Console()
    config = options.config or Path("config", f"{options.pipeline}.yaml")
    with stop_on_signals() as stopping, Processes(DATA) as processes:
        stack = Stack(config, options.pipeline, DATA, processes, console, stopping)
        stack.start_broker()
        stack.start_application()
        _greet(console, stack, options.pipeline)
        args = read_args(config, options.pipeline, stack.bootstrap)
        with closing(open_consumer(args.kafka)) as consumer:
            traffic = Traffic(stack, console, stopping, consumer, args)
            summary = traffic.run(options.rate, options.duration)
        console.renew("Ending …")
        stack.stop()
    console.say(json.dumps(summary) if summary else "Ended. The next run goes on from here.")
    return 0


def _greet(console: Console, stack: Stack, pipeline: str) -> None:
    console.say(f"Live page      {stack.url}/{pipeline}/")
    console.say(f"API docs       {stack.url}/{pipeline}/docs")
    console.say(f"Ray dashboard  {stack.dashboard}")
    console.say(f"Kafka          {stack.bootstrap}   (export KAFKA_BOOTSTRAP={stack.bootstrap})")


class Traffic:
    """The simulator's traffic through a stack that is up."""

    def __init__(
        self,
        stack: Stack,
        console: Console,
        stopping: threading.Event,
        consumer: Consumer,
        args: PipelineArgs,
    ) -> None:
        self._stack = stack
        self._console = console
        self._stopping = stopping
        self._consumer = consumer
        self._args = args

    def run(self, rate: float, duration_s: float | None) -> dict[str, Any] | None:
        """Traffic for `duration_s`, and what became of it; or, without an end, until somebody stops it.

        Raises KeyboardInterrupt when it is stopped before its end.
        """
        start = mark_start(self._consumer, self._args)
        self._stack.start_simulator(rate, None if duration_s is None else round(rate * duration_s))
        sent = self._watch()
        if sent is None:
            self._stack.stop_simulator()
            self._drain(LAST_WORK_S)
            if duration_s is None:
                return None
            raise KeyboardInterrupt
        status = self._drain(DRAIN_TIMEOUT_S)
        if behind := who_is_behind(status, self._source_ends()):
            reasons = "\n".join([*behind, self._stack.tail()])
            raise HeadraceError(f"{DRAIN_TIMEOUT_S:.0f} s after the last event not all was done:\n{reasons}")
        return summarize(sent, count_outcomes(self._consumer, self._args, start), status)

    def _watch(self) -> int | None:
        """Shows the status until the simulator has sent all, and says how much; None when stopped before."""
        while not self._stopping.wait(RENEW_S):
            self._stack.check()
            self._show()
            if (sent := self._stack.sent()) is not None:
                return sent
        return None

    def _drain(self, patience_s: float) -> dict[str, Any]:
        """Waits until workers and sinks are through with all, or patience ends; returns the last status.

        Raises KeyboardInterrupt when it is stopped meanwhile.
        """
        ends, status = self._source_ends(), self._stack.status()
        deadline_s, ending = time.monotonic() + patience_s, self._stopping.is_set()
        while who_is_behind(status, ends) and time.monotonic() < deadline_s:
            self._stack.check()
            if self._stopping.is_set() and not ending:
                raise KeyboardInterrupt
            time.sleep(RENEW_S)
            status = self._show() or status
        return status

    def _show(self) -> dict[str, Any] | None:
        """The status now, None when nobody answers: a replica of the API may be restarting."""
        try:
            status = self._stack.status()
        except HeadraceError:
            return None
        self._console.renew(progress(status))
        return status

    def _source_ends(self) -> dict[int, int]:
        return end_offsets(self._consumer, self._args.topics.source)


def who_is_behind(status: Mapping[str, Any], ends: Mapping[int, int]) -> list[str]:
    """The workers and sinks that are not through with all below these end offsets of the source; [] when all are."""
    unowned = [] if status["ready"] else ["some partition has no worker"]
    workers = [
        f"{row['worker']} is at offset {row['offset']} of {ends[row['partition']]} in partition {row['partition']}"
        for row in status["partitions"]
        if (row["offset"] or 0) < ends[row["partition"]]
    ]
    sinks = [
        f"the sink {row['sink']} is behind in partition {row['partition']}"
        + (f": {row['error']}" if row["error"] else "")
        for row in status["sinks"]
        if _applied(row) < ends[row["partition"]] - 1
    ]
    return unowned + workers + sinks


def progress(status: Mapping[str, Any]) -> str:
    """The status in one line."""
    throughput, totals = status["throughput"], status["totals"]
    latency = status["stages"]["end_to_end"]["last_minute"]
    lag = sum(row["lag"] or 0 for row in status["partitions"])
    return (
        f"{throughput['events_per_s']:.0f} events/s in, {throughput['decisions_per_s']:.0f}/s decided, lag {lag}, "
        f"end to end p50 {_milliseconds(latency['p50_ms'])} p99 {_milliseconds(latency['p99_ms'])}, "
        f"{totals['actions']} holds, {totals['dead_letters']} dead letters"
    )


def summarize(sent: int, outcomes: Outcomes, status: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the `sent` records of a run: duplicates are no events, every event is decided or a dead letter."""
    latency = status["stages"]["end_to_end"]
    return {
        "events": sent - outcomes.duplicates,
        "decisions": outcomes.decisions,
        "dead_letters": outcomes.dead_letters,
        "duplicates": outcomes.duplicates,
        "late": outcomes.late,
        "actions": outcomes.actions,
        "p50_ms": latency["p50_ms"] and round(latency["p50_ms"], 1),
        "p99_ms": latency["p99_ms"] and round(latency["p99_ms"], 1),
        "lag": sum(row["lag"] or 0 for row in status["partitions"]),
    }


def _applied(sink: Mapping[str, Any]) -> int:
    return -1 if sink["applied"] is None else int(sink["applied"])


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"

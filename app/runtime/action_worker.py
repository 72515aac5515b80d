"""The action worker: a Serve replica with one thread for each sink, so that a slow or dead sink delays only itself."""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ray import serve

from app.actions.build import RunnableSink, build_sinks
from app.actions.kafka import Kafka
from app.actions.loop import SinkLoop
from app.config import PipelineArgs, load_pipeline
from app.latency import StageLatency
from app.process import settle_process
from app.runtime.growth import keep_looking
from app.runtime.heartbeat import Pulse
from app.runtime.metrics import ReportedLatency
from app.sources import open_consumer, open_producer, open_transactional_producer

STEP_MS = 250
STALLED_S = 60.0
AWAY_S = 30.0
"""How long no look at the partitions may succeed, of one every 10 s, until Kafka is taken to be away."""
STOP_TIMEOUT_S = 15.0
BUFFER_BYTES = 8 << 20
logger = logging.getLogger("ray.serve")


class SinkThread:
    """Runs the loop of one sink in a thread of its own and counts what it does."""

    def __init__(self, sink: RunnableSink, kafka: Kafka, latency: StageLatency) -> None:
        self.sink = sink.name
        self.stepped_s = time.monotonic()
        self.died: BaseException | None = None
        self.held: frozenset[int] = frozenset()
        self.cpu_s = 0.0
        self.loop: SinkLoop[Any] = sink.open(kafka)
        self._latency = latency if sink.hurried else None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink-{sink.name}", daemon=True)
        self._thread.start()

    def assign(self, partitions: frozenset[int]) -> None:
        self.held = partitions
        self.loop.assign(partitions)

    def stop(self) -> None:
        self._stopping.set()
        self.loop.stop()

    def join(self, timeout_s: float) -> bool:
        """Whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def standing(self) -> list[dict[str, Any]]:
        """Where the sink is in each of its partitions."""
        status = self.loop.status()
        return [
            {
                "sink": self.sink,
                "partition": partition,
                "applied": each.applied,
                "lag": each.lag,
                "retries": max(each.retries, status.retries),
                "breaker": status.breaker,
                "error": each.error or status.error,
            }
            for partition, each in status.partitions.items()
        ]

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                report = self.loop.step(STEP_MS)
                self.stepped_s = time.monotonic()
                self.cpu_s = time.thread_time()
                if self._latency is not None:
                    self._latency.observe("acted", report.logged_to_acted_ms)
                    self._latency.observe("end_to_end", report.append_to_acted_ms)
            self.loop.close()
        except BaseException as error:
            self.died = error
            logger.exception("sink %s has ended; it goes on elsewhere from its cursor", self.sink)
            raise


class Presence:
    """Whether Kafka is there, as of the looks that succeeded; times are of a monotonic clock."""

    def __init__(self, now_s: float) -> None:
        self._seen_s = self._since_s = now_s

    def note_seen(self, now_s: float) -> None:
        if self._is_away(now_s):
            self._since_s = now_s
        self._seen_s = now_s

    def measure_silence(self, stepped_s: float, now_s: float) -> float:
        """How long a thread has not come round while Kafka was there all the time; 0 while it is away."""
        return 0.0 if self._is_away(now_s) else now_s - max(stepped_s, self._since_s)

    def _is_away(self, now_s: float) -> bool:
        return now_s - self._seen_s > AWAY_S


def drain(threads: Collection[SinkThread], timeout_s: float) -> list[str]:
    """Lets every sink finish what it is carrying out and save its cursor, all within `timeout_s`.

    Returns the sinks that hang. Their cursors stand before what they hang in, or in the database, in the same
    transaction with it.
    """
    for thread in threads:
        thread.stop()
    deadline_s = time.monotonic() + timeout_s
    hanging = [thread.sink for thread in threads if not thread.join(max(0.0, deadline_s - time.monotonic()))]
    if hanging:
        logger.warning("not over within %g s, and left behind: %s", timeout_s, ", ".join(hanging))
    return hanging


@serve.deployment(
    name="ActionWorker",
    ray_actor_options={"num_cpus": 0.1},
    max_ongoing_requests=100,
    health_check_period_s=1,
    health_check_timeout_s=3,
    graceful_shutdown_timeout_s=STOP_TIMEOUT_S + 5,
)
class ActionWorker:
    """Reads the decision log with one cursor for each sink and partition, and carries the actions out.

    Nothing depends on a clean end: each sink goes on from its cursor, wherever it is run next.
    """

    def __init__(self, args: PipelineArgs, coordinator: Any) -> None:
        context = serve.get_replica_context()
        self._worker = f"action-{context.replica_id.unique_id}"
        pipeline = load_pipeline(args.pipeline)
        latency = ReportedLatency(args.name)
        kafka = Kafka(
            decisions=args.topics.decisions,
            dead_letters=args.topics.dead_letters,
            late=args.topics.late,
            open_consumer=partial(open_consumer, args.kafka, buffer_bytes=BUFFER_BYTES),
            open_producer=lambda: open_producer(args.kafka, linger_ms=1),
            open_transactional_producer=partial(open_transactional_producer, args.kafka),
        )
        sinks = build_sinks(args.name, pipeline, args.sinks)
        self._consumer = open_consumer(args.kafka)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="partitions")
        look = partial(self._consumer.partitions, args.topics.decisions)
        self._sinks = [sink.name for sink in sinks]
        self._presence = Presence(time.monotonic())
        self._note_partitions(look())
        self._threads = {sink.name: SinkThread(sink, kafka, latency) for sink in sinks}
        self._measured = (time.monotonic(), 0.0)
        settle_process()
        self._pulse = Pulse(coordinator, latency, self._describe, self._give)
        self._running = [
            asyncio.ensure_future(self._pulse.run()),
            asyncio.ensure_future(keep_looking(self._executor, look, self._note_partitions)),
        ]

    _running: "Sequence[asyncio.Future[None]]" = ()

    def check_health(self) -> None:
        """Raises when a sink's thread has ended or has not come round for a minute: Serve then replaces this worker.

        The minute begins anew when Kafka is back: librdkafka 2.16 waits in a commit for as long as it is away, and
        another worker would, too.
        """
        for thread in self._threads.values():
            silent_s = self._presence.measure_silence(thread.stepped_s, time.monotonic())
            if thread.died is not None:
                raise RuntimeError(f"sink {thread.sink} has ended: {thread.died!r}") from thread.died
            if silent_s > STALLED_S:
                raise RuntimeError(f"sink {thread.sink} has not come round for {silent_s:.0f} s")

    async def __del__(self) -> None:
        """Drains: carries out what is begun, saves every cursor, hands the partitions over; within STOP_TIMEOUT_S, and
        a second for the coordinator. Serve then ends the process, with whatever hangs in it."""
        if not self._running:
            return  # it never came up: __init__ raised, and Serve says why
        for each in self._running:
            each.cancel()
        await asyncio.to_thread(drain, self._threads.values(), STOP_TIMEOUT_S)
        self._executor.submit(self._consumer.close)
        await self._pulse.beat(leaving=True)

    def _describe(self) -> dict[str, Any]:
        held = [f"{name}/{each}" for name, thread in self._threads.items() for each in sorted(thread.held)]
        return {
            "worker": self._worker,
            "kind": "action",
            "units": self._units,
            "held": held,
            "standing": [row for thread in self._threads.values() for row in thread.standing()],
            "totals": {},
            "busy": self._measure_busy(),
        }

    def _measure_busy(self) -> float:
        now_s, cpu_s = time.monotonic(), sum(thread.cpu_s for thread in self._threads.values())
        (then_s, before_s), self._measured = self._measured, (now_s, cpu_s)
        return max(0.0, cpu_s - before_s) / max(now_s - then_s, 1e-3)

    def _note_partitions(self, partitions: list[int]) -> None:
        """Every sink's every partition is to be shared out among the action workers."""
        self._presence.note_seen(time.monotonic())
        self._units = [f"{sink}/{partition}" for sink in self._sinks for partition in partitions]

    def _give(self, units: list[str]) -> None:
        wanted: dict[str, set[int]] = defaultdict(set)
        for unit in units:
            name, _, partition = unit.rpartition("/")
            wanted[name].add(int(partition))
        for name, thread in self._threads.items():
            thread.assign(frozenset(wanted[name]))

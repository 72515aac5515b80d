"""The stream worker: a Serve replica whose thread runs the loop over the partitions that the coordinator gives it."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ray import serve

from app.config import PipelineArgs, WorkerTuning, load_pipeline
from app.inference import ModelCalls
from app.process import settle_process
from app.runtime.checkpoint import CheckpointStore
from app.runtime.growth import SourcePartitions, keep_looking
from app.runtime.heartbeat import Pulse
from app.runtime.loop import Parts, StreamLoop
from app.runtime.metrics import ReportedLatency
from app.runtime.opener import TaskOpener
from app.runtime.task import TaskSettings, warm_up
from app.sources import open_admin, open_consumer, open_producer

STALLED_S = 10.0
STOP_TIMEOUT_S = 15.0
logger = logging.getLogger("ray.serve")


@serve.deployment(
    name="StreamWorker",
    user_config={},
    ray_actor_options={"num_cpus": 0.4},
    max_ongoing_requests=100,
    health_check_period_s=1,
    health_check_timeout_s=3,
    graceful_shutdown_timeout_s=STOP_TIMEOUT_S + 5,
)
class StreamWorker:
    """Consumes its partitions, keeps their keyed state, calls the models, writes decisions.

    Nothing depends on a clean end: what a killed worker had not logged is read again by the next owner of its
    partitions.
    """

    def __init__(self, args: PipelineArgs, coordinator: Any, models: Mapping[str, Any]) -> None:
        context = serve.get_replica_context()
        self._worker = f"stream-{context.replica_id.unique_id}"
        self._args = args
        self._stopping = threading.Event()
        self._died: BaseException | None = None
        self._stepped_s = time.monotonic()
        self._busy = self._events_per_s = 0.0
        self._loop = self._build(models, asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._run, name="stream-loop", daemon=True)
        self._thread.start()
        self._pulse = Pulse(coordinator, self._loop.latency, self._describe, self._give)
        self._running = [
            asyncio.ensure_future(self._pulse.run()),
            asyncio.ensure_future(keep_looking(self._executor, self._partitions.look, self._note_partitions)),
        ]

    _running: "Sequence[asyncio.Future[None]]" = ()

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes over a `WorkerTuning` while running. Raises ConfigError; then nothing has changed."""
        tuning = WorkerTuning.load(user_config, "user_config")
        self._loop.tune(tuning)
        if self._models is not None:
            self._models.tune(tuning.breaker)

    def check_health(self) -> None:
        """Raises when the loop has ended or has not come round for 10 s: Serve then replaces this worker."""
        if self._died is not None:
            raise RuntimeError(f"the loop has ended: {self._died!r}") from self._died
        silent_s = time.monotonic() - self._stepped_s
        if silent_s > STALLED_S:
            raise RuntimeError(f"the loop has not come round for {silent_s:.0f} s")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What app.runtime.scaling goes by; Serve asks for it when the deployment has an `autoscaling_config`."""
        return {
            "lag": sum(row["lag"] or 0 for row in self._loop.standing()),
            "events_per_s": self._events_per_s,
            "busy": self._busy,
            "partitions": len(self._units),
        }

    async def __del__(self) -> None:
        """Drains: reads no more, finishes what is in flight, writes checkpoints, hands the partitions over."""
        if not self._running:
            return  # it never came up: __init__ raised, and Serve says why
        for each in self._running:
            each.cancel()
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)
        await self._pulse.beat(leaving=True)

    def _build(self, models: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> StreamLoop[Any]:
        args = self._args
        pipeline = load_pipeline(args.pipeline)
        warm_up(pipeline)
        tuning = WorkerTuning()
        settings = TaskSettings(
            args.name, args.topics.source, args.allowed_lateness_ms, args.max_ahead_ms, args.deduplicate_ms
        )
        consumer = open_consumer(args.kafka)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="opener")
        self._saver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._opener = TaskOpener(
            pipeline,
            settings,
            args.topics.decisions,
            CheckpointStore(args.checkpoints.uri, args.name, args.checkpoints.keep),
            args.start,
            consumer,
            args.checkpoints.on_change,
        )
        self._partitions = SourcePartitions(args.topics, self._opener, consumer, partial(open_admin, args.kafka))
        self._note_partitions(self._partitions.look())
        self._models = ModelCalls(models, pipeline.models, loop, tuning.breaker, _now_ms) if pipeline.models else None
        self._parts = Parts(
            open_source=partial(open_consumer, args.kafka, args.name),
            log=open_producer(args.kafka, linger_ms=1),
            models=self._models,
            opener=self._opener,
            executor=self._executor,
            saver=self._saver,
            now_ms=_now_ms,
        )
        latency = ReportedLatency(args.name)
        return StreamLoop(pipeline, settings, args.topics.decisions, self._parts, tuning, latency)

    def _run(self) -> None:
        """The thread: steps until told to stop, then drains."""
        settle_process()
        try:
            while not self._stopping.is_set():
                self._loop.step()
                self._stepped_s = time.monotonic()
                self._measure()
            self._loop.drain()
        except BaseException as error:
            self._died = error
            logger.exception("the loop has ended; the partitions go on elsewhere from their checkpoints")
            raise
        finally:
            self._close()

    def _measure(self) -> None:
        since_s = self._stepped_s - self._measured[0]
        if since_s >= 1.0:
            cpu_s, events = time.thread_time(), self._loop.totals.events
            self._busy = (cpu_s - self._measured[1]) / since_s
            self._events_per_s = (events - self._measured[2]) / since_s
            self._measured = (self._stepped_s, cpu_s, events)

    _measured = (0.0, 0.0, 0)

    def _close(self) -> None:
        self._executor.submit(self._opener.close)
        self._executor.shutdown(wait=True)
        self._saver.shutdown(wait=True)
        self._loop.close()
        self._parts.log.close()

    def _describe(self) -> dict[str, Any]:
        standing = self._loop.standing()
        return {
            "worker": self._worker,
            "kind": "stream",
            "units": self._units,
            "held": [str(partition) for partition in self._loop.partitions],
            "standing": standing,
            "totals": self._loop.totals.counts(),
            "breakers": self._models.breakers() if self._models else {},
            "busy": self._busy,
            "error": self._loop.opening_error,
        }

    def _note_partitions(self, partitions: list[int]) -> None:
        self._units = [str(each) for each in partitions]

    def _give(self, units: list[str]) -> None:
        self._loop.give([int(unit) for unit in units])


def _now_ms() -> float:
    return time.time() * 1000

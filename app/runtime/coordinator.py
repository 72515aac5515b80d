"""The coordinator: one replica that hears every worker and says who has which partition."""

import logging
import time
from typing import Any

from ray import serve

from app.config import PipelineArgs
from app.runtime.roster import Heartbeat, Roster

logger = logging.getLogger("ray.serve")
CHECK_INTERVAL_MS = 1_000


@serve.deployment(
    name="Coordinator",
    num_replicas=1,
    ray_actor_options={"num_cpus": 0.05},
    max_ongoing_requests=1_000,
    health_check_period_s=1,
    health_check_timeout_s=3,
    graceful_shutdown_timeout_s=1,
)
class Coordinator:
    """Keeps no truth: a new one learns everything from the heartbeats within a second. Workers that cannot reach it go
    on with what they have."""

    def __init__(self, args: PipelineArgs) -> None:
        self._roster = Roster(args.name, args.budgets_ms)
        self._checked_ms = 0

    async def heartbeat(self, heartbeat: Heartbeat) -> list[str]:
        """Notes what a worker says and answers with the units it is to work on."""
        now_ms = int(time.time() * 1000)
        units = self._roster.hear(heartbeat, now_ms)
        if now_ms - self._checked_ms >= CHECK_INTERVAL_MS:
            self._checked_ms = now_ms
            for change in self._roster.check_budgets(now_ms):
                logger.warning("%s", change)
        return units

    async def status(self) -> dict[str, Any]:
        """The status document: partitions, workers, throughput, latency by stage, sinks, alerts."""
        return self._roster.status(int(time.time() * 1000))

"""The worker's side of the heartbeat."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from app.latency import StageLatency
from app.runtime.roster import Heartbeat

INTERVAL_S = 0.25
TIMEOUT_S = 1.0
logger = logging.getLogger("ray.serve")


class Pulse:
    """Sends a heartbeat four times a second and hands on what the coordinator gives.

    A coordinator that does not answer changes nothing: the worker keeps what it has, and what it had counted goes with
    the next heartbeat.
    """

    def __init__(
        self,
        coordinator: Any,
        latency: StageLatency,
        describe: Callable[[], dict[str, Any]],
        give: Callable[[list[str]], None],
    ) -> None:
        self._coordinator = coordinator
        self._latency = latency
        self._describe = describe
        self._give = give
        self._heard = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            units = await self.beat()
            if units is not None:
                self._give(units)
            await asyncio.sleep(INTERVAL_S)

    async def beat(self, *, leaving: bool = False) -> list[str] | None:
        """One heartbeat; None when nobody answered in a second."""
        counts = self._latency.take()
        heartbeat = Heartbeat(**self._describe(), latency=counts, leaving=leaving)
        try:
            units: list[str] = await asyncio.wait_for(self._coordinator.heartbeat.remote(heartbeat), TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the loop's edge: whatever it was, the next beat tries again
            self._latency.put_back(counts)
            if self._heard:
                logger.warning("the coordinator does not answer (%r); going on with what is assigned", error)
            self._heard = False
            return None
        self._heard = True
        return units

"""The coordinator's status document, as the API sees it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from app.errors import HeadraceError

StatusDocument = dict[str, Any]
"""`documents.Status`, and under `histograms` what `LatencyBoard.histograms` gives."""

FRESH_S = 0.25
TIMEOUT_S = 1.0


class StatusUnavailableError(HeadraceError):
    """The coordinator does not answer: it restarts, or is overloaded. The stream goes on without it."""


class StatusCache:
    """Asks the coordinator at most 4 times a second, however many ask here; all who wait share one call of 1 s at most.

    Belongs to one event loop.
    """

    def __init__(self, fetch: Callable[[], Awaitable[StatusDocument]]) -> None:
        self._fetch = fetch
        self._asking: asyncio.Task[StatusDocument] | None = None
        self._stale_s = 0.0

    async def get(self) -> StatusDocument:
        """Raises StatusUnavailableError."""
        if self._asking is None or (self._asking.done() and time.monotonic() >= self._stale_s):
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def get_if_available(self) -> StatusDocument | None:
        try:
            return await self.get()
        except StatusUnavailableError:
            return None

    async def _ask(self) -> StatusDocument:
        try:
            return await asyncio.wait_for(self._fetch(), TIMEOUT_S)
        except TimeoutError as error:
            raise StatusUnavailableError(f"the coordinator has not answered within {TIMEOUT_S:g} s") from error
        finally:
            self._stale_s = time.monotonic() + FRESH_S

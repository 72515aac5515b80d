"""The workers' shells, without Serve."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.runtime.action_worker import ActionWorker
from app.runtime.stream_worker import StreamWorker


@pytest.mark.parametrize("deployment", [StreamWorker, ActionWorker])
def test_a_worker_that_could_not_be_made_has_nothing_to_drain(deployment: Any) -> None:
    """Serve's message is the one of `__init__` then, and not another one from the end."""
    kind = deployment.func_or_class
    asyncio.run(kind.__del__(SimpleNamespace(_running=kind._running)))

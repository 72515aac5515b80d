"""Settings of all tests."""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that the processes that share the tests end at about the same time."""
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None, "integration" not in item.path.parts))

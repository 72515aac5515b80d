"""The order of idempotency keys."""

import pytest

from app.actions.action import is_later


@pytest.mark.parametrize(
    ("key", "than", "later"),
    [
        ("fraud/0/10/0", "fraud/0/9/0", True),
        ("fraud/0/9/0", "fraud/0/10/0", False),
        ("fraud/0/9/1", "fraud/0/9/0", True),
        ("fraud/0/9/0", "fraud/0/9/0", False),
        ("fraud/0/10/decision", "fraud/0/9/decision", True),
        ("fraud/1/10/0", "fraud/0/9/0", False),
        ("other/0/10/0", "fraud/0/9/0", False),
        ("written by hand", "fraud/0/9/0", False),
        ("", "fraud/0/9/0", False),
    ],
)
def test_an_action_is_later_only_than_one_of_its_own_partition(key: str, than: str, later: bool) -> None:
    assert is_later(key, than=than) is later

import json
from pathlib import Path

import pytest

from app.broker.faults import Cut, Delay, Faults, Refuse, Stall, parse_faults
from app.errors import ConfigError


def test_a_fault_strikes_its_api_and_its_partition_alone() -> None:
    faults = Faults()
    faults.add(Refuse(api="Produce", topic="t", partition=1, error_code=6))
    assert faults.take(Refuse, "Produce", "t", 1)
    assert faults.take(Refuse, "Produce", "t", 0) is None
    assert faults.take(Refuse, "Produce", "u", 1) is None
    assert faults.take(Refuse, "Fetch", "t", 1) is None
    assert faults.take(Stall, "Produce", "t", 1) is None


def test_a_fault_is_over_after_its_times_and_never_without() -> None:
    faults = Faults()
    faults.add(Delay(api="Fetch", delay_ms=5, times=2))
    faults.add(Cut(api="Fetch"))
    assert [faults.take(Delay, "Fetch") is not None for _ in range(3)] == [True, True, False]
    assert all(faults.take(Cut, "Fetch") for _ in range(10))
    faults.clear()
    assert faults.take(Cut, "Fetch") is None


def test_the_file_is_read_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    faults = Faults(path)
    faults.refresh()
    for api in ("Produce", "Fetch"):
        beside = tmp_path / "new"
        beside.write_text(json.dumps([{"fault": "cut", "api": api, "after": False, "times": 1}]))
        beside.replace(path)
        faults.refresh()
        assert faults.take(Cut, api) == Cut(api=api, after=False, times=0)
        faults.refresh()
        assert faults.take(Cut, api) is None


@pytest.mark.parametrize(
    "text", ["{", "5", '[{"fault": "fire"}]', '[{"fault": "cut"}]', '[{"fault": "cut", "api": "Fetch", "x": 1}]']
)
def test_what_is_no_list_of_faults_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write"):
        parse_faults(text)

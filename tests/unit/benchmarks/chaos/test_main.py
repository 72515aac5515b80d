import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from benchmarks.chaos.__main__ import render, schedule, write
from benchmarks.chaos.faults import FAULTS, SETTINGS
from benchmarks.chaos.verdict import Row

KILLED = Row("stream-worker-killed", 0, 0, 0, 0, 0, 3.1, 3_200)


def test_each_fault_strikes_once_in_its_order_and_then_in_any_until_the_minutes_are_over() -> None:
    faults = ["a", "b", "c"]
    assert list(schedule(faults, minutes=0, seed=1)) == faults
    endless = list(islice(schedule(faults, minutes=60, seed=1), 9))
    assert endless[:3] == faults
    assert sorted(endless[3:6]) == sorted(endless[6:9]) == faults


def test_a_row_takes_the_place_of_the_earlier_one_of_its_fault_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    write(file, [Row("stream-worker-killed", 1, 0, 0, 0, 0, None, 9), Row("nothing", 0, 0, 0, 0, 0, 0.1, 90)])
    write(file, [KILLED])
    rows = json.loads(file.read_text())
    assert [row["fault"] for row in rows] == ["nothing", "stream-worker-killed"]
    assert rows[1] == asdict(KILLED)


def test_the_table_has_a_column_for_each_key_of_a_row() -> None:
    head, _, row = render([KILLED]).splitlines()
    assert head == f"| {' | '.join(asdict(KILLED))} |"
    assert row == "| stream-worker-killed | 0 | 0 | 0 | 0 | 0 | 3.1 | 3200 |"


def test_no_two_settings_have_a_fault_of_the_same_name() -> None:
    assert len(FAULTS) == sum(len(setting.faults) for setting in SETTINGS)

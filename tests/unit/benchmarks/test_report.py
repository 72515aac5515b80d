from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import README, render, replace_table

AT = {"machine": "a machine", "date": "2030-01-01", "commit": "abc"}
KAFKA = {"circumstances": AT, "kafka": "Apache Kafka", "client": "confluent-kafka"}


def drain(system: str, events_per_s: int) -> dict[str, Any]:
    return {
        "system": system,
        "events_per_s": events_per_s,
        "cpu_s_per_million": 3.14,
        "broker_cpu_s_per_million": 1.0,
        "peak_mib": 1_234,
    }


def load(system: str, rate: int, p99_ms: float, peak_mib: int) -> dict[str, Any]:
    quantiles = {"p50_ms": 12.4, "p95_ms": 20.0, "p99_ms": p99_ms}
    return {"system": system, "rate": rate, **quantiles, "cpu_s_per_million": 500.0, "peak_mib": peak_mib}


def test_throughput_stands_beside_the_share_of_the_loop() -> None:
    section = {**KAFKA, "events": 1_000_000, "rows": [drain("the loop", 400_000), drain("Headrace", 250_000)]}
    assert "| Headrace | 250,000 | 0.62 | 3.1 | 1.0 | 1,234 MiB |" in render({"throughput": section})


def test_a_system_has_one_row_with_all_its_rates() -> None:
    rows = [load("Headrace", 5_000, 60.0, 900), load("Headrace", 1_000, 33.3, 950)]
    text = render({"latency": {**KAFKA, "rows": rows}})
    assert "| Headrace | 12 / 20 / 33 | 500 | 12 / 20 / 60 | 500 | 950 MiB |" in text


def test_the_table_says_where_it_was_taken_and_on_which_broker() -> None:
    text = render({"latency": {**KAFKA, "rows": [load("Headrace", 1_000, 1.0, 1)]}})
    assert "a machine; on Apache Kafka, Headrace with confluent-kafka, 2030-01-01, commit abc" in text


def test_a_long_run_of_the_broker_is_told_by_its_begin_middle_and_end() -> None:
    steady = [
        {"at_s": at_s, "p50_ms": 5.0, "p99_ms": 9.0, "rss_mib": 60.0 + at_s / 30, "cpu_s": at_s / 10}
        for at_s in range(30, 630, 30)
    ]
    text = render({"broker-steady": {"circumstances": AT, "steady": steady}})
    assert "retention on, 0.10 cores |" in text
    assert "| half a minute up to 1.0 min | 5.0 / 9.0 ms | 62 MiB |" in text
    assert "| half a minute up to 10.0 min | 5.0 / 9.0 ms | 80 MiB |" in text


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nbehind\n")
    replace_table({}, file)
    assert file.read_text() == "before\n<!-- bench -->\n<!-- /bench -->\nbehind\n"


def test_a_file_without_marks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("nothing\n")
    with pytest.raises(ValueError, match="0 times; it needs them once"):
        replace_table({}, file)


def test_the_readme_has_the_marks() -> None:
    assert README.read_text().count("<!-- bench -->") == 1

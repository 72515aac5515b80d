"""Files of events as records."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import ConfigError
from app.operate.replay import read_events
from app.pipelines.fraud import Payment

PAYMENTS = [
    {"id": f"p{number}", "time": 1_700_000_000_000 + number, "card": f"c{number % 2}", "terminal": "t", "amount": 1.5}
    for number in range(5)
]


def test_json_lines_keep_their_bytes_and_order_and_are_keyed_by_the_field(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    lines = [msgspec.json.encode(payment) for payment in PAYMENTS]
    file.write_bytes(b"\n".join(lines) + b"\n\n")
    total, records = read_events(file, Payment, "card")
    assert (total, list(records)) == (5, [(f"c{number % 2}".encode(), line) for number, line in enumerate(lines)])


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"[1]", b'{"id": "p"}', b'{"card": null}', b"12"])
def test_a_line_that_is_no_event_goes_on_as_it_is_without_a_key(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(line)
    _, records = read_events(file, Payment, "card")
    assert list(records) == [(None, line)]


def test_without_a_key_field_records_have_none(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"card": "c"}\n')
    _, records = read_events(file, Payment, None)
    assert list(records) == [(None, b'{"card": "c"}')]


@pytest.mark.parametrize("unit", ["int", "us", "us utc"])
def test_parquet_rows_become_the_same_events(tmp_path: Path, unit: str) -> None:
    table = pa.Table.from_pylist([{**payment, "label": 1} for payment in PAYMENTS])
    if unit != "int":
        zone = "UTC" if unit == "us utc" else None
        times = [datetime.fromtimestamp(payment["time"] / 1000, UTC).replace(tzinfo=None) for payment in PAYMENTS]
        at = table.schema.get_field_index("time")
        table = table.set_column(at, "time", pa.array(times, pa.timestamp("us", zone)))
    pq.write_table(table, tmp_path / "events.parquet")
    total, records = read_events(tmp_path / "events.parquet", Payment, "card")
    keys, values = zip(*records, strict=True)
    assert total == 5
    assert list(keys) == [b"c0", b"c1", b"c0", b"c1", b"c0"]
    assert [msgspec.json.decode(value) for value in values] == PAYMENTS


def test_parquet_without_a_field_of_the_event_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["p"], "time": [1], "card": ["c"]}), tmp_path / "events.parquet")
    with pytest.raises(ConfigError, match="has no column terminal, amount, which Payment needs; it has id, time, card"):
        read_events(tmp_path / "events.parquet", Payment, "card")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_events(tmp_path / "nothing.jsonl", Payment, "card")

"""Sends a file of events to a topic, in the file's order, each keyed as the pipeline's source has to be.

The file is JSON, one object a line, or Parquet with the event's fields as columns. A line that is no event is sent
as it is: the pipeline says what is wrong with it.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from app.config import load_pipeline
from app.errors import ConfigError
from app.event import Event, field_types
from app.operate.options import add_kafka_arguments, add_rate_argument, pipeline_args
from app.operate.sending import KeyedValue, ensure_topic, send_paced, stop_on_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, required=True, help="events.jsonl or events.parquet")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--pipeline", default="fraud", help="whose events they are (default: fraud)")
    add_rate_argument(parser)
    add_kafka_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what was sent as JSON")


def run(options: argparse.Namespace) -> int:
    args = pipeline_args(options)
    pipeline = load_pipeline(args.pipeline)
    ensure_topic(args, options.topic)
    total, records = read_events(options.file, pipeline.source, pipeline.by)
    with stop_on_signals() as stopping:
        sent = send_paced(records, args.kafka, options.topic, options.rate, total=total, stopping=stopping)
    done = {"topic": options.topic, **sent._asdict()}
    print(json.dumps(done) if options.json else ", ".join(f"{name} {value}" for name, value in done.items()))
    return 0


def read_events(file: Path, event: type[Event], by: str | None) -> tuple[int, Iterator[KeyedValue]]:
    """How many records the file holds, and these in order. Raises ConfigError when it cannot be one of events."""
    if not file.is_file():
        raise ConfigError(f"there is no file {str(file)!r}; give one of events, JSON lines or Parquet")
    if file.suffix == ".parquet":
        return _read_parquet(file, event, by)
    return _count_lines(file), _read_lines(file, by)


def _count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _read_lines(file: Path, by: str | None) -> Iterator[KeyedValue]:
    keys = msgspec.json.Decoder(msgspec.defstruct("Keyed", [(by, Any, None)] if by else []))
    with file.open("rb") as lines:
        for line in lines:
            if value := line.strip():
                yield KeyedValue(_key(keys, value, by), value)


def _key(keys: "msgspec.json.Decoder[Any]", value: bytes, by: str | None) -> bytes | None:
    try:
        key = getattr(keys.decode(value), by) if by else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if key is None else str(key).encode()


def _read_parquet(file: Path, event: type[Event], by: str | None) -> tuple[int, Iterator[KeyedValue]]:
    table = pq.ParquetFile(file)
    names = [name for name in field_types(event) if name in table.schema_arrow.names]
    required = [field.name for field in msgspec.structs.fields(event) if field.required]
    if missing := [name for name in required if name not in names]:
        raise ConfigError(
            f"{file} has no column {', '.join(missing)}, which {event.__name__} needs; "
            f"it has {', '.join(table.schema_arrow.names)}"
        )
    return table.metadata.num_rows, _parquet_records(table, names, by)


def _parquet_records(table: pq.ParquetFile, names: list[str], by: str | None) -> Iterator[KeyedValue]:
    encoder = msgspec.json.Encoder()
    for batch in table.iter_batches(columns=names):
        if pa.types.is_timestamp(batch.column("time").type):
            time_ms = batch.column("time").cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
            batch = batch.set_column(names.index("time"), "time", time_ms)
        for row in batch.to_pylist():
            yield KeyedValue(str(row[by]).encode() if by else None, encoder.encode(row))

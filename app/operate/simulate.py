"""Draws simulated events, the same for the same seed, and sends them to a topic or writes them to a file.

They can be disturbed as real streams are: sent twice, out of order, too late, or broken.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.log.tail import read_to_end
from app.operate.options import (
    add_kafka_arguments,
    add_rate_argument,
    parse_count,
    pipeline_args,
)
from app.operate.sending import KeyedValue, ensure_topic, send_paced, stop_on_signals
from app.simulate.disturb import Disturbance, disturb
from app.simulate.payments import days, draw_world
from app.simulate.records import Record, next_day
from app.sources import KafkaSettings, TopicPartition, open_consumer

SHARES = {
    "duplicates": "share of events sent twice",
    "disorder": "share of events sent up to 10 minutes of their time later",
    "late": "share of events that come more than a day too late",
    "broken": "share of records that are no event",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", choices=["fraud"], default="fraud", help="whose events (default: fraud)")
    parser.add_argument("--events", type=parse_count, metavar="N", help="how many records (default: until interrupted)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of all that is drawn (default: 1)")
    parser.add_argument("--start-day", type=int, default=0, metavar="D", help="the first simulated day (default: 0)")
    for name, meaning in SHARES.items():
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="SHARE", help=f"{meaning} (default: 0)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--to-file", type=Path, metavar="FILE", help="one event a line")
    target.add_argument("--topic", help="send them there, keyed by card")
    parser.add_argument(
        "--resume", action="store_true", help="with --topic: begin at the day behind the last one in the topic"
    )
    add_rate_argument(parser)
    add_kafka_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what was sent as JSON")


def run(options: argparse.Namespace) -> int:
    fates: Counter[str] = Counter()
    done = _to_file(options, fates) if options.to_file else _to_topic(options, fates)
    if options.json:
        print(json.dumps({**done, "fates": fates}))
    else:
        print(", ".join(f"{name} {value}" for name, value in done.items()))
        print(", ".join(f"{count} {fate}" for fate, count in fates.most_common()))
    return 0


def _to_file(options: argparse.Namespace, fates: Counter[str]) -> dict[str, Any]:
    return {"file": str(options.to_file), "written": _write(options, _draw(options, options.start_day, fates))}


def _to_topic(options: argparse.Namespace, fates: Counter[str]) -> dict[str, Any]:
    args = pipeline_args(options)
    ensure_topic(args, options.topic)
    start_day = _day_to_resume_at(args.kafka, options.topic) if options.resume else options.start_day
    records = _draw(options, start_day, fates)
    with stop_on_signals() as stopping:
        sent = send_paced(records, args.kafka, options.topic, options.rate, total=options.events, stopping=stopping)
    return {"topic": options.topic, **sent._asdict()}


def _draw(options: argparse.Namespace, start_day: int, fates: Counter[str]) -> Iterator[KeyedValue]:
    """Draws day after day, and counts the fates of what it has given away."""
    disturbance = Disturbance(**{name: getattr(options, name) for name in SHARES})
    stream: Iterator[Record] = chain.from_iterable(
        disturb(day, disturbance, options.seed) for day in days(draw_world(options.seed), start_day)
    )
    for record in islice(stream, options.events):
        fates[record.fate.value] += 1
        yield KeyedValue(record.key, record.value)


def _write(options: argparse.Namespace, records: Iterable[KeyedValue]) -> int:
    written = 0
    with options.to_file.open("wb") as file, stop_on_signals() as stopping:
        for record in tqdm(records, total=options.events, unit=" events", disable=None):
            file.write(record.value + b"\n")
            written += 1
            if stopping.is_set():
                break
    return written


def _day_to_resume_at(kafka: KafkaSettings, topic: str) -> int:
    """The day behind the last one in the topic: ids stay unique, and event time goes on."""
    consumer = open_consumer(kafka)
    try:
        partitions = [TopicPartition(topic, each) for each in consumer.partitions(topic)]
        ends = consumer.end_offsets(partitions)
        last = (records for each in partitions for records in read_to_end(consumer, each, ends[each] - 1))
        return next_day(value for records in last for value in records.values)
    finally:
        consumer.close()

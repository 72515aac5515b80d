"""Prints the decision log, the first copy of each decision, partition by partition, up to where it ends now."""

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec

from app.config import PipelineArgs
from app.log.frame import Cursor
from app.operate.first_copies import describe_decisions, first_copies
from app.operate.options import add_kafka_arguments, parse_when, pipeline_args
from app.sources import Consumer, TopicPartition, open_consumer

LOOK_BACK_MS = 600_000
"""How long before `--since` the log is read for what is decided already. Second copies come from a worker that was
thought dead or from a replay after a crash: within seconds of the first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", default="fraud", help="(default: fraud)")
    parser.add_argument(
        "--since", type=parse_when, metavar="WHEN", help="logged in the last 10m, or since 2026-01-31T12:00Z"
    )
    parser.add_argument("--jsonl", "--json", action="store_true", help="one JSON object a line, with everything")
    add_kafka_arguments(parser)


def run(options: argparse.Namespace) -> int:
    args = pipeline_args(options)
    consumer = open_consumer(args.kafka)
    try:
        for decision in read_decisions(consumer, args, options.since):
            line = msgspec.json.encode(decision).decode() if options.jsonl else summarize(decision)
            print(line)
    finally:
        consumer.close()
    return 0


def read_decisions(consumer: Consumer, args: PipelineArgs, since_ms: int | None) -> Iterator[dict[str, Any]]:
    """Each decision that was logged at `since_ms` or later, once."""
    for number in sorted(consumer.partitions(args.topics.decisions)):
        log = TopicPartition(args.topics.decisions, number)
        start = 0 if since_ms is None else _offset_at(consumer, log, since_ms - LOOK_BACK_MS)
        for fresh in first_copies(consumer, log, start, Cursor()):
            if since_ms is None or fresh.logged_ms >= since_ms:
                yield from describe_decisions(fresh)


def summarize(decision: dict[str, Any]) -> str:
    """A line for people."""
    scores = "".join(f", {name} {score:.3f}" for name, score in decision["scores"].items() if score is not None)
    actions = "".join(f", {action['type']}" for action in decision["actions"])
    place = f"{decision['topic']}[{decision['partition']}]@{decision['offset']}"
    return f"{place} {decision['event_id']}: {decision['reason']}{scores}{actions}"


def _offset_at(consumer: Consumer, log: TopicPartition, time_ms: int) -> int:
    return consumer.offsets_for_time([log], time_ms)[log]

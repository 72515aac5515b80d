"""Command line options that several commands share."""

import argparse
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from app.config import PipelineArgs
from app.errors import ConfigError
from app.operate.config_file import read_args
from app.units import parse_duration_ms

MAX = "max"


def add_kafka_arguments(parser: argparse.ArgumentParser) -> None:
    """Which Kafka: that of the pipeline's config, or another one."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="the Serve config (default: config/PIPELINE.yaml)")
    parser.add_argument(
        "--bootstrap",
        default=os.environ.get("KAFKA_BOOTSTRAP"),
        metavar="HOST:PORT",
        help="the Kafka brokers (default: $KAFKA_BOOTSTRAP, else what the config says)",
    )


def add_rate_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=parse_rate, default=None, metavar="R", help="events/s, or max (default)")


def parse_rate(text: str) -> float | None:
    """Events per second; None for "max"."""
    if text == MAX:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write events per second, like 500, or {MAX}")
    return rate


def parse_count(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number above 0, like 1000")
    return int(text)


def parse_when(text: str) -> int:
    """A duration back from now, or a date and time (UTC unless it says otherwise), as ms since the epoch."""
    try:
        return round(time.time() * 1000) - parse_duration_ms(text)
    except ConfigError:
        pass
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 10m or 2026-01-31T12:00") from error
    return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)


def pipeline_args(options: argparse.Namespace) -> PipelineArgs:
    """The validated `args` of the pipeline that the options name, with the Kafka that they name."""
    file = options.config or Path("config", f"{options.pipeline}.yaml")
    return read_args(file, options.pipeline, options.bootstrap)

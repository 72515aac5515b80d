"""Asks a running pipeline how it is: partitions, owners, offsets, lag, watermark, throughput, latency by stage."""

import argparse
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx

from app.errors import HeadraceError

TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", default="fraud", help="(default: fraud)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="Serve's HTTP address (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print all that the pipeline says")


def run(options: argparse.Namespace) -> int:
    with open_client() as client:
        status = fetch_status(client, options.url, options.pipeline)
    print(json.dumps(status) if options.json else "\n".join(describe(status)))
    return 0


def open_client() -> httpx.Client:
    """To be kept by who asks again and again: reading the certificates that it trusts takes 30 ms of CPU.

    It keeps no connection, so that none is in the way of an application that ends.
    """
    return httpx.Client(timeout=TIMEOUT_S, limits=httpx.Limits(max_keepalive_connections=0))


def fetch_status(client: httpx.Client, url: str, pipeline: str) -> dict[str, Any]:
    """The status document of a running pipeline. Raises HeadraceError when there is none to be had."""
    address = f"{url.rstrip('/')}/{pipeline}/status"
    try:
        answer = client.get(address)
    except httpx.HTTPError as error:
        raise HeadraceError(f"{address} does not answer: {error}; is the pipeline running there?") from error
    if answer.status_code != httpx.codes.OK:
        raise HeadraceError(f"{address} answers {answer.status_code} {answer.reason_phrase}: {answer.text[:200]}")
    status: dict[str, Any] = answer.json()
    return status


def describe(status: Mapping[str, Any]) -> Iterator[str]:
    """The document in lines for people."""
    throughput, totals = status["throughput"], status["totals"]
    yield f"{status['pipeline']}: {'ready' if status['ready'] else 'not ready'}"
    yield ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in totals.items())
    yield f"{throughput['events_per_s']:.0f} events/s, {throughput['decisions_per_s']:.0f} decisions/s"
    for each in status["partitions"]:
        yield (
            f"partition {each['partition']}: offset {each['offset']} of {each['end_offset']}, lag {each['lag']}, "
            f"watermark {format_instant(each['watermark_ms'])}, {each['keys']} keys, {each['worker'] or 'no worker'}"
        )
        if each["checkpoint_error"]:
            yield f"partition {each['partition']}: {each['checkpoint_error']}"
    for each in status["workers"]:
        if each["error"]:
            yield f"worker {each['id']}: {each['error']}"
    for name, stage in status["stages"].items():
        if stage["count"]:
            alert = f", above its budget of {stage['budget_ms']} ms" if stage["alert"] else ""
            yield f"{name}: p50 {stage['p50_ms']:.1f} ms, p99 {stage['p99_ms']:.1f} ms{alert}"
    for sink in status["sinks"]:
        yield f"sink {sink['sink']}[{sink['partition']}]: lag {sink['lag']}" + _trouble(sink)


def _trouble(sink: Mapping[str, Any]) -> str:
    if not sink["error"]:
        return ""
    away = "" if sink["breaker"] == "closed" else "away, "
    return f", {away}{sink['retries']} retries: {sink['error']}"


def format_instant(time_ms: int | None) -> str:
    """UTC, to the second."""
    return "none" if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")

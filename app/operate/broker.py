"""The development broker: Kafka's protocol in one process on this machine's loopback. Not for production."""

import argparse
from pathlib import Path

from app.broker import serve_forever


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one, and says which")
    parser.add_argument("--dir", type=Path, help="keep the log here (default: in memory)")
    parser.add_argument("--faults", type=Path, help="a JSON file of faults on command, read when it is replaced")


def run(options: argparse.Namespace) -> int:
    serve_forever(options.port, options.dir, options.faults)
    return 0

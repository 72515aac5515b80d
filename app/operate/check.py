"""Lints a whole Serve config file before anything starts, because Serve accepts unknown keys in silence.

Prints one line for each thing that is wrong, with its key, value and remedy; the exit status is 1 then.
"""

import argparse
import json
from pathlib import Path

from app.operate.config_file import read_config
from app.operate.lint import lint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--json", action="store_true", help='print {"file", "problems"} instead')


def run(options: argparse.Namespace) -> int:
    problems = lint(read_config(options.config))
    if options.json:
        print(json.dumps({"file": str(options.config), "problems": problems}))
    else:
        print("\n".join(f"{options.config}: {each}" for each in problems or ["all is well"]))
    return 1 if problems else 0

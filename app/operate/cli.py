"""`python -m app COMMAND`: what operates Headrace from a shell. Every command has `--help`."""

import argparse
import importlib
import os
import sys

from app.errors import HeadraceError

COMMANDS = {
    "run": "the whole pipeline on this machine, with a broker and simulated traffic (make run)",
    "check": "lint a config file before anything starts",
    "status": "partitions, owners, offsets, lag and latency of a running pipeline",
    "decisions": "print the decision log",
    "dead-letters": "list, show, replay and drop what was rejected or refused",
    "simulate": "send simulated events to a topic, or write them to a file",
    "replay": "send a file of events to a topic",
    "broker": "the development broker: Kafka's protocol on this machine, not for production",
}
"""Each command is the module of its name in app/operate (with _ for -), imported when it is called."""


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status: 0 done, 1 failed, 2 called wrongly, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Operates Headrace.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<12} {summary}" for name, summary in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    chosen = parser.parse_args(arguments[:1]).command
    return _run(chosen, arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"app.operate.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"python -m app {command}", description=module.__doc__)
    module.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        return int(module.run(options))
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, like `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

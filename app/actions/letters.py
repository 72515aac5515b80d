"""The dead-letter topic, read back: which letters are open, and what was done about the others. Pure.

The topic is append only. What is done about a letter is a marker behind it, in the same partition, so that a marker
never expires before its letter; and whatever the order in which partitions are read, every reader comes to the same
open letters. Of several copies of a letter, as crashes leave them, the first one that is read counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from app.actions.action import Delivery
from app.actions.message import HEADERS_HEADER, KEY_HEADER, SINK_HEADER, Message, decode_source_headers
from app.errors import ActionError
from app.sources import Header, Records, TopicPartition

REJECTS = "dead-letters"
"""The sink that every pipeline has: it copies rejected records to the dead-letter topic."""
MARKER_HEADER = "marker"
REJECTED_SUFFIX = "/rejected"

Kind = Literal["replaying", "replayed", "refused", "dropped"]
State = Literal["open", "in doubt", "replayed", "dropped"]


class Letter(msgspec.Struct, frozen=True, gc=False):
    """A record that the stream rejected (`sink` is None), or a delivery that a sink refused for good.

    `id` is the same for all copies: PARTITION/OFFSET of a rejected record in its source, and of a delivery its
    idempotency key without the pipeline, @ and the sink. `place` and `written_ms` are those of its record in the
    dead-letter topic; `append_ms` is when the event was appended to its source. `attempts` counts what was made
    before this letter: of a rejected record its ways through the pipeline, of a delivery the tries of the sink.
    """

    id: str
    idempotency_key: str
    sink: str | None
    place: TopicPartition
    place_offset: int
    written_ms: int
    topic: str
    partition: int
    offset: int
    append_ms: int | None
    cause: str
    reason: str
    attempts: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    stack: str | None = None

    @property
    def delivery(self) -> Delivery:
        """What the sink refused. Raises ActionError when the letter holds no action."""
        try:
            fields = msgspec.json.decode(self.value or b"", type=dict[str, Any])
            key = None if self.key is None else self.key.decode()
        except ValueError as error:
            raise ActionError(f"the letter {self.id} holds no action: {error}; drop it") from error
        since_ms = self.written_ms if self.append_ms is None else self.append_ms
        return Delivery(self.idempotency_key, self.topic, self.partition, self.offset, since_ms, key, fields)


class Marker(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done about a letter; `number` counts its replays.

    replaying: a replay of a rejected record has begun; if it came about, the record stands in the source at or behind
               `behind`.
    replayed:  it went through.
    refused:   the sink refused the delivery again, for `reason`; the letter stays open.
    dropped:   nothing more is to be done. Ends replays up to `number` that are in doubt.
    """

    letter: str
    kind: Kind
    number: int
    behind: int = 0
    reason: str | None = None


class Case(NamedTuple):
    """A letter with all that was done about it."""

    letter: Letter
    markers: frozenset[Marker] = frozenset()

    @property
    def state(self) -> State:
        if self.doubt is not None:
            return "in doubt"
        kinds = {each.kind for each in self.markers}
        return "replayed" if "replayed" in kinds else "dropped" if "dropped" in kinds else "open"

    @property
    def is_open(self) -> bool:
        return self.state in ("open", "in doubt")

    @property
    def replays(self) -> int:
        """How often it was sent again, by this letter and those before it."""
        before = self.letter.attempts - 1 if self.letter.sink is None else 0
        return max([before, *(each.number for each in self.markers)])

    @property
    def doubt(self) -> Marker | None:
        """The replay that began and may have come about or not: whoever made it did not live to say."""
        ended = {each.number for each in self.markers if each.kind == "replayed"}
        dropped = max((each.number for each in self.markers if each.kind == "dropped"), default=-1)
        doubts = [
            each
            for each in self.markers
            if each.kind == "replaying" and each.number not in ended and each.number > dropped
        ]
        return max(doubts, key=lambda each: (each.number, -each.behind), default=None)


class Ledger:
    """All cases of a dead-letter topic."""

    def __init__(self) -> None:
        self._letters: dict[str, Letter] = {}
        self._markers: dict[str, frozenset[Marker]] = {}

    def add(self, entry: Letter | Marker) -> None:
        if isinstance(entry, Letter):
            self._letters.setdefault(entry.id, entry)
        else:
            self._markers[entry.letter] = self._markers.get(entry.letter, frozenset()) | {entry}

    def __len__(self) -> int:
        return len(self._letters)

    def __iter__(self) -> Iterator[Case]:
        """In the order in which the letters were added."""
        return (Case(letter, self._markers.get(letter.id, frozenset())) for letter in self._letters.values())

    def find(self, letter_id: str) -> Case | None:
        letter = self._letters.get(letter_id)
        return None if letter is None else Case(letter, self._markers.get(letter_id, frozenset()))

    def forget_oldest(self) -> Letter:
        """Drops the letter that was added first, with its markers."""
        letter = self._letters.pop(next(iter(self._letters)))
        self._markers.pop(letter.id, None)
        return letter


def read_entries(pipeline: str, records: Records) -> Iterator[Letter | Marker]:
    """The letters and markers among records of the dead-letter topic. What is neither is left out: others may write to
    the topic, too."""
    for row, headers in enumerate(records.headers()):
        known = {name: value for name, value in headers if value is not None}
        try:
            if MARKER_HEADER in known:
                yield msgspec.json.decode(records.values[row] or b"", type=Marker)
            elif KEY_HEADER in known:
                yield _read_letter(pipeline, records, row, known)
        except (ValueError, KeyError):
            continue


def _read_letter(pipeline: str, records: Records, row: int, headers: Mapping[str, bytes]) -> Letter:
    texts = {name: value.decode() for name, value in headers.items() if name != HEADERS_HEADER}
    key, sink = texts[KEY_HEADER], texts[SINK_HEADER]
    own = None if sink == REJECTS else sink
    return Letter(
        id=letter_id(pipeline, key, own),
        idempotency_key=key,
        sink=own,
        place=TopicPartition(records.topic, records.partition),
        place_offset=int(records.offsets[row]),
        written_ms=int(records.append_ms[row]),
        topic=texts["source-topic"],
        partition=int(texts["source-partition"]),
        offset=int(texts["source-offset"]),
        append_ms=int(texts["append-ms"]) if "append-ms" in texts else None,
        cause=texts.get("cause", "sink" if own else "other"),
        reason=texts.get("reason", ""),
        attempts=int(texts.get("attempts", "1")),
        key=records.keys[row],
        value=records.values[row],
        headers=decode_source_headers(headers.get(HEADERS_HEADER)),
        stack=texts.get("stack"),
    )


def letter_id(pipeline: str, idempotency_key: str, sink: str | None) -> str:
    """`letter_id("fraud", "fraud/0/12/rejected", None) == "0/12"`; of a delivery "0/12/0@case-system"."""
    short = idempotency_key.removeprefix(f"{pipeline}/")
    return short.removesuffix(REJECTED_SUFFIX) if sink is None else f"{short}@{sink}"


def marker_message(marker: Marker, letter: Letter) -> Message:
    """The marker as a record for the letter's partition."""
    return Message(letter.key, msgspec.json.encode(marker), [(MARKER_HEADER, marker.kind.encode())])


class Refused(NamedTuple):
    """A letter that is not to be replayed, and why."""

    letter: Letter
    why: str


class Plan(NamedTuple):
    """`begun` were interrupted: whether they came about is to be found out. `anew` have not been sent again yet."""

    begun: Sequence[Case]
    anew: Sequence[Case]
    refused: Sequence[Refused]


def plan_replay(cases: Iterable[Case], *, again: bool, most_attempts: int) -> Plan:
    """What of these to send again: with `again` also what was dealt with; what has had its attempts, in no case."""
    plan: tuple[list[Case], list[Case], list[Refused]] = ([], [], [])
    begun, anew, refused = plan
    for case in cases:
        if case.doubt is not None:
            begun.append(case)
        elif not (again or case.is_open):
            refused.append(Refused(case.letter, f"it was {case.state} before; --again sends it all the same"))
        elif 1 + case.replays >= most_attempts:
            why = f"it was tried {1 + case.replays} times; drop it, or raise --most-attempts"
            refused.append(Refused(case.letter, why))
        else:
            anew.append(case)
    return Plan(*plan)


def describe_case(case: Case) -> dict[str, Any]:
    """All that is known of a letter, plain: bytes as text where they are UTF-8, else as hex behind 0x."""
    letter = case.letter
    return {
        "id": letter.id,
        "state": case.state,
        "cause": letter.cause,
        "reason": letter.reason,
        "sink": letter.sink,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "append_ms": letter.append_ms,
        "written_ms": letter.written_ms,
        "place": f"{letter.place}/{letter.place_offset}",
        "attempts": letter.attempts,
        "replays": case.replays,
        "idempotency_key": letter.idempotency_key,
        "key": as_text(letter.key),
        "value": as_text(letter.value),
        "headers": [{"name": name, "value": as_text(value)} for name, value in letter.headers],
        "stack": letter.stack,
    }


def as_text(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"0x{raw.hex()}"

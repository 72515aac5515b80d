"""Working through dead letters: sending them again, each once, and writing down what was done.

A replay of a rejected record is written down before it is made (`replaying`, with where its source ends) and after
(`replayed`). A run that is killed in between leaves it in doubt; the next one looks for the record in the source, by
the header that names its letter, and sends it only if it is not there. This rests on two things: the run that was
killed sends nothing any more, and the source still holds what was written since then. A delivery needs none of it: it
goes to its sink with the same idempotency key as before.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.actions.letters import Case, Ledger, Letter, Marker, Refused, marker_message, read_entries
from app.actions.writer import SinkWriter
from app.errors import ActionError, BrokerError, RetryableActionError
from app.log.replayed import replay_headers, replay_of
from app.log.tail import read_to_end
from app.sources import Consumer, Producer, TopicPartition

FLUSH_TIMEOUT_S = 30.0
CHUNK = 500
"""So many replays are begun together, for three flushes; and so many, at most, are in doubt after a crash."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class LetterLog:
    """The dead-letter topic of a pipeline, to read and to write. Every method raises BrokerError."""

    pipeline: str
    topic: str
    consumer: Consumer
    producer: Producer

    def read(self, since_ms: int | None = None, progress: Progress = lambda _: None) -> Ledger:
        """The letters that were written at `since_ms` or later, and all that was done about them.

        All of them are kept in memory, with their bytes.
        """
        ledger = Ledger()
        for number in self.consumer.partitions(self.topic):
            place = TopicPartition(self.topic, number)
            start = 0 if since_ms is None else self.consumer.offsets_for_time([place], since_ms)[place]
            for records in read_to_end(self.consumer, place, start):
                for entry in read_entries(self.pipeline, records):
                    ledger.add(entry)
                progress(len(records))
        return ledger

    def drop(self, cases: Sequence[Case], progress: Progress) -> None:
        """Writes down that nothing more is to be done about these."""
        for chunk in _chunks(cases):
            self._append((Marker(case.letter.id, "dropped", case.replays), case.letter) for case in chunk)
            progress(len(chunk))

    def replay_begun(self, cases: Sequence[Case], progress: Progress) -> None:
        """Brings replays that are in doubt to their end: sends those that did not come about."""
        there = self._find_in_source(cases)
        for chunk in _chunks(cases):
            marked = [(case.letter, case.doubt) for case in chunk if case.doubt is not None]
            self._send((letter, each.number) for letter, each in marked if (letter.id, each.number) not in there)
            self._append((Marker(letter.id, "replayed", each.number), letter) for letter, each in marked)
            progress(len(chunk))

    def replay(self, cases: Sequence[Case], progress: Progress) -> None:
        """Sends rejected records back to the partitions of the source that they came from."""
        for chunk in _chunks(cases):
            numbered = [(case.letter, case.replays + 1) for case in chunk]
            ends = self.consumer.end_offsets({_source(letter) for letter, _ in numbered})
            self._append(
                (Marker(letter.id, "replaying", number, ends[_source(letter)]), letter) for letter, number in numbered
            )
            self._send(numbered)
            self._append((Marker(letter.id, "replayed", number), letter) for letter, number in numbered)
            progress(len(chunk))

    def deliver(self, cases: Sequence[Case], writer: SinkWriter[Any], progress: Progress) -> Iterator[Refused]:
        """Gives deliveries to the sink that refused them, and yields those that it refuses again.

        Raises RetryableActionError when the sink is away: this letter and the following ones stay as they are.
        """
        for case in cases:
            letter, number = case.letter, case.replays + 1
            try:
                writer.deliver(letter.delivery)
            except RetryableActionError:
                raise
            except ActionError as error:
                self._append([(Marker(letter.id, "refused", number, reason=str(error)), letter)])
                yield Refused(letter, str(error))
            else:
                self._append([(Marker(letter.id, "replayed", number), letter)])
            progress(1)

    def _find_in_source(self, cases: Sequence[Case]) -> set[tuple[str, int]]:
        """Letter and number of each replay that stands in the source behind where these began."""
        starts: dict[TopicPartition, int] = {}
        for case in cases:
            if case.doubt is not None:
                source = _source(case.letter)
                starts[source] = min(starts.get(source, case.doubt.behind), case.doubt.behind)
        found = set()
        for source, start in starts.items():
            for records in read_to_end(self.consumer, source, start):
                found |= {each for each in map(replay_of, records.headers()) if each is not None}
        return found

    def _send(self, numbered: Iterable[tuple[Letter, int]]) -> None:
        for letter, number in numbered:
            self.producer.send(
                letter.topic,
                letter.value,
                key=letter.key,
                partition=letter.partition,
                headers=replay_headers(letter.headers, letter.id, number),
            )
        self._flush()

    def _append(self, markers: Iterable[tuple[Marker, Letter]]) -> None:
        for marker, letter in markers:
            key, value, headers = marker_message(marker, letter)
            partition = letter.place.partition
            self.producer.send(self.topic, value, key=key, partition=partition, headers=headers)
        self._flush()

    def _flush(self) -> None:
        left = self.producer.flush(FLUSH_TIMEOUT_S)
        if left:
            raise BrokerError(
                f"{left} records are not acknowledged after {FLUSH_TIMEOUT_S:g} s "
                f"({self.producer.last_error or 'no error is known'}); run the same command again, it repeats nothing"
            )


def _source(letter: Letter) -> TopicPartition:
    return TopicPartition(letter.topic, letter.partition)


def _chunks(cases: Sequence[Case]) -> Iterator[list[Case]]:
    waiting = iter(cases)
    while chunk := list(islice(waiting, CHUNK)):
        yield chunk

"""The end of the dead-letter topic in memory: the letters that are open."""

import threading

from app.actions.letters import Case, Ledger, Letter, Marker, describe_case, read_entries
from app.api.documents import DeadLetterDocument
from app.sources import Records

SHOWN_CHARACTERS = 2_000
LETTER_BYTES = 1_000
"""About what a letter takes besides the bytes it carries."""


class RecentLetters:
    """The newest letters, up to a budget of bytes; the oldest go first. One thread adds, any thread asks.

    Reading may begin in the middle of the topic: what was done about a letter stands behind it.
    """

    def __init__(self, pipeline: str, budget_bytes: int = 16 << 20) -> None:
        self.budget_bytes = budget_bytes
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Forgets everything, because reading starts anew."""
        with self._lock:
            self._ledger = Ledger()
            self._size_bytes = 0

    def add(self, records: Records) -> None:
        """Takes the next records of one partition of the dead-letter topic."""
        with self._lock:
            for entry in read_entries(self._pipeline, records):
                self._take(entry)
            while self._size_bytes > self.budget_bytes:
                self._size_bytes -= _size_bytes(self._ledger.forget_oldest())

    def _take(self, entry: Letter | Marker) -> None:
        known = self._ledger.find(entry.id if isinstance(entry, Letter) else entry.letter) is not None
        if isinstance(entry, Letter):
            self._size_bytes += 0 if known else _size_bytes(entry)
        elif not known:
            return  # its letter stands before it in the same partition, and is forgotten
        self._ledger.add(entry)

    def latest_open(self, limit: int) -> list[Case]:
        """The open letters that were written last, newest first."""
        with self._lock:
            cases = [case for case in self._ledger if case.is_open]
        cases.sort(key=lambda case: (case.letter.written_ms, case.letter.place_offset), reverse=True)
        return cases[:limit]


def describe_letter(case: Case) -> DeadLetterDocument:
    described = describe_case(case)
    value = described["value"]
    described["value"] = value and value[:SHOWN_CHARACTERS]
    return DeadLetterDocument(**described, value_bytes=len(case.letter.value or b""))


def _size_bytes(letter: Letter) -> int:
    texts = len(letter.reason) + len(letter.stack or "")
    return LETTER_BYTES + texts + len(letter.key or b"") + len(letter.value or b"")

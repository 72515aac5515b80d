"""What readers of committed records may see of a partition: which transactions are open in it, and which aborted."""

from bisect import bisect_left
from operator import attrgetter
from typing import NamedTuple

from app.broker.batch import BatchHeader


class AbortedTransaction(NamedTuple):
    """From the first record of an aborted transaction to its marker; others' records lie in between."""

    producer_id: int
    first_offset: int
    last_offset: int


class Isolation:
    """The transactions of one partition: a pure function of the batches in its log."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._aborted: list[AbortedTransaction] = []

    def note_batch(self, header: BatchHeader) -> None:
        """Notes a transactional batch: the first one opens its producer's transaction here."""
        self._open.setdefault(header.producer_id, header.base_offset)

    def note_end(self, marker: BatchHeader, *, commits: bool) -> None:
        first_offset = self._open.pop(marker.producer_id, None)
        if first_offset is not None and not commits:
            self._aborted.append(AbortedTransaction(marker.producer_id, first_offset, marker.base_offset))

    def is_open(self, producer_id: int) -> bool:
        return producer_id in self._open

    def stable_offset(self, end_offset: int) -> int:
        return min(self._open.values(), default=end_offset)

    def aborted_from(self, offset: int) -> list[AbortedTransaction]:
        """The aborted transactions that reach to `offset` or behind it; a reader leaves out their records."""
        return self._aborted[bisect_left(self._aborted, offset, key=attrgetter("last_offset")) :]

    def forget_before(self, offset: int) -> None:
        self._aborted = self.aborted_from(offset)

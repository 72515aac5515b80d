"""What a partition remembers of idempotent producers, so that a batch sent twice is kept once."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from kafka.errors import InvalidProducerEpochError, OutOfOrderSequenceNumberError

from app.broker.batch import BatchHeader

BATCHES_REMEMBERED = 5  # as many as a producer may have in flight
NOT_IDEMPOTENT = -1


class KeptBatch(NamedTuple):
    """A batch by its sequence numbers, and where it lies."""

    base_sequence: int
    last_sequence: int
    base_offset: int
    timestamp_ms: int


@dataclass
class ProducerState:
    """One producer's epoch and its last batches, oldest first."""

    epoch: int
    batches: deque[KeptBatch] = field(default_factory=lambda: deque(maxlen=BATCHES_REMEMBERED))

    def find(self, header: BatchHeader) -> KeptBatch | None:
        for kept in self.batches:
            if (kept.base_sequence, kept.last_sequence) == (header.base_sequence, header.last_sequence):
                return kept
        return None

    def check_sequence(self, header: BatchHeader) -> None:
        expected = (self.batches[-1].last_sequence + 1) & 0x7FFFFFFF if self.batches else 0
        if header.base_sequence != expected:
            raise OutOfOrderSequenceNumberError(
                f"producer {header.producer_id} sent sequence {header.base_sequence}; {expected} is next"
            )


class Producers:
    """The idempotent producers of one partition: a pure function of the batch headers in its log."""

    def __init__(self) -> None:
        self._states: dict[int, ProducerState] = {}

    def find_duplicate(self, header: BatchHeader) -> KeptBatch | None:
        """Returns the batch kept earlier under the same sequence numbers, or None: then it may be appended.

        Raises OutOfOrderSequenceNumberError for a gap and for a batch older than the last five,
        InvalidProducerEpochError for an epoch that a newer one has followed. A producer that is not known
        (any more) may start at any sequence number.
        """
        state = self._states.get(header.producer_id)
        if header.producer_id == NOT_IDEMPOTENT or state is None:
            return None
        if header.producer_epoch < state.epoch:
            raise InvalidProducerEpochError(f"epoch {header.producer_epoch} ended; {state.epoch} is current")
        if header.producer_epoch > state.epoch:
            ProducerState(header.producer_epoch).check_sequence(header)
            return None
        duplicate = state.find(header)
        if duplicate is None:
            state.check_sequence(header)
        return duplicate

    def remember(self, header: BatchHeader) -> None:
        """Notes a batch as appended; `header` is the stored one. A marker of a newer epoch ends the older one."""
        if header.producer_id == NOT_IDEMPOTENT:
            return
        state = self._states.get(header.producer_id)
        if state is None or state.epoch != header.producer_epoch:
            state = self._states[header.producer_id] = ProducerState(header.producer_epoch)
        if header.is_control:
            return
        state.batches.append(
            KeptBatch(header.base_sequence, header.last_sequence, header.base_offset, header.max_timestamp_ms)
        )

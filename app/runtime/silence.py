"""A partition that its client does not read any more, though the log goes on."""

from dataclasses import dataclass

PATIENCE_MS = 10_000.0
FEWEST_POLLS = 20
"""A loop that hardly polls, as behind a slow model, cannot say that nothing comes."""


@dataclass
class Silence:
    """Since when there are records behind `next_offset` that polls do not return.

    librdkafka 2.16 was seen to fetch nothing more, and to say nothing, behind the return of a broker that had been
    frozen for a minute. A new client reads on at once; what even that does not return is no record (the marker of a
    transaction, the gap of a compaction), so a new one is asked about the same stretch of the log once.
    """

    since_ms: float | None = None
    polls: int = 0
    asked: tuple[int, int] | None = None

    def note_end(self, next_offset: int, end_offset: int, now_ms: float) -> None:
        """Where the log ends, as somebody else sees it."""
        if end_offset <= next_offset or (next_offset, end_offset) == self.asked:
            self.reset()
        elif self.since_ms is None:
            self.since_ms = now_ms

    def note_poll(self) -> None:
        """One that brought nothing of this partition, though there was room for more."""
        if self.since_ms is not None:
            self.polls += 1

    def reset(self) -> None:
        self.since_ms, self.polls = None, 0

    def is_too_long(self, now_ms: float) -> bool:
        return self.since_ms is not None and now_ms - self.since_ms > PATIENCE_MS and self.polls >= FEWEST_POLLS

    def ask(self, next_offset: int, end_offset: int) -> None:
        """A new client is about to read on."""
        self.reset()
        self.asked = next_offset, end_offset

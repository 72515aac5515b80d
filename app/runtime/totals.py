"""What a stream worker has done."""

from dataclasses import asdict, dataclass, field

from app.log.frame import FALLBACKS


@dataclass
class Totals:
    """What a loop has done in its life.

    Every event becomes a decision or a dead letter; `late` are dead letters, too. `duplicates` are no events: they
    are counted for themselves. `overdue` are the events that were past their deadline when they were read; `fallbacks`
    are by reason.
    """

    events: int = 0
    decisions: int = 0
    dead_letters: int = 0
    actions: int = 0
    duplicates: int = 0
    late: int = 0
    overdue: int = 0
    fallbacks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FALLBACKS.values(), 0))

    def counts(self) -> dict[str, int]:
        """All of them by name; "fallbacks" is their sum."""
        by_cause = {f"fallback_{cause}": self.fallbacks[reason] for cause, reason in FALLBACKS.items()}
        return asdict(self) | {"fallbacks": sum(self.fallbacks.values())} | by_cause

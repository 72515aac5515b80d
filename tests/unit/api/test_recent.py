import msgspec
import numpy as np
import pytest

from app.api.recent import RecentDecisions
from app.errors import LogError
from app.log.frame import REASONS, DeadLetter, Decided, Frame, FrameHeader, Stages, encode_frame
from app.sources import Records, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka

LOG = "fraud.decisions"


def frame(partition: int, first: int, last: int, *, mark: str = "", held: tuple[int, ...] = ()) -> Frame:
    """Decides `first..last`; the event at offset 7 of partition 0 is `0-7`, and mark tells copies apart."""
    offsets = np.arange(first, last + 1)
    ids = np.array([f"{partition}-{offset}" for offset in offsets], dtype=object)
    marks = np.array([mark] * len(offsets), dtype=object)
    actions = [msgspec.json.encode([{"type": "Hold"}]) if offset in held else None for offset in offsets]
    decided = Decided(
        offsets=offsets,
        append_ms=offsets,
        event={"id": ids, "mark": marks},
        features={},
        scores={},
        reasons=np.full(len(offsets), REASONS.index("rules"), dtype=np.int8),
        actions=actions,
        versions={},
    )
    header = FrameHeader("fraud", "payments", partition, first, last, len(offsets), 0, len(held))
    return Frame(header, Stages(0, 0, 0, 0, 0), decided)


class Log:
    """A decision log and a RecentDecisions that reads what is new in it."""

    def __init__(self, budget_bytes: int = 1 << 20, start: int = 0) -> None:
        self.broker = MemoryKafka()
        self.broker.create(LOG, 2)
        self.recent = RecentDecisions(budget_bytes)
        self._consumer = MemoryConsumer(self.broker)
        self._consumer.assign({TopicPartition(LOG, each): start for each in (0, 1)})

    def write(self, *frames: Frame) -> "Log":
        for each in frames:
            self.broker.clock.now_ms += 1
            header, value = encode_frame(each)
            self.broker.append(LOG, each.header.partition, value, headers=[header])
        return self

    def read(self) -> RecentDecisions:
        for records in self._consumer.poll(1_000, 0):
            self.recent.add(records)
        return self.recent


def ids(recent: RecentDecisions, limit: int = 100, *, with_actions: bool = False) -> list[str]:
    rows = recent.latest(limit, with_actions=with_actions)
    return [str(row.frame.decided.event["id"][row.at]) for row in rows]


def mark_of(recent: RecentDecisions, event_id: str) -> str:
    row = recent.find(event_id)
    assert row is not None
    return str(row.frame.decided.event["mark"][row.at])


def test_the_latest_decisions_come_newest_first_across_partitions():
    recent = Log().write(frame(0, 0, 1), frame(1, 0, 0), frame(0, 2, 2)).read()
    assert ids(recent) == ["0-2", "1-0", "0-1", "0-0"]
    assert ids(recent, limit=2) == ["0-2", "1-0"]


def test_decisions_with_actions_can_be_asked_for_alone():
    recent = Log().write(frame(0, 0, 4, held=(1, 3)), frame(0, 5, 9)).read()
    assert ids(recent, with_actions=True) == ["0-3", "0-1"]


def test_a_decision_is_found_by_its_event():
    row = Log().write(frame(0, 0, 9), frame(1, 0, 9)).read().find("1-4")
    assert row is not None
    assert (row.frame.header.partition, row.frame.decided.offsets[row.at], row.log_offset) == (1, 4, 0)


def test_an_event_that_nobody_decided_is_not_found():
    assert Log().write(frame(0, 0, 9)).read().find("0-99") is None


def test_the_first_copy_of_a_decision_counts():
    log = Log().write(frame(0, 0, 5, mark="first"), frame(0, 3, 8, mark="second"))
    recent = log.read()
    assert [mark_of(recent, f"0-{offset}") for offset in (2, 5, 6)] == ["first", "first", "second"]
    assert ids(recent) == [f"0-{offset}" for offset in (8, 7, 6, 5, 4, 3, 2, 1, 0)]


def test_a_frame_without_anything_new_is_left_out():
    recent = Log().write(frame(0, 0, 5, mark="first"), frame(0, 0, 5, mark="second")).read()
    assert len(ids(recent)) == 6


def test_what_an_outdated_writer_wrote_is_dropped_when_the_gap_behind_it_shows():
    log = Log().write(frame(0, 2, 4, mark="outdated"))
    assert mark_of(log.read(), "0-3") == "outdated"
    recent = log.write(frame(0, 100, 109, mark="true")).read()
    assert recent.find("0-3") is None
    assert mark_of(recent, "0-100") == "true"


def test_memory_stays_within_the_budget_and_the_oldest_goes_first():
    size = len(encode_frame(frame(0, 0, 9))[1])
    log = Log(budget_bytes=3 * size)
    for first in range(0, 100, 10):
        log.write(frame(first // 10 % 2, first, first + 9))
        assert log.read().size_bytes <= 3 * size
    assert ids(log.recent)[0] == "1-99"
    assert len(ids(log.recent)) <= 30


def test_someone_who_waits_gets_the_frame_that_covers_the_offset():
    log = Log().write(frame(0, 0, 5))
    log.read()
    known, coming = log.recent.when_decided(0, 4), log.recent.when_decided(0, 8)
    assert known.result(0).header.last == 5
    log.write(frame(0, 6, 7)).read()
    assert not coming.done()
    log.write(frame(0, 8, 9)).read()
    assert coming.result(0).header.last == 9


def test_someone_who_waits_is_not_answered_by_another_partition_or_a_second_copy():
    log = Log().write(frame(0, 0, 5, mark="first"), frame(0, 6, 9, mark="first"))
    log.read()
    waiting = log.recent.when_decided(0, 10)
    log.write(frame(1, 0, 20), frame(0, 0, 12, mark="second")).read()
    row = waiting.result(0).outcome(10)
    assert not isinstance(row, DeadLetter)
    assert row is not None
    assert row.frame.header.partition == 0
    assert log.recent.when_decided(0, 8).result(0).header.first == 6


def test_who_waits_no_more_is_forgotten():
    log = Log()
    waiting = log.recent.when_decided(0, 3)
    assert waiting.cancel()
    log.write(frame(0, 0, 5)).read()
    assert waiting.cancelled()


def test_a_restart_forgets_the_frames_and_keeps_who_waits():
    log = Log().write(frame(0, 0, 5))
    log.read()
    waiting = log.recent.when_decided(0, 6)
    log.recent.restart()
    assert (ids(log.recent), log.recent.size_bytes) == ([], 0)
    log.write(frame(0, 6, 9)).read()
    assert waiting.done()


def test_a_rejected_record_is_the_outcome_of_its_offset():
    letter = DeadLetter(offset=6, append_ms=1, reason="no value", key=None, value=None)
    whole = frame(0, 0, 5)
    header = msgspec.structs.replace(whole.header, last=6, rejected=1)
    log = Log().write(Frame(header, whole.stages, whole.decided, [letter]))
    assert log.read().when_decided(0, 6).result(0).outcome(6) == letter


def test_a_record_that_is_no_frame_is_refused():
    records = Records(LOG, 0, np.array([0]), np.array([1]), [None], [b"hello"], lambda: [[]])
    with pytest.raises(LogError, match="no 'headrace' header"):
        RecentDecisions().add(records)

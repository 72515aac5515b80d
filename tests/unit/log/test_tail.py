"""Reading a log up to the end that it has now."""

from collections.abc import Collection

import pytest

from app.errors import BrokerError
from app.log import tail
from app.log.tail import read_to_end
from app.sources import Records, TopicPartition
from app.testing.kafka import MemoryConsumer, MemoryKafka

LOG = TopicPartition("decisions", 0)


class PatchyConsumer(MemoryConsumer):
    """Gives one record a poll, and nothing at every second one; its log begins at `kept_from`."""

    kept_from = 0
    polls = 0

    def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
        self.polls += 1
        return super().poll(1, timeout_ms) if self.polls % 2 else []

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.kept_from)


@pytest.fixture
def broker() -> MemoryKafka:
    filled = MemoryKafka()
    filled.create("decisions", 1)
    filled.create("payments", 2)
    for at in range(10):
        filled.append("decisions", 0, str(at).encode())
    return filled


def values(consumer: MemoryConsumer, start: int) -> list[bytes | None]:
    return [value for records in read_to_end(consumer, LOG, start) for value in records.values]


def test_every_record_from_the_start_to_the_end_is_read_in_order(broker: MemoryKafka) -> None:
    assert values(PatchyConsumer(broker), 4) == [b"4", b"5", b"6", b"7", b"8", b"9"]


def test_a_start_that_retention_has_passed_begins_where_the_log_begins(broker: MemoryKafka) -> None:
    consumer = PatchyConsumer(broker)
    consumer.kept_from = 7
    assert values(consumer, 2) == [b"7", b"8", b"9"]


@pytest.mark.parametrize("start", [10, 11, 99])
def test_from_the_end_on_there_is_nothing_to_wait_for(broker: MemoryKafka, start: int) -> None:
    consumer = PatchyConsumer(broker)
    assert values(consumer, start) == []
    assert consumer.polls == 0


def test_what_is_appended_meanwhile_does_not_prolong_the_reading(broker: MemoryKafka) -> None:
    read = []
    for records in read_to_end(PatchyConsumer(broker), LOG, 0):
        read += records.values
        broker.append("decisions", 0, b"later")
    assert read == [str(at).encode() for at in range(10)]


def test_it_takes_over_the_assignment_and_leaves_none(broker: MemoryKafka) -> None:
    consumer = MemoryConsumer(broker)
    consumer.assign({LOG: 9, TopicPartition("payments", 1): 0})
    assert len(values(consumer, 0)) == 10
    assert consumer.positions == {}


def test_a_log_that_gives_nothing_is_an_error_that_says_where(
    broker: MemoryKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(MemoryConsumer):
        def poll(self, max_records: int, timeout_ms: int) -> list[Records]:
            return []

    monkeypatch.setattr(tail, "PATIENCE_S", 0.0)
    with pytest.raises(BrokerError, match="decisions/0 gave nothing for 0 s between offset 3 and its end 10"):
        values(Silent(broker), 3)

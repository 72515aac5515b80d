"""The coordinator over crashes, and what a partition makes of its transactions."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kafka.errors import (
    InvalidProducerEpochError,
    InvalidProducerIdMappingError,
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    ProducerFencedError,
)

from app.broker.batch import read_header
from app.broker.config import TopicConfig
from app.broker.groups import CommittedOffset
from app.broker.partition import Partition
from app.broker.transactions import NO_PRODUCER, PendingOffset, ProducerRef, Transactions
from tests.unit.broker.batches import make_batch, read_committed

SEVEN = CommittedOffset(7, -1, "why")


class Crash(BaseException):
    """The process is gone."""


class Seen:
    """Effects that are kept, over crashes: each one before or after `left` more of them."""

    def __init__(self) -> None:
        self.markers: dict[tuple[str, int], list[tuple[int, int, bool]]] = {}
        self.offsets: dict[tuple[str, str, int], CommittedOffset] = {}
        self.left: float = float("inf")

    def operate(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def end_transaction(self, topic: str, index: int, producer_id: int, epoch: int, *, commits: bool) -> None:
        self.operate()
        self.markers.setdefault((topic, index), []).append((producer_id, epoch, commits))
        self.operate()

    def commit_offset(self, group: str, topic: str, index: int, committed: CommittedOffset) -> None:
        self.operate()
        self.offsets[group, topic, index] = committed
        self.operate()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def transactions(seen: Seen) -> Transactions:
    return Transactions(None, seen)


def begin(transactions: Transactions, timeout_ms: int = 1_000, now_ms: int = 0) -> ProducerRef:
    """A transaction with two partitions and an offset."""
    producer = ProducerRef("tx", *transactions.init("tx", timeout_ms, NO_PRODUCER, now_ms))
    transactions.add_partitions(producer, [("t", 0), ("t", 1)], now_ms)
    transactions.add_group(producer, "g", now_ms)
    transactions.add_offsets(producer, [PendingOffset("g", "t", 0, SEVEN)])
    return producer


@given(crash_after=st.integers(0, 6), commits=st.booleans())
def test_what_was_decided_is_completed_after_a_crash_at_any_point(
    tmp_path_factory: pytest.TempPathFactory, crash_after: int, commits: bool
) -> None:
    path, seen = tmp_path_factory.mktemp("broker") / "transactions.jsonl", Seen()
    transactions = Transactions(path, seen)
    producer = begin(transactions)
    seen.left = crash_after
    try:
        transactions.end(producer, commits=commits)
    except Crash:
        seen.left = float("inf")
        transactions = Transactions(path, seen)
    assert {place: set(markers) for place, markers in seen.markers.items()} == {
        ("t", index): {(producer.producer_id, producer.epoch, commits)} for index in (0, 1)
    }
    assert seen.offsets == ({("g", "t", 0): SEVEN} if commits else {})
    transactions.end(producer, commits=commits)  # asked again: the answer was lost in the crash
    with pytest.raises(InvalidTxnStateError):
        transactions.end(producer, commits=not commits)


def test_what_was_open_is_open_after_a_restart_and_undecided(tmp_path: Path, seen: Seen) -> None:
    path = tmp_path / "transactions.jsonl"
    producer = begin(Transactions(path, seen))
    transactions = Transactions(path, seen)
    assert transactions.is_pending("g", "t", 0)
    assert not seen.markers
    transactions.end(producer, commits=True)
    assert seen.offsets == {("g", "t", 0): SEVEN}
    assert not transactions.is_pending("g", "t", 0)


def test_the_next_producer_of_an_id_aborts_and_fences_the_one_before(transactions: Transactions, seen: Seen) -> None:
    old = begin(transactions)
    producer_id, epoch = transactions.init("tx", 1_000, NO_PRODUCER, 0)
    assert (producer_id, epoch) == (old.producer_id, old.epoch + 1)
    assert seen.markers == {("t", index): [(producer_id, epoch, False)] for index in (0, 1)}
    assert not seen.offsets
    for refused in (
        lambda: transactions.add_partitions(old, [("t", 0)], 0),
        lambda: transactions.add_group(old, "g", 0),
        lambda: transactions.add_offsets(old, []),
        lambda: transactions.end(old, commits=True),
        lambda: transactions.init("tx", 1_000, (old.producer_id, old.epoch), 0),
    ):
        with pytest.raises(ProducerFencedError):
            refused()
    header = read_header(make_batch([b"x"], producer_id=producer_id, epoch=old.epoch, sequence=0, transactional=True))
    with pytest.raises(InvalidProducerEpochError):
        transactions.check_batch("tx", header, ("t", 0))


def test_a_transaction_is_aborted_and_its_producer_fenced_when_its_time_is_over(
    transactions: Transactions, seen: Seen
) -> None:
    producer = begin(transactions, timeout_ms=1_000, now_ms=5_000)
    transactions.abort_expired(6_000)
    assert not seen.markers
    transactions.abort_expired(6_001)
    assert [commits for _, _, commits in seen.markers["t", 0]] == [False]
    with pytest.raises(ProducerFencedError):
        transactions.end(producer, commits=True)


def test_a_batch_is_taken_only_by_the_partitions_of_the_open_transaction(transactions: Transactions) -> None:
    producer = begin(transactions)
    _, producer_id, epoch = producer
    header = read_header(make_batch([b"x"], producer_id=producer_id, epoch=epoch, sequence=0, transactional=True))
    transactions.check_batch("tx", header, ("t", 1))
    with pytest.raises(InvalidTxnStateError, match="has not taken in t/2"):
        transactions.check_batch("tx", header, ("t", 2))
    transactions.end(producer, commits=True)
    with pytest.raises(InvalidTxnStateError):
        transactions.check_batch("tx", header, ("t", 1))


def test_an_epoch_is_never_counted_beyond_its_16_bits(transactions: Transactions) -> None:
    first, _ = transactions.init("tx", 1_000, NO_PRODUCER, 0)
    given_out = [transactions.init("tx", 1_000, NO_PRODUCER, 0) for _ in range(2**15)]
    assert max(epoch for _, epoch in given_out) == 2**15 - 2
    assert given_out[-1][0] != first


def test_an_unknown_producer_and_a_timeout_out_of_bounds_are_refused(transactions: Transactions) -> None:
    with pytest.raises(InvalidProducerIdMappingError):
        transactions.end(ProducerRef("tx", 1, 0), commits=True)
    with pytest.raises(InvalidTransactionTimeoutError, match="write 1 to 900000"):
        transactions.init("tx", 900_001, NO_PRODUCER, 0)


TRANSACTION_STEPS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["send", "commit", "abort"])), max_size=30)


@given(steps=TRANSACTION_STEPS, restart=st.booleans())
def test_a_reader_of_what_is_committed_sees_it_in_order_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]], restart: bool
) -> None:
    """The oracle goes through the steps; the partition's reader leaves out what Fetch tells it to."""
    folder = tmp_path_factory.mktemp("partition")
    partition, config = Partition(folder), TopicConfig(segment_bytes=200)
    sequences, kept = dict.fromkeys((1, 2, 3), 0), []
    for number, (producer_id, step) in enumerate(steps):
        if step == "send":
            value = b"%d" % number
            sequence = sequences[producer_id]
            sequences[producer_id] += 1
            batch = make_batch([value], producer_id=producer_id, epoch=0, sequence=sequence, transactional=True)
            partition.append(batch, config, 1_000)
            kept.append([producer_id, value, "open"])
        else:
            partition.end_transaction(producer_id, 0, config, 1_000, commits=step == "commit")
            kept = [
                [who, value, step if (who, state) == (producer_id, "open") else state] for who, value, state in kept
            ]
    if restart:
        partition.close()
        partition = Partition(folder)
    stable = next((at for at, (_, _, state) in enumerate(kept) if state == "open"), len(kept))
    assert read_committed(partition) == [value for _, value, state in kept[:stable] if state == "commit"]
    partition.close()

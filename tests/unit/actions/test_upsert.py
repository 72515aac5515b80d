"""Upsert into SQLite: rows and cursor in one transaction."""

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.actions.action import Action, Decision, Delivery
from app.actions.attempts import Attempts
from app.actions.dead_letters import DeadLetters
from app.actions.loop import SinkLoop
from app.actions.selection import EveryDecision, OneAction
from app.actions.sqlite import Sqlite
from app.actions.table import table_of
from app.actions.upsert import Upserter
from app.errors import ActionError, DeclarationError, RetryableActionError
from app.testing.kafka import Crash, MemoryConsumer, MemoryKafka, MemoryProducer
from tests.unit.actions.crashes import Clock, append, catch_up, kafka_with, run_over_crashes
from tests.unit.actions.decision_log import (
    DECISIONS,
    LETTERS,
    PIPELINE,
    Alert,
    Hold,
    Row,
    Written,
    decision_logs,
    effects_of,
)


class FragileSqlite(Sqlite):
    """The worker can die before and after each statement."""

    def __init__(self, path: str, kafka: MemoryKafka) -> None:
        super().__init__(path)
        self._kafka = kafka

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        self._operate()
        answer = super().execute(sql, parameters)
        self._operate()
        return answer

    def write(self, sql: str, rows: Any) -> None:
        self._operate()
        super().write(sql, rows)
        self._operate()

    def _operate(self) -> None:
        try:
            self._kafka.operate()
        except Crash:
            self.close()  # as the end of a process does, without a rollback of ours
            raise


def open_upserter(
    kafka: MemoryKafka, path: Path, action: type[Action] = Hold, key: str = "idempotency_key"
) -> SinkLoop[Any]:
    letters = DeadLetters("held", LETTERS, lambda: MemoryProducer(kafka))
    table = table_of(action, "held", key, ["risk"])
    return SinkLoop(
        pipeline=PIPELINE,
        sink="held",
        log_topic=DECISIONS,
        open_consumer=lambda: MemoryConsumer(kafka, f"{PIPELINE}.held"),
        selection=EveryDecision(PIPELINE, None) if action is Decision else OneAction(PIPELINE, action, None),
        writer=Upserter(f"{PIPELINE}.held", FragileSqlite(str(path), kafka), table, Attempts(3, letters)),
        halt=threading.Event(),
        clock=Clock(),
    )


def rows_of(path: Path, sql: str = "SELECT * FROM held") -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("databases")
    return (folder / f"{number}.db" for number in itertools.count())


def holds(first: int, last: int, partition: int = 0) -> Written:
    return Written(partition, tuple(Row(offset, "decided", 0.5, ("Hold",)) for offset in range(first, last + 1)))


@settings(deadline=None, max_examples=25)
@given(frames=decision_logs(), crashes=st.lists(st.integers(0, 80), max_size=4))
def test_each_hold_is_a_row_and_was_written_once_whenever_the_worker_dies(
    paths: Iterator[Path], frames: list[Written], crashes: list[int]
) -> None:
    path = next(paths)
    with sqlite3.connect(path) as connection:  # counts the writes behind the sink's back
        connection.execute(
            "CREATE TABLE held (payment TEXT, risk REAL, idempotency_key TEXT PRIMARY KEY, writes INTEGER DEFAULT 1)"
        )
        connection.execute(
            "CREATE TRIGGER again AFTER UPDATE OF payment ON held BEGIN "
            "UPDATE held SET writes = writes + 1 WHERE idempotency_key = new.idempotency_key; END"
        )
    connection.close()
    kafka = kafka_with(frames)
    run_over_crashes(kafka, lambda: open_upserter(kafka, path), crashes)
    expected = [
        (row.payment, row.risk, key, 1)
        for of_partition in effects_of(frames).holds.values()
        for key, row in of_partition
    ]
    assert sorted(rows_of(path)) == sorted(expected)


def test_a_later_action_with_the_same_key_overwrites_the_row(tmp_path: Path) -> None:
    rows = (Row(0, "decided", 0.5, ("Alert",)), Row(3, "decided", 0.7, ("Alert",)))
    kafka = kafka_with([Written(0, (rows[0],)), Written(0, (Row(1, "absent"), Row(2, "absent"), rows[1]))])
    run_over_crashes(kafka, lambda: open_upserter(kafka, tmp_path / "db", Alert, "card"), [])
    assert rows_of(tmp_path / "db") == [("c0", "fraud/0/3/0")]


def deliver(path: Path, offset: int, risk: Any = 0.5, partition: int = 0) -> None:
    """A Hold on the payment p, by itself."""
    letters = DeadLetters("held", LETTERS, lambda: MemoryProducer(kafka_with([])))
    upserter = Upserter(f"{PIPELINE}.held", Sqlite(str(path)), table_of(Hold, "held", "payment", []), letters)
    fields = {"type": "Hold", "payment": "p", "risk": risk}
    try:
        upserter.deliver(Delivery(f"fraud/{partition}/{offset}/0", "payments", partition, offset, 1_000, None, fields))
    finally:
        upserter.close()


def test_one_delivery_by_itself_is_a_row_and_moves_no_cursor(tmp_path: Path) -> None:
    for _ in range(2):
        deliver(tmp_path / "db", 7)
    assert rows_of(tmp_path / "db") == [("p", 0.5, "fraud/0/7/0")]
    assert rows_of(tmp_path / "db", "SELECT name FROM sqlite_master WHERE type = 'table'") == [("held",)]


def test_one_delivery_by_itself_overwrites_earlier_rows_and_leaves_later_ones(tmp_path: Path) -> None:
    for offset, risk in ((7, 0.7), (3, 0.3), (12, 1.2), (9, 0.9)):
        deliver(tmp_path / "db", offset, risk)
    assert rows_of(tmp_path / "db") == [("p", 1.2, "fraud/0/12/0")]
    deliver(tmp_path / "db", 1, 0.1, partition=1)
    assert rows_of(tmp_path / "db") == [("p", 0.1, "fraud/1/1/0")]


def test_one_delivery_by_itself_that_the_database_refuses_again_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ActionError, match="cannot store TEXT value in REAL column") as raised:
        deliver(tmp_path / "db", 7, risk="high")
    assert not isinstance(raised.value, RetryableActionError)
    deliver(tmp_path / "db", 3)
    assert rows_of(tmp_path / "db") == [("p", 0.5, "fraud/0/3/0")]


def test_decisions_are_rows_with_their_scores(tmp_path: Path) -> None:
    kafka = kafka_with([Written(1, (Row(0, "decided", 0.25), Row(1, "rejected"), Row(2, "decided", 0.75)))])
    run_over_crashes(kafka, lambda: open_upserter(kafka, tmp_path / "db", Decision, "id"), [])
    assert rows_of(tmp_path / "db") == [
        ("p0", 0, 0.25, "model", "fraud/1/0/decision"),
        ("p2", 20, 0.75, "model", "fraud/1/2/decision"),
    ]


def test_a_row_that_the_database_refuses_becomes_a_dead_letter_and_the_others_are_written(tmp_path: Path) -> None:
    kafka = kafka_with([holds(0, 2)])
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute(
            "CREATE TABLE held (payment TEXT CHECK (payment <> 'p1'), risk REAL, idempotency_key TEXT PRIMARY KEY)"
        )
    connection.close()
    run_over_crashes(kafka, lambda: open_upserter(kafka, tmp_path / "db"), [])
    assert [row[0] for row in rows_of(tmp_path / "db")] == ["p0", "p2"]
    [(_, letter)] = kafka.records(LETTERS)
    headers = dict(letter.headers)
    assert headers["idempotency-key"] == b"fraud/0/1/0"
    assert headers["sink"] == b"held"
    assert b"CHECK constraint failed" in (headers["reason"] or b"")
    assert headers["attempts"] == b"1"


def test_of_two_workers_that_both_hold_a_partition_only_one_writes_each_row(tmp_path: Path) -> None:
    kafka = kafka_with([holds(0, 2)])
    zombie, heir = (open_upserter(kafka, tmp_path / "db") for _ in range(2))
    zombie.assign([0, 1])
    catch_up(kafka, zombie)
    heir.assign([0, 1])
    catch_up(kafka, heir)
    append(kafka, holds(3, 4))
    catch_up(kafka, heir)
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("DELETE FROM held WHERE payment = 'p3'")
    connection.close()
    zombie.step(0)
    assert "another worker" in str(zombie.status().partitions[0].error)
    catch_up(kafka, zombie)
    assert [row[0] for row in rows_of(tmp_path / "db")] == ["p0", "p1", "p2", "p4"]


def test_a_table_without_a_needed_column_is_an_error_with_the_statement_that_helps(tmp_path: Path) -> None:
    kafka = kafka_with([holds(0, 0)])
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("CREATE TABLE held (payment TEXT, idempotency_key TEXT PRIMARY KEY)")
    connection.close()
    loop = open_upserter(kafka, tmp_path / "db")
    loop.assign([0])
    loop.step(0)
    error = str(loop.status().partitions[0].error)
    assert 'ALTER TABLE "held" ADD COLUMN "risk" REAL' in error
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute(error[error.index("ALTER") :])
    connection.close()
    loop.assign([0, 1])
    catch_up(kafka, loop)
    assert len(rows_of(tmp_path / "db")) == 1


def test_positions_that_moved_past_nothing_of_ours_are_saved_too(tmp_path: Path) -> None:
    kafka = kafka_with([Written(0, tuple(Row(offset, "decided") for offset in range(5)))])
    run_over_crashes(kafka, lambda: open_upserter(kafka, tmp_path / "db"), [])
    assert ("fraud.held", 0, 4, 1) in rows_of(tmp_path / "db", "SELECT * FROM headrace_cursors")


class Everything(Action, frozen=True):
    name: str
    count: int
    share: float
    sure: bool
    note: str | None
    tags: list[str]


def test_the_columns_of_a_table_follow_the_fields_of_the_action() -> None:
    table = table_of(Everything, "everything", "name", [])
    assert [tuple(column) for column in table.columns] == [
        ("name", "text", False),
        ("count", "integer", False),
        ("share", "real", False),
        ("sure", "boolean", False),
        ("note", "text", True),
        ("tags", "json", False),
        ("idempotency_key", "text", False),
    ]


def test_a_key_that_is_no_field_is_refused() -> None:
    with pytest.raises(DeclarationError, match="Hold has no field 'card'; it has payment, risk"):
        table_of(Hold, "held", "card", [])

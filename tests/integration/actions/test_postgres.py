"""Upsert into PostgreSQL: types, refusals, locks."""

import threading
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from app.actions.action import Action, Delivery
from app.actions.attempts import Attempts
from app.actions.dead_letters import DeadLetters
from app.actions.position import Position
from app.actions.postgres import Postgres
from app.actions.table import table_of
from app.actions.upsert import Upserter
from app.actions.writer import Batch
from app.errors import ActionError, RetryableActionError, SinkAwayError
from app.testing.kafka import MemoryKafka, MemoryProducer
from tests.unit.actions.crashes import kafka_with
from tests.unit.actions.decision_log import LETTERS


class Everything(Action, frozen=True):
    name: str
    count: int
    share: float
    sure: bool
    note: str | None
    tags: list[str]


GOOD = {"type": "Everything", "name": "a", "count": 1, "share": 0.5, "sure": True, "note": None, "tags": ["x"]}


@pytest.fixture
def kafka() -> MemoryKafka:
    return kafka_with([])


def open_upserter(postgres: str, kafka: MemoryKafka, key: str = "name") -> Upserter:
    letters = DeadLetters("everything", LETTERS, lambda: MemoryProducer(kafka))
    table = table_of(Everything, "everything", key, [])
    return Upserter("fraud.everything", Postgres(postgres), table, Attempts(3, letters))


def deliveries(*rows: dict[str, Any], first: int = 0) -> list[Delivery]:
    return [
        Delivery(f"fraud/0/{at}/0", "payments", 0, at, 1_000, None, {**GOOD, **row})
        for at, row in enumerate(rows, first)
    ]


def write(upserter: Upserter, start: Position, given: list[Delivery]) -> Any:
    end = Position(given[-1].offset, start.log_offset + 1)
    [outcome] = upserter.write([Batch(0, start, end, given)])
    return outcome


def rows_of(postgres: str) -> list[dict[str, Any]]:
    with psycopg.connect(postgres, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM everything ORDER BY idempotency_key").fetchall()


def test_the_table_is_made_with_typed_columns_and_holds_the_latest_action_of_each_key(
    postgres: str, kafka: MemoryKafka
) -> None:
    upserter = open_upserter(postgres, kafka)
    start = upserter.resume({0: None})[0]
    assert write(upserter, start, deliveries({}, {"name": "b"}, {"count": 2, "note": "!"})).error is None
    fields = {name: value for name, value in GOOD.items() if name != "type"}
    assert rows_of(postgres) == [
        {**fields, "name": "b", "idempotency_key": "fraud/0/1/0"},
        {**fields, "count": 2, "note": "!", "idempotency_key": "fraud/0/2/0"},
    ]
    with psycopg.connect(postgres) as connection:
        types = connection.execute(
            "SELECT data_type, is_nullable FROM information_schema.columns WHERE table_name = 'everything' "
            "ORDER BY ordinal_position"
        ).fetchall()
    assert types == [
        ("text", "NO"),
        ("bigint", "NO"),
        ("double precision", "NO"),
        ("boolean", "NO"),
        ("text", "YES"),
        ("jsonb", "NO"),
        ("text", "NO"),
    ]
    upserter.close()


@pytest.mark.parametrize(
    "refused",
    [
        {"count": 2**70},
        {"note": "nul \x00"},
        {"count": "many"},
        {"count": True},
        {"share": None},
        {"sure": 3},
    ],
    ids=["out of range", "NUL", "text for a number", "boolean for a number", "missing", "number for a boolean"],
)
def test_a_row_that_postgres_refuses_becomes_a_dead_letter_and_the_others_are_written(
    postgres: str, kafka: MemoryKafka, refused: dict[str, Any]
) -> None:
    upserter = open_upserter(postgres, kafka, "idempotency_key")
    start = upserter.resume({0: None})[0]
    outcome = write(upserter, start, deliveries({"name": "a"}, {"name": "b", **refused}, {"name": "c"}))
    assert (outcome.error, outcome.dead_letters, outcome.position.applied) == (None, 1, 2)
    assert [row["name"] for row in rows_of(postgres)] == ["a", "c"]
    [(_, letter)] = kafka.records(LETTERS)
    assert dict(letter.headers)["idempotency-key"] == b"fraud/0/1/0"
    upserter.close()


def test_one_delivery_by_itself_overwrites_earlier_rows_and_leaves_later_ones(
    postgres: str, kafka: MemoryKafka
) -> None:
    upserter = open_upserter(postgres, kafka)
    upserter.resume({0: None})
    for first, count in ((7, 70), (3, 30), (12, 120), (9, 90)):
        [delivery] = deliveries({"count": count}, first=first)
        upserter.deliver(delivery)
    assert [(row["count"], row["idempotency_key"]) for row in rows_of(postgres)] == [(120, "fraud/0/12/0")]
    [bad] = deliveries({"count": "many"}, first=20)
    with pytest.raises(ActionError, match="many") as raised:
        upserter.deliver(bad)
    assert not isinstance(raised.value, RetryableActionError)
    upserter.close()


def test_a_dead_letter_that_cannot_be_written_keeps_the_whole_batch_back(postgres: str, kafka: MemoryKafka) -> None:
    upserter = open_upserter(postgres, kafka)
    start = upserter.resume({0: None})[0]
    kafka.refuse_appends = 1
    outcome = write(upserter, start, deliveries({"name": "a"}, {"name": "b", "count": 2**70}))
    assert isinstance(outcome.error, RetryableActionError)
    assert (outcome.position, rows_of(postgres)) == (start, [])
    assert upserter.resume({0: None})[0] == start
    upserter.close()


def raise_for(postgres: str, name: str, statement: str) -> None:
    """From now on the database does the statement for rows of this name, before it inserts them."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            f"CREATE FUNCTION fault() RETURNS trigger AS $$ BEGIN IF new.name = '{name}' THEN {statement}; END IF; "
            "RETURN new; END $$ LANGUAGE plpgsql".encode()
        )
        connection.execute(b"CREATE TRIGGER fault BEFORE INSERT ON everything FOR EACH ROW EXECUTE FUNCTION fault()")


def test_a_row_that_the_database_fails_on_again_and_again_becomes_a_dead_letter_and_the_others_are_written_once(
    postgres: str, kafka: MemoryKafka
) -> None:
    upserter = open_upserter(postgres, kafka)
    position = upserter.resume({0: None})[0]
    raise_for(postgres, "b", "RAISE EXCEPTION 'no b today'")
    given = deliveries({"name": "a"}, {"name": "b"}, {"name": "c"})
    errors = []
    while (outcome := write(upserter, position, given)).error is not None:
        errors.append(str(outcome.error))
        position = outcome.position
        assert upserter.resume({0: None})[0] == position
        given = [each for each in given if position.applied is None or each.offset > position.applied]
        assert len(errors) < 10
    assert len(errors) == 3  # the whole batch once, then up to b twice; the third time is its last
    assert all("no b today" in error for error in errors)
    assert [row["name"] for row in rows_of(postgres)] == ["a", "c"]
    [(_, letter)] = kafka.records(LETTERS)
    assert dict(letter.headers)["attempts"] == b"3"
    upserter.close()


def test_a_statement_that_takes_too_long_counts_as_a_failure_on_its_row(
    postgres: str, kafka: MemoryKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.actions.postgres.LIMITS", ("SET statement_timeout = '100ms'",))
    upserter = open_upserter(postgres, kafka)
    start = upserter.resume({0: None})[0]
    raise_for(postgres, "a", "PERFORM pg_sleep(60)")
    errors = [write(upserter, start, deliveries({"name": "a"})).error for _ in range(4)]
    assert ["statement timeout" in str(error) for error in errors] == [True] * 3 + [False]
    assert len(kafka.records(LETTERS)) == 1
    upserter.close()


def test_a_text_that_is_too_long_for_its_index_is_refused(postgres: str, kafka: MemoryKafka) -> None:
    upserter = open_upserter(postgres, kafka)
    start = upserter.resume({0: None})[0]
    long = "".join(chr(33 + (at * at * 7919) % 9973) for at in range(5_000))  # it cannot be compressed
    outcome = write(upserter, start, deliveries({"name": long}, {"name": "b"}))
    assert (outcome.error, outcome.dead_letters) == (None, 1)
    assert [row["name"] for row in rows_of(postgres)] == ["b"]
    upserter.close()


def test_of_two_workers_at_the_same_rows_the_second_writes_nothing(postgres: str, kafka: MemoryKafka) -> None:
    first, second = open_upserter(postgres, kafka), open_upserter(postgres, kafka)
    start = first.resume({0: None})[0]
    assert second.resume({0: None})[0] == start
    outcomes: dict[str, Any] = {}

    def race(name: str, upserter: Upserter) -> None:
        outcomes[name] = write(upserter, start, deliveries({"name": name}))

    threads = [threading.Thread(target=race, args=each) for each in (("a", first), ("b", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name, outcome in outcomes.items() if outcome.error is None]
    assert [row["name"] for row in rows_of(postgres)] == winners
    assert len(winners) == 1
    [loser] = [outcome for outcome in outcomes.values() if outcome.error is not None]
    assert "another worker has gone on from there" in str(loser.error)
    first.close()
    second.close()


def test_a_database_that_is_away_is_an_error_to_retry(kafka: MemoryKafka) -> None:
    upserter = open_upserter("postgresql://127.0.0.1:1/nowhere", kafka)
    with pytest.raises(SinkAwayError, match=r"the database says: .*refused"):
        upserter.resume({0: None})


def test_a_table_of_the_users_own_without_a_unique_key_is_an_error_that_says_so(
    postgres: str, kafka: MemoryKafka
) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE everything (name text, count bigint, share float8, sure boolean, note text, tags jsonb, "
            "idempotency_key text)"
        )
    upserter = open_upserter(postgres, kafka)
    outcome = write(upserter, upserter.resume({0: None})[0], deliveries({}))
    assert "no unique or exclusion constraint" in str(outcome.error)
    upserter.close()

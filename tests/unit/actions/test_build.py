"""What the YAML may say of sinks, and what is said of what it may not."""

from typing import Any

import pytest

from app.actions.action import Decision, Sink
from app.actions.build import build_sinks, switched_off
from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.redis import Redis
from app.actions.upsert import Upsert
from app.errors import ConfigError, DeclarationError
from app.event import Event
from app.pipeline import Pipeline
from tests.unit.actions.decision_log import Hold


class Payment(Event, frozen=True):
    card: str


def pipeline(*sinks: Sink, action: Any = Hold) -> Pipeline[Payment]:
    return Pipeline(source=Payment, actions={action: list(sinks)})


def names(of: Pipeline[Payment], settings: dict[str, Any]) -> list[str]:
    return [sink.name for sink in build_sinks("fraud", of, settings)]


def test_every_pipeline_copies_its_rejected_records_and_its_late_events() -> None:
    assert names(Pipeline(source=Payment), {}) == ["dead-letters", "late"]


def test_a_sink_commits_to_a_group_of_its_own() -> None:
    assert [sink.group for sink in build_sinks("fraud", pipeline(Publish("holds")), {})] == [
        "fraud.holds",
        "fraud.dead-letters",
        "fraud.late",
    ]


@pytest.mark.parametrize("off", ["off", False])
@pytest.mark.parametrize(
    ("sink", "address"), [(Publish("x"), "topic"), (Post("x"), "url"), (Upsert("x"), "dsn"), (Redis("x"), "url")]
)
def test_a_sink_whose_address_is_off_is_not_run(sink: Sink, address: str, off: Any) -> None:
    assert names(pipeline(sink), {"x": {address: off}}) == ["dead-letters", "late"]


def test_what_is_off_is_told_by_name() -> None:
    sinks = pipeline(Publish("a"), Post("b"), Upsert("c"))
    assert switched_off(sinks, {"a": {"topic": "off"}, "b": {"url": "http://h"}, "c": {"dsn": False}}) == {"a", "c"}


@pytest.mark.parametrize(
    ("sink", "values", "message"),
    [
        (Post("cases"), {}, "sinks.cases.url is missing; write it"),
        (Post("cases"), {"url": "case.example"}, "sinks.cases.url is 'case.example'; it should match"),
        (Post("cases"), {"url": "http://h", "timeout": 5}, "sinks.cases.timeout: 5 is not a duration; write"),
        (Post("cases"), {"url": "http://h", "timeout": "1m"}, "sinks.cases.timeout: 60 s is too long; write 30s"),
        (Post("cases"), {"url": "http://h", "tiemout": "5s"}, "did you mean 'timeout'?"),
        (Post("cases"), {"url": "http://h", "attempts": 0}, "sinks.cases.attempts is 0; it should be"),
        (Upsert("held"), {}, "sinks.held.dsn is missing; write it"),
        (Upsert("held"), {"dsn": "mysql://root:pw@h/db"}, "sinks.held.dsn is (not shown); it should match"),
        (Upsert("held"), {"dsn": "postgresql://h/db?nonsense=pw"}, "sinks.held.dsn: PostgreSQL does not understand"),
        (Upsert("held"), {"dsn": "sqlite:///x", "table": "a b"}, "sinks.held.table is 'a b'; it should match"),
        (Redis("held"), {}, "sinks.held.url is missing; write it"),
        (Redis("held"), {"url": "http://:pw@h"}, "sinks.held.url: this is no address of Redis; write one of redis://"),
        (Redis("held"), {"url": "redis://:pw@h:port"}, "sinks.held.url: this is no address of Redis"),
        (Redis("held"), {"url": "redis://h", "ttl": 60}, "sinks.held.ttl: 60 is not a duration; write"),
        (Redis("held"), {"url": "redis://h", "attempts": 0}, "sinks.held.attempts is 0; it should be"),
        (Upsert("held"), {"dsn": "sqlite:///x", "attempts": 0}, "sinks.held.attempts is 0; it should be"),
        (Publish("all holds"), {}, "sinks.all holds.topic is 'all holds'; it should match"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(
    sink: Sink, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        build_sinks("fraud", pipeline(sink), {sink.name: values})
    assert message in str(refused.value)
    assert "pw" not in str(refused.value)


def test_settings_of_a_sink_that_no_pipeline_has_are_refused_and_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        build_sinks("fraud", pipeline(Post("cases"), Publish("holds")), {"hold": {}, "cases": {}})
    assert str(refused.value).splitlines() == [
        "sinks.hold: nothing is called 'hold' here; did you mean 'holds'?",
        "sinks.cases.url is missing; write it",
    ]


@pytest.mark.parametrize("name", ["dead-letters", "late"])
def test_a_sink_that_is_called_like_one_of_the_pipelines_own_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="rename it"):
        build_sinks("fraud", pipeline(Publish(name)), {})


def test_a_key_that_the_action_lacks_is_refused() -> None:
    with pytest.raises(DeclarationError, match="Hold has no field 'card'"):
        build_sinks("fraud", pipeline(Upsert("held", key="card")), {"held": {"dsn": "sqlite:///held.db"}})


@pytest.mark.parametrize(("action", "key"), [(Hold, "card"), (Hold, "risk"), (Decision, "risk")])
def test_a_field_that_makes_no_name_of_a_hash_is_refused(action: Any, key: str) -> None:
    with pytest.raises(DeclarationError, match="has no such field of type str or int; use one of idempotency_key"):
        build_sinks("fraud", pipeline(Redis("held", key=key), action=action), {"held": {"url": "redis://h"}})


def test_decisions_can_go_to_every_kind_of_sink() -> None:
    sinks = pipeline(Publish("a"), Post("b"), Upsert("c", key="id"), Redis("d", key="id"), action=Decision)
    settings = {"b": {"url": "http://localhost"}, "c": {"dsn": "sqlite:///c.db"}, "d": {"url": "unix:///d.sock"}}
    assert names(sinks, settings) == ["a", "b", "c", "d", "dead-letters", "late"]


def test_a_sink_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DeclarationError, match="declare one of Publish, Post, Redis, Upsert"):
        build_sinks("fraud", pipeline(Sink("x")), {})

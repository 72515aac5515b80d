"""What the YAML may say, and what is said of it when it is wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.config import PipelineArgs, WorkerTuning, expand_environment, load_pipeline
from app.errors import ConfigError
from app.pipelines.fraud import fraud

ARGS: dict[str, Any] = {
    "pipeline": "app.pipelines.fraud:fraud",
    "kafka": {"bootstrap": "127.0.0.1:9092"},
    "topics": {"source": "payments"},
    "checkpoints": {"uri": ".headrace/checkpoints"},
}


def refusal(change: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        PipelineArgs.load(ARGS | change, "args")
    return str(refused.value)


def test_what_is_not_written_has_its_default() -> None:
    args = PipelineArgs.load(ARGS)
    assert args.name == "fraud"
    assert args.topics.decisions == "fraud.decisions"
    assert args.topics.dead_letters == "fraud.dead-letters"
    assert args.topics.late == "fraud.late"
    assert args.deduplicate_ms == 3_600_000
    assert (args.topics.partitions, args.topics.create) == (4, True)
    assert (args.start, args.allowed_lateness_ms, args.max_ahead_ms) == ("earliest", 3_600_000, 3_600_000)
    assert args.sinks == {}
    assert args.budgets_ms == {}


def test_a_name_of_its_own_names_the_topics() -> None:
    args = PipelineArgs.load(ARGS | {"name": "fraud-eu"})
    assert (args.topics.decisions, args.topics.dead_letters) == ("fraud-eu.decisions", "fraud-eu.dead-letters")


def test_topics_may_have_names_of_their_own() -> None:
    topics = PipelineArgs.load(ARGS | {"topics": {"source": "a", "decisions": "b", "dead_letters": "c"}}).topics
    assert (topics.source, topics.decisions, topics.dead_letters) == ("a", "b", "c")


@pytest.mark.parametrize(("written", "meant"), [("2h", 7_200_000), ("off", None), (False, None)])
def test_ids_are_remembered_for_a_duration_or_not_at_all(written: Any, meant: int | None) -> None:
    assert PipelineArgs.load(ARGS | {"deduplicate": written}).deduplicate_ms == meant


def test_budgets_are_milliseconds_by_stage() -> None:
    assert PipelineArgs.load(ARGS | {"budgets": {"scored": "1.5s"}}).budgets_ms == {"scored": 1_500}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topcs": {}}, "args.topcs: nothing is called 'topcs' here; did you mean 'topics'?"),
        (
            {"topics": {"source": "payments", "partitons": 8}},
            "args.topics.partitons: nothing is called 'partitons' here; did you mean 'partitions'?",
        ),
        ({"topics": {}}, "args.topics.source is missing; write it"),
        ({"topics": 3}, "args.topics is 3; it should be a valid dictionary"),
        ({"topics": {"source": "a b"}}, "args.topics.source is 'a b'; it should match"),
        ({"topics": {"source": "p", "partitions": 0}}, "args.topics.partitions is 0; it should be greater than 0"),
        ({"topics": {"source": "fraud.decisions"}}, "args.topics: two topics are called 'fraud.decisions'; give"),
        ({"allowed_lateness": "10min"}, "args.allowed_lateness: '10min' is not a duration; write a number and a unit"),
        ({"max_ahead": 5}, "args.max_ahead: 5 is not a duration; write a number and a unit in quotes, like '10m'"),
        ({"deduplicate": "1 h"}, "args.deduplicate: '1 h' is not a duration; write a number and a unit"),
        ({"deduplicate": True}, "args.deduplicate: True is not a duration; write a number and a unit in quotes"),
        (
            {"deduplicate": "30m"},
            "args: deduplicate is 30m, allowed_lateness 1h: a copy that comes in between would be decided again; write "
            "at least 1h, or off",
        ),
        ({"start": "begin"}, "args.start is 'begin'; it should be 'earliest' or 'latest'"),
        ({"budgets": {"scord": "3ms"}}, "args.budgets.scord is 'scord'; it should be 'fetched', 'features'"),
        ({"kafka": {"bootstrap": "x"}}, "args.kafka.bootstrap: 'x' is no broker's address; write host:port"),
        (
            {"kafka": {"bootstrap": "x:1", "extra": {"a": []}}},
            "args.kafka.extra.a is []; it should be a valid string, or it should be a valid integer",
        ),
        ({"checkpoints": {}}, "args.checkpoints.uri is missing; write it"),
        (
            {"checkpoints": {"uri": "x", "keep": 0}},
            "args.checkpoints.keep is 0; it should be greater than or equal to 1",
        ),
        (
            {"checkpoints": {"uri": "x", "on_change": "drop"}},
            "args.checkpoints.on_change is 'drop'; it should be 'rebuild', 'rebuild_partly' or 'refuse'",
        ),
        ({"pipeline": "fraud"}, "args.pipeline is 'fraud'; it should match"),
        ({"pipeline": None}, "args.pipeline is None; it should be a valid string"),
        ({"sinks": []}, "args.sinks is []; it should be a valid dictionary"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_remedy(change: dict[str, Any], message: str) -> None:
    assert refusal(change).startswith(message)


def test_every_wrong_value_has_its_line() -> None:
    assert len(refusal({"start": "begin", "topcs": 1, "max_ahead": "x"}).splitlines()) == 3


def test_a_secret_is_not_shown_in_a_message() -> None:
    message = refusal({"kafka": {"bootstrap": "x:1", "sasl_password": ["hunter2"]}})
    assert message == "args.kafka.sasl_password is (not shown); it should be a valid string"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        PipelineArgs.load(ARGS).topics.source = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${SET}", "value"),
        ("${SET:-default}", "value"),
        ("${UNSET:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY}", ""),
        ("${UNSET:-}", ""),
        ("s3://${SET}/${UNSET:-a:b}/c", "s3://value/a:b/c"),
        ("$SET", "$SET"),
        (7, 7),
        (None, None),
    ],
)
def test_a_variable_is_replaced_as_in_a_shell(text: object, expanded: object) -> None:
    environment = {"SET": "value", "EMPTY": ""}
    assert expand_environment({"a": [{"b": text}]}, environment) == {"a": [{"b": expanded}]}


def test_a_variable_that_is_not_set_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError) as refused:
        expand_environment({"kafka": {"servers": ["${BROKER}:9092"]}}, {}, "args")
    assert str(refused.value) == (
        "args.kafka.servers[0] is '${BROKER}:9092', and BROKER is not set; set it, or write ${BROKER:-default}"
    )


@pytest.mark.parametrize("text", ["${BROKER", "${BRO-KER}", "${}", "${A-b}"])
def test_a_variable_that_is_written_wrongly_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write a variable as \$\{NAME\} or \$\{NAME:-default\}"):
        expand_environment({"key": text}, {"BROKER": "x"})


@given(st.recursive(st.none() | st.integers() | st.text(alphabet="a$}:-é "), st.lists, max_leaves=20))
def test_text_without_variables_stays_as_it_is(value: Any) -> None:
    assert expand_environment({"key": value}, {"a": "x"}) == {"key": value}


def test_numbers_from_the_environment_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTITIONS", "12")
    args = PipelineArgs.load(ARGS | {"topics": {"source": "payments", "partitions": "${PARTITIONS:-4}"}})
    assert args.topics.partitions == 12


def test_a_worker_needs_no_tuning() -> None:
    tuning = WorkerTuning.load({})
    assert (tuning.pace.shortest_ms, tuning.pace.longest_ms) == (10, 50)
    assert (tuning.max_in_flight, tuning.max_batch) == (2, 4096)
    assert (tuning.model_timeout_ms, tuning.checkpoint_interval_ms) == (1_000, 10_000)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pace": {"shortest": "60ms"}}, "pace: shortest is 60 ms, longest 50 ms; swap or change them"),
        ({"pace": {"shortst": "4ms"}}, "pace.shortst: nothing is called 'shortst' here; did you mean 'shortest'?"),
        ({"max_batch": 0}, "max_batch is 0; it should be greater than or equal to 1"),
        ({"max_in_flight": "two"}, "max_in_flight is 'two'; it should be a valid integer"),
        ({"model_timeout": "0ms"}, "model_timeout: '0ms' is not a whole, positive number of milliseconds"),
    ],
)
def test_a_wrong_tuning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        WorkerTuning.load(values)
    assert str(refused.value).startswith(message)


def test_a_pipeline_is_imported_by_its_name() -> None:
    assert load_pipeline("app.pipelines.fraud:fraud") is fraud


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("app.pipelines.frauds:fraud", "No module named 'app.pipelines.frauds'"),
        ("app.pipelines.fraud:frauds", "has no attribute 'frauds'"),
        ("app.pipelines.fraud:decide", "which is a function and no Pipeline"),
    ],
)
def test_what_is_no_pipeline_is_refused(reference: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_pipeline(reference)

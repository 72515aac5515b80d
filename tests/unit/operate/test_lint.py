"""What `python -m app check` finds in a config file. Every case is the shipped file with one thing wrong."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.operate.cli import main
from app.operate.config_file import read_config
from app.operate.lint import lint
from app.runtime.scaling import Limits, ScaleByLag

CONFIG = Path(__file__).parents[3] / "config"
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    return copy.deepcopy(read_config(CONFIG / "fraud.yaml"))


def application(config: Config) -> Config:
    return config["applications"][0]


def deployment(config: Config, name: str) -> Config:
    return next(each for each in application(config)["deployments"] if each["name"] == name)


@pytest.mark.parametrize("name", ["fraud.yaml", "fraud.gpu.yaml"])
def test_the_shipped_configs_are_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka:9092")
    monkeypatch.setenv("CHECKPOINTS", "s3://bucket/checkpoints")
    monkeypatch.setenv("FRAUD_DB", "postgresql://fraud@db/fraud")
    assert lint(read_config(CONFIG / name)) == []


def test_the_scaling_by_lag_that_is_shown_beside_the_replicas_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka:9092")
    monkeypatch.setenv("CHECKPOINTS", "s3://bucket/checkpoints")
    before, text = (CONFIG / "fraud.gpu.yaml").read_text().split("        num_replicas: 8\n")
    shown, behind = text.split("        max_queued_requests", 1)
    _, shown = shown.split("        # autoscaling_config:", 1)
    shown = f"        autoscaling_config:{shown.replace('        # ', '        ')}"
    file = tmp_path / "fraud.gpu.yaml"
    file.write_text(f"{before}{shown}        max_queued_requests{behind}")
    config = read_config(file)
    policy = deployment(config, "StreamWorker")["autoscaling_config"]["policy"]
    assert policy["policy_function"] == LAG
    assert ScaleByLag(**policy["policy_kwargs"]).limits == Limits()
    assert lint(config) == []


UNKNOWN_KEYS: list[tuple[Callable[[Config], Config], str, str]] = [
    (lambda c: c, "application", "application: nothing is called 'application' here; did you mean 'applications'?"),
    (lambda c: c["http_options"], "prot", "http_options.prot: nothing is called 'prot' here; did you mean 'port'?"),
    (application, "import_pth", "applications[0].import_pth: nothing is called 'import_pth' here; did you mean"),
    (lambda c: application(c)["runtime_env"], "env_var", "applications[0].runtime_env.env_var: nothing is called"),
    (lambda c: application(c)["args"], "allowed_latness", "applications[0].args.allowed_latness: nothing is called"),
    (lambda c: application(c)["args"]["kafka"], "boostrap", "applications[0].args.kafka.boostrap: nothing is called"),
    (lambda c: application(c)["args"]["sinks"], "hold", "applications[0].args.sinks.hold: nothing is called 'hold'"),
    (
        lambda c: application(c)["args"]["sinks"]["holds"],
        "topics",
        "applications[0].args.sinks.holds.topics: nothing is called 'topics' here; did you mean 'topic'?",
    ),
    (
        lambda c: deployment(c, "StreamWorker"),
        "num_replica",
        "applications[0].deployments[1].num_replica: nothing is called 'num_replica' here; did you mean",
    ),
    (
        lambda c: deployment(c, "StreamWorker")["ray_actor_options"],
        "num_cpu",
        "applications[0].deployments[1].ray_actor_options.num_cpu: nothing is called 'num_cpu' here; did you mean",
    ),
    (
        lambda c: deployment(c, "StreamWorker")["user_config"],
        "max_bach",
        "applications[0].deployments[1].user_config.max_bach: nothing is called 'max_bach' here; did you mean",
    ),
    (
        lambda c: deployment(c, "StreamWorker")["user_config"]["pace"],
        "longst",
        "applications[0].deployments[1].user_config.pace.longst: nothing is called 'longst' here; did you mean",
    ),
    (
        lambda c: deployment(c, "FraudScorer")["autoscaling_config"],
        "max_replica",
        "applications[0].deployments[2].autoscaling_config.max_replica: nothing is called 'max_replica' here; did",
    ),
    (
        lambda c: deployment(c, "FraudScorer")["user_config"],
        "weigths",
        "applications[0].deployments[2].user_config.weigths: nothing is called 'weigths' here; did you mean 'weights'?",
    ),
]


@pytest.mark.parametrize(("place", "key", "message"), UNKNOWN_KEYS, ids=[key for _, key, _ in UNKNOWN_KEYS])
def test_an_unknown_key_is_found_at_every_level(
    config: Config, place: Callable[[Config], Config], key: str, message: str
) -> None:
    place(config)[key] = {}
    assert [problem[: len(message)] for problem in lint(config)] == [message]


def set_value(*path: str | int, value: object) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        place: Any = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


APP: tuple[str | int, ...] = ("applications", 0)
SCALING = (*APP, "deployments", 2, "autoscaling_config")
LAG = "app.runtime.scaling:ScaleByLag"
WRONG_VALUES: list[tuple[Callable[[Config], None], str]] = [
    (set_value("http_options", "port", value="eighty"), "http_options.port is 'eighty'; it should be a valid integer"),
    (set_value("proxy_location", value="Somewhere"), "proxy_location is 'Somewhere'; it should be"),
    (set_value("applications", value={}), "applications is {}; it should be a valid list"),
    (
        set_value(*APP, "import_path", value="app.main:biuld"),
        "applications[0].import_path is 'app.main:biuld', but module 'app.main' has no attribute 'biuld'; a pipeline's",
    ),
    (
        set_value(*APP, "args", "pipeline", value="app.pipelines.farud:fraud"),
        "applications[0].args.pipeline is 'app.pipelines.farud:fraud', but No module named 'app.pipelines.farud'",
    ),
    (
        set_value(*APP, "args", "topics", value={"source": "a b"}),
        "applications[0].args.topics.source is 'a b'; it should match",
    ),
    (
        set_value(*APP, "args", "budgets", value={"scored": "soon"}),
        "applications[0].args.budgets.scored: 'soon' is not a duration; write a number and a unit",
    ),
    (
        set_value(*APP, "args", "checkpoints", "uri", value="${NO_SUCH_VARIABLE}/x"),
        "applications[0].args.checkpoints.uri is '${NO_SUCH_VARIABLE}/x', and NO_SUCH_VARIABLE is not set; set it",
    ),
    (
        set_value(*APP, "args", "sinks", "case-system", value={"url": "ftp://x"}),
        "applications[0].args.sinks.case-system.url is 'ftp://x'; it should match",
    ),
    (
        set_value(*APP, "args", "sinks", "case-system", value={}),
        "applications[0].args.sinks.case-system.url is missing; write it",
    ),
    (
        set_value(*APP, "deployments", 1, "name", value="StreamWorkers"),
        "applications[0].deployments[1].name is 'StreamWorkers'; the pipeline's deployments are Ingress, StreamWorker",
    ),
    (
        set_value(*APP, "deployments", 1, "num_replicas", value=-1),
        "applications[0].deployments[1].num_replicas is -1; it should be greater than 0",
    ),
    (
        set_value(*APP, "deployments", 1, "ray_actor_options", "num_cpus", value=-1),
        "applications[0].deployments[1].ray_actor_options.num_cpus is -1; it should be greater than or equal to 0",
    ),
    (
        set_value(*APP, "deployments", 1, "user_config", "pace", value={"shortest": "1s"}),
        "applications[0].deployments[1].user_config.pace: shortest is 1000 ms, longest 50 ms; swap or change them",
    ),
    (
        set_value(*APP, "deployments", 2, "num_replicas", value=2),
        "applications[0].deployments[2]: Manually setting num_replicas is not allowed",
    ),
    (
        set_value(*APP, "deployments", 2, "autoscaling_config", "target_ongoing_requests", value=-4),
        "applications[0].deployments[2].autoscaling_config.target_ongoing_requests is -4; it should be greater than 0",
    ),
    (
        set_value(*SCALING, "policy", value={"policy_function": "app.runtime.scalin:ScaleByLag"}),
        "applications[0].deployments[2].autoscaling_config.policy.policy_function is 'app.runtime.scalin:",
    ),
    (
        set_value(*SCALING, "policy", value={"policy_function": LAG, "policy_kwargs": {"catchup_s": 3}}),
        "applications[0].deployments[2].autoscaling_config.policy.policy_kwargs: nothing is called 'catchup_s' here",
    ),
    (
        set_value(*SCALING, "policy", value={"policy_function": LAG, "policy_kwargs": {"behind_s": "2s"}}),
        "applications[0].deployments[2].autoscaling_config.policy.policy_kwargs: behind_s is '2s'; write a",
    ),
    (
        set_value(*APP, "deployments", 4, "user_config", value={"pace": 3}),
        "applications[0].deployments[4].user_config: Coordinator takes none; remove it",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG_VALUES, ids=[message[:60] for _, message in WRONG_VALUES])
def test_a_wrong_value_is_found(config: Config, change: Callable[[Config], None], message: str) -> None:
    change(config)
    problems = lint(config)
    assert any(problem.startswith(message) for problem in problems), problems


def test_everything_wrong_is_said_at_once(config: Config) -> None:
    config["http_optons"] = {}
    application(config)["args"]["start"] = "begin"
    deployment(config, "StreamWorker")["num_replica"] = 2
    assert len(lint(config)) == 3


def test_an_application_that_is_no_pipeline_is_checked_as_serve_would(config: Config) -> None:
    application(config)["import_path"] = "json:dumps"
    application(config)["args"] = {"anything": 1}
    deployment(config, "StreamWorker")["name"] = "Anything"
    assert lint(config) == []


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["check", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_check_ends_with_0_when_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    file = CONFIG / "fraud.yaml"
    assert check(capsys, str(file)) == (0, f"{file}: all is well\n", "")


def test_check_ends_with_1_and_a_line_for_each_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("applications: []\nproxy_locatoin: EveryNode\n")
    status, out, _ = check(capsys, str(file))
    assert status == 1
    assert out == f"{file}: proxy_locatoin: nothing is called 'proxy_locatoin' here; did you mean 'proxy_location'?\n"


def test_check_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "good.yaml"
    file.write_text("applications: []\n")
    status, out, _ = check(capsys, str(file), "--json")
    assert (status, json.loads(out)) == (0, {"file": str(file), "problems": []})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: [", "is no YAML"),
        ("applications: []\napplications: []\n", "'applications' stands twice in one place; remove one"),
        ("- applications", "holds list, not the keys of a Serve config"),
        ("", "holds NoneType, not the keys of a Serve config"),
    ],
)
def test_what_is_no_config_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    status, out, err = check(capsys, str(file))
    assert (status, out) == (1, "")
    assert message in err


def test_a_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = check(capsys, "nowhere.yaml")
    assert status == 1
    assert err == "nowhere.yaml cannot be read: No such file or directory; give the path of a Serve config\n"

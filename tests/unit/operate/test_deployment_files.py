"""The files that others' tools read: cluster.yaml, compose.yaml, what Prometheus and Grafana are given."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from app.api.metrics import render
from app.latency import STAGES, Histogram
from app.operate.config_file import read_config
from app.runtime.roster import COUNTS

ROOT = Path(__file__).parents[3]
STRINGS = {"type": "array", "items": {"type": "string"}}
COMPOSE = {
    "type": "object",
    "required": ["services"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["image"],
                "additionalProperties": False,
                "properties": {
                    "image": {"type": "string", "pattern": r"^[a-z0-9./-]+:[\w.-]+$"},
                    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
                    "environment": {
                        "type": "object",
                        "patternProperties": {"^[A-Z_]+$": {"type": ["string", "integer"]}},
                        "additionalProperties": False,
                    },
                    "network_mode": {"enum": ["host"]},
                    "command": STRINGS,
                    "volumes": STRINGS,
                    "depends_on": STRINGS,
                    "restart": {"enum": ["unless-stopped"]},
                },
            },
        },
    },
}
"""What this project uses of the Compose specification."""


@pytest.fixture
def compose() -> dict[str, Any]:
    return read_config(ROOT / "compose.yaml")


def test_the_cluster_is_valid_against_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = read_config(ROOT / "cluster.yaml")
    jsonschema.validate(cluster, schema)
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_the_cluster_has_room_for_the_gpu_config() -> None:
    """Every kind of resource that a deployment asks for exists on some node type."""
    types = read_config(ROOT / "cluster.yaml")["available_node_types"].values()
    for deployment in read_config(ROOT / "config" / "fraud.gpu.yaml")["applications"][0]["deployments"]:
        options = deployment["ray_actor_options"]
        wanted = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), **options.get("resources", {})}
        assert any(
            all(node["resources"].get(kind, 0) >= amount for kind, amount in wanted.items()) for node in types
        ), deployment["name"]


def test_the_cpu_config_fits_a_machine_of_two_cores() -> None:
    deployments = read_config(ROOT / "config" / "fraud.yaml")["applications"][0]["deployments"]
    assert sum(each["ray_actor_options"]["num_cpus"] for each in deployments) < 1.5


def test_compose_is_well_formed(compose: dict[str, Any]) -> None:
    jsonschema.validate(compose, COMPOSE)
    assert set(compose["services"]) == {"kafka", "postgres", "prometheus", "grafana"}


def test_what_compose_mounts_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), source
            elif not source.startswith("/"):
                assert source in compose["volumes"], source


def test_rules_and_board_use_metrics_that_there_are() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    board = json.loads((ROOT / "deploy" / "grafana" / "boards" / "headrace.json").read_text())
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    scraped = set(re.findall(r"^(headrace_\w+)[{ ]", render(a_status()).decode(), re.MULTILINE))
    used = {name for expression in expressions for name in re.findall(r"headrace_\w+", expression)}
    assert used - scraped == set()


def test_every_requirement_is_pinned() -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    for line in filter(None, lines):
        assert re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\w.]+", line), line


def a_status() -> dict[str, Any]:
    spread = {"count": 1, "p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0}
    numbers = ("lag", "offset", "watermark_ms", "keys", "state_bytes", "checkpoint_age_ms", "checkpoint_bytes")
    partition = {"partition": 0, **dict.fromkeys(numbers, 1)}
    return {
        "pipeline": "fraud",
        "ready": True,
        "totals": dict.fromkeys(COUNTS, 0),
        "breakers": [{"model": "risk", "worker": "stream-1", "state": "open"}],
        "partitions": [partition],
        "sinks": [{"sink": "holds", "partition": 0, "lag": 0, "retries": 0, "breaker": "closed"}],
        "workers": [{"kind": "stream"}],
        "stages": {stage: {**spread, "budget_ms": 10, "alert": False} for stage in STAGES},
        "histograms": {stage: Histogram().to_dict() for stage in STAGES},
    }

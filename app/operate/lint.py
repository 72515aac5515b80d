"""Finds what is wrong with a whole Serve config; Serve itself accepts unknown keys in silence."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from app.actions.build import build_sinks
from app.config import (
    PipelineArgs,
    Settings,
    WorkerTuning,
    explain,
    inner_model,
    join_path,
    known_keys,
    load_pipeline,
    unknown_key,
)
from app.errors import ConfigError, HeadraceError
from app.operate.config_file import BUILDER
from app.pipeline import Pipeline, model_class

OWN_DEPLOYMENTS: dict[str, type[Settings] | None] = {
    "Ingress": None,
    "StreamWorker": WorkerTuning,
    "ActionWorker": None,
    "Coordinator": None,
}
"""The deployments that every pipeline has, and what each takes as its user_config."""
SCALING = "app.runtime.scaling:ScaleByLag"


def lint(config: Mapping[str, Any]) -> list[str]:
    """One line for each thing that is wrong, with its key, its value and the remedy; [] when all is well."""
    problems = [*_unknown_keys(config, ServeDeploySchema, ""), *_wrong_values(config, ServeDeploySchema, "")]
    applications = config.get("applications")
    for at, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, Mapping):
            problems += _lint_application(application, f"applications[{at}]")
    return list(dict.fromkeys(problems))


def _unknown_keys(values: Any, model: type[BaseModel], path: str) -> Iterator[str]:
    """Walks the values as the model's fields nest: into models, and into lists of them."""
    if isinstance(values, list):
        for at, each in enumerate(values):
            yield from _unknown_keys(each, model, join_path(path, at))
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        if key not in model.model_fields:
            yield unknown_key(path, key, known_keys(model))
        elif key == "runtime_env" and isinstance(value, Mapping):
            yield from _unknown_runtime_env(value, join_path(path, key))
        elif inner := inner_model(model.model_fields[key].annotation):
            yield from _unknown_keys(value, inner, join_path(path, key))


def _unknown_runtime_env(values: Mapping[str, Any], path: str) -> Iterator[str]:
    known = sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_"))
    yield from (unknown_key(path, key, known) for key in values if key not in known)


def _wrong_values(values: Any, model: type[BaseModel], path: str) -> list[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return explain(error, model, values, path)
    except (ImportError, AttributeError):
        return []  # a scaling policy that cannot be imported, of which _lint_scaling says where it stands
    return []


def _lint_application(application: Mapping[str, Any], path: str) -> Iterator[str]:
    deployments = application.get("deployments")
    for at, deployment in enumerate(deployments if isinstance(deployments, list) else ()):
        scaling = deployment.get("autoscaling_config") if isinstance(deployment, Mapping) else None
        if isinstance(scaling, Mapping):
            yield from _lint_scaling(scaling, f"{path}.deployments[{at}].autoscaling_config")
    yield from _lint_import_path(application.get("import_path"), join_path(path, "import_path"))
    if application.get("import_path") == BUILDER:
        yield from _lint_args(application, path)


def _lint_scaling(scaling: Mapping[str, Any], path: str) -> Iterator[str]:
    """A policy of its own is imported, and a class made, as Serve's controller would."""
    policy = scaling.get("policy")
    function, where = policy.get("policy_function") if isinstance(policy, Mapping) else None, f"{path}.policy"
    if isinstance(policy, Mapping) and isinstance(function, str):
        try:
            made = _import(function)
            if isinstance(made, type):
                made(**policy.get("policy_kwargs", {}))
        except (ImportError, AttributeError) as error:
            yield f"{where}.policy_function is {function!r}, but {error}; stream workers' is {SCALING!r}"
            return
        except (TypeError, ValueError) as error:
            yield f"{where}.policy_kwargs: {error}"
    yield from _wrong_values(scaling, AutoscalingConfig, path)


def _lint_import_path(import_path: object, path: str) -> Iterator[str]:
    if not isinstance(import_path, str):
        return
    try:
        _import(import_path)
    except (ImportError, AttributeError, ValueError) as error:
        yield f"{path} is {import_path!r}, but {error}; a pipeline's is {BUILDER!r}"


def _import(import_path: str) -> Any:
    module, _, attribute = import_path.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _lint_args(application: Mapping[str, Any], path: str) -> Iterator[str]:
    where = join_path(path, "args")
    try:
        args = PipelineArgs.load(application.get("args") or {}, where)
    except ConfigError as error:
        yield from str(error).splitlines()
        return
    try:
        pipeline = load_pipeline(args.pipeline)
    except HeadraceError as error:
        yield join_path(where, error)
        return
    yield from _lint_sinks(args, pipeline, where)
    known = OWN_DEPLOYMENTS | {each.name: model_class(each).tuning for each in pipeline.models.values()}
    deployments = application.get("deployments")
    for at, deployment in enumerate(deployments if isinstance(deployments, list) else ()):
        if isinstance(deployment, Mapping):
            yield from _lint_deployment(deployment, known, f"{path}.deployments[{at}]")


def _lint_sinks(args: PipelineArgs, pipeline: Pipeline[Any], path: str) -> Iterator[str]:
    try:
        build_sinks(args.name, pipeline, args.sinks)
    except HeadraceError as error:
        yield from (join_path(path, line) for line in str(error).splitlines())


def _lint_deployment(
    deployment: Mapping[str, Any], known: Mapping[str, type[Settings] | None], path: str
) -> Iterator[str]:
    name, user_config = deployment.get("name"), deployment.get("user_config")
    if name not in known:
        yield f"{path}.name is {name!r}; the pipeline's deployments are {', '.join(known)}"
        return
    tuning = known[str(name)]
    if tuning is None and user_config:
        yield f"{path}.user_config: {name} takes none; remove it"
    elif tuning is not None and isinstance(user_config, Mapping):
        try:
            tuning.load(user_config, join_path(path, "user_config"))
        except ConfigError as error:
            yield from str(error).splitlines()

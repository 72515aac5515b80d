"""Serve config files: reading one, and finding in it the application that runs a pipeline."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from app.config import PipelineArgs
from app.errors import ConfigError

BUILDER = "app.main:build"
"""The import_path of every application that runs a pipeline."""


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice; PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} stands twice in one place; remove one", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_config(file: Path) -> dict[str, Any]:
    """Raises ConfigError when the file is missing, no YAML, or holds no keys."""
    try:
        config = yaml.load(file.read_bytes(), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; give the path of a Serve config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds {type(config).__name__}, not the keys of a Serve config")
    return config


def find_application(config: dict[str, Any], pipeline: str) -> dict[str, Any]:
    """The application whose pipeline has this name. Raises ConfigError when there is none."""
    names = []
    for application in config.get("applications") or ():
        if application.get("import_path") == BUILDER:
            names.append(PipelineArgs.load(application.get("args") or {}, "args").name)
            if names[-1] == pipeline:
                return dict(application)
    raise ConfigError(f"no application runs the pipeline {pipeline!r}; there is {', '.join(names) or 'none'}")


def read_args(file: Path, pipeline: str, bootstrap: str | None = None) -> PipelineArgs:
    """The validated `args` of the application that runs `pipeline`, with other brokers where `bootstrap` names them."""
    values = find_application(read_config(file), pipeline)["args"]
    if bootstrap is not None:
        values = values | {"kafka": values["kafka"] | {"bootstrap": bootstrap}}
    return PipelineArgs.load(values, f"{file}: args")

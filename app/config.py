"""What a deployment sets in YAML: the `args` of its application, and the `user_config` that may change.

Everything is checked before anything starts. A message names the key by its path, the value, and the remedy.
"""

import difflib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.errors import ConfigError
from app.latency import Stage
from app.sources import KafkaSettings
from app.units import format_duration, parse_duration_ms

OFF = ("off", False)
"""What switches something off, in place of its value; unquoted, YAML reads off as false."""
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
SECRET = re.compile(r"password|secret|token|credential|dsn", re.IGNORECASE)


def _duration_ms(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a duration; write a number and a unit in quotes, like '10m'")
    try:
        return parse_duration_ms(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


DurationMs = Annotated[int, BeforeValidator(_duration_ms)]
"""Text like "100ms" or "10m" in the YAML, milliseconds in the program."""


def _duration_or_off(value: object) -> int | None:
    return None if value in OFF else _duration_ms(value)


OptionalDurationMs = Annotated[int | None, BeforeValidator(_duration_or_off)]
"""A duration, or off."""

LogName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
"""A name that Kafka takes for a topic."""


OnChange = Literal["rebuild", "rebuild_partly", "refuse"]


class Settings(BaseModel):
    """A part of the YAML: immutable, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def load(cls, values: Mapping[str, Any], path: str = "") -> Self:
        """Expands `${NAME}` and `${NAME:-default}` from the environment and checks every value.

        `path` leads to `values` in the file and stands in front of every key in a message. Raises ConfigError
        with one line for each wrong value.
        """
        expanded = expand_environment(values, os.environ, path)
        try:
            return cls.model_validate(expanded)
        except ValidationError as error:
            raise ConfigError("\n".join(explain(error, cls, expanded, path))) from error


class Topics(Settings):
    """The Kafka topics of a pipeline, all with the source's number of partitions."""

    source: LogName
    decisions: LogName
    dead_letters: LogName
    late: LogName
    partitions: int = Field(default=4, gt=0, le=10_000)
    """How many each topic gets when it is created; a topic that exists keeps what it has."""
    create: bool = True
    """Create at start what does not exist; and when the source gets more partitions, also while running, add them to
    the logs. New ones begin at their first record; a key that moves to one starts without its past."""

    @property
    def logs(self) -> tuple[str, ...]:
        """What the pipeline itself writes, the decision log last."""
        return self.dead_letters, self.late, self.decisions

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [self.source, self.decisions, self.dead_letters, self.late]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two topics are called {name!r}; give source, decisions, dead_letters and late one each"
                )
        return self


class Checkpoints(Settings):
    """Where checkpoints are kept: a local path, or a URI of any pyarrow filesystem (s3://…, gs://…, hdfs://…).

    keep:      how many of each partition; the older ones are for when the newest is damaged.
    on_change: when declared features change, their state is made from the source again (rebuild), also where the
               source no longer holds all that they look back on (rebuild_partly), or nothing starts (refuse).
    """

    uri: str = Field(min_length=1)
    keep: int = Field(default=2, ge=1, le=1_000)
    on_change: OnChange = "rebuild"


class PipelineArgs(Settings):
    """The `args` of an application: which pipeline, on which topics. A change restarts it all.

    pipeline: module and attribute, like "app.pipelines.fraud:fraud".
    name:     names the topics, keys and metrics; the attribute if not given.
    start:    where a partition begins that has no checkpoint yet.
    deduplicate: how long, in event time, an event's id is remembered: a record that has it again is dropped.
    sinks:    per name of a sink in the pipeline, its address and how to get in.
    budgets:  stage → the p99 over a minute above which it is an alert.
    """

    pipeline: str = Field(pattern=r"^[\w.]+:\w+$")
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")
    kafka: KafkaSettings
    topics: Topics
    start: Literal["earliest", "latest"] = "earliest"
    allowed_lateness_ms: DurationMs = Field(default=parse_duration_ms("1h"), alias="allowed_lateness")
    max_ahead_ms: DurationMs = Field(default=parse_duration_ms("1h"), alias="max_ahead")
    deduplicate_ms: OptionalDurationMs = Field(default=parse_duration_ms("1h"), alias="deduplicate")
    checkpoints: Checkpoints
    sinks: Mapping[str, Mapping[str, Any]] = {}
    budgets_ms: Mapping[Stage, DurationMs] = Field(default={}, alias="budgets")

    @model_validator(mode="before")
    @classmethod
    def _name_after_pipeline(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("name", str(values.get("pipeline")).rpartition(":")[2])
        topics = values.get("topics")
        if isinstance(topics, Mapping):
            logs = {"decisions": f"{name}.decisions", "dead_letters": f"{name}.dead-letters", "late": f"{name}.late"}
            topics = {**logs, **topics}
        return {"name": name, **values, "topics": topics} if "topics" in values else {"name": name, **values}

    @model_validator(mode="after")
    def _remembers_until_late(self) -> Self:
        if self.deduplicate_ms is not None and self.deduplicate_ms < self.allowed_lateness_ms:
            short, lateness = format_duration(self.deduplicate_ms), format_duration(self.allowed_lateness_ms)
            raise ValueError(
                f"deduplicate is {short}, allowed_lateness {lateness}: a copy that comes in between would be decided "
                f"again; write at least {lateness}, or off"
            )
        return self


class Pace(Settings):
    """The bounds of the time between two micro-batches. In between it adapts itself to the load."""

    shortest_ms: DurationMs = Field(default=parse_duration_ms("10ms"), alias="shortest")
    longest_ms: DurationMs = Field(default=parse_duration_ms("50ms"), alias="longest")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shortest_ms > self.longest_ms:
            raise ValueError(f"shortest is {self.shortest_ms} ms, longest {self.longest_ms} ms; swap or change them")
        return self


class BreakerTuning(Settings):
    """When a model that fails is left alone: after `failures` failed calls in a row, for `pause` each time."""

    failures: int = Field(default=5, ge=1, le=1_000)
    pause_ms: DurationMs = Field(default=parse_duration_ms("1s"), alias="pause")


class WorkerTuning(Settings):
    """StreamWorker's `user_config`: what `serve deploy` changes in a running worker, without a restart.

    max_in_flight: calls to the models under way at once; what arrives meanwhile makes the next micro-batch.
    max_batch:     rows of a micro-batch.
    model_timeout: after this the fallback decides, or the call is repeated when the pipeline has none.
    deadline:      from an event's append to its decision; the pipeline's own if not given. When it is near, the
                   fallback decides.
    overdue:       what becomes of events that are past their deadline when they are read, as after an outage: the
                   models score them late, or the fallback decides them at once.
    breaker:       when a model that fails is not asked any more.
    """

    pace: Pace = Pace()
    max_in_flight: int = Field(default=2, ge=1, le=64)
    max_batch: int = Field(default=4096, ge=1, le=1_000_000)
    model_timeout_ms: DurationMs = Field(default=parse_duration_ms("1s"), alias="model_timeout")
    deadline_ms: DurationMs | None = Field(default=None, alias="deadline")
    overdue: Literal["score", "fallback"] = "score"
    breaker: BreakerTuning = BreakerTuning()
    checkpoint_interval_ms: DurationMs = Field(default=parse_duration_ms("10s"), alias="checkpoint_interval")


def load_pipeline(reference: str) -> Any:
    """Imports the pipeline that "module:attribute" names. Raises ConfigError when there is none."""
    from app.pipeline import Pipeline

    module, _, attribute = reference.partition(":")
    try:
        pipeline = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"pipeline is {reference!r}, but {error}; write module and attribute of a Pipeline, "
            "like 'app.pipelines.fraud:fraud'"
        ) from error
    if not isinstance(pipeline, Pipeline):
        raise ConfigError(f"pipeline is {reference!r}, which is a {type(pipeline).__name__} and no Pipeline")
    return pipeline


def expand_environment(value: Any, environment: Mapping[str, str], path: str = "") -> Any:
    """Replaces `${NAME}` and `${NAME:-default}` in every text of nested dicts and lists.

    As in a shell, the default also stands for a variable that is set to nothing. Raises ConfigError, with the
    key's path, for a variable that is not set and has no default.
    """
    if isinstance(value, Mapping):
        return {key: expand_environment(each, environment, join_path(path, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [expand_environment(each, environment, join_path(path, at)) for at, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        name, default = found.groups()
        if default is not None:
            return environment.get(name) or default
        if name not in environment:
            raise ConfigError(f"{path} is {value!r}, and {name} is not set; set it, or write ${{{name}:-default}}")
        return environment[name]

    if "${" in VARIABLE.sub("", value):
        raise ConfigError(f"{path} is {value!r}; write a variable as ${{NAME}} or ${{NAME:-default}}")
    return VARIABLE.sub(replacement, value)


def join_path(path: str, key: object) -> str:
    """`join_path("applications[0]", "args") == "applications[0].args"`; numbers become indices."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else str(key)


def unknown_key(path: str, key: object, known: Iterable[str]) -> str:
    """The message for a key that nobody reads, with the known key it is most like."""
    known = list(known)
    alike = difflib.get_close_matches(str(key), known, n=1)
    remedy = f"did you mean {alike[0]!r}?" if alike else f"known here: {', '.join(known)}"
    return f"{join_path(path, key)}: nothing is called {str(key)!r} here; {remedy}"


def explain(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], path: str = "") -> list[str]:
    """Says in one line per wrong key which value it has, and what to write instead.

    `values` are what `model` was made from; `path` leads to them in the file.
    """
    lines: dict[str, str] = {}
    for each in error.errors():
        where, parent = _locate(each, model, values, path)
        if where in lines:  # each alternative of a union complains for itself
            lines[where] += f", or {_remedy(each)}" * (_remedy(each) not in lines[where])
        elif each["type"] == "extra_forbidden":
            lines[where] = unknown_key(where.rpartition(".")[0], each["loc"][-1], known_keys(parent))
        elif each["type"] == "missing":
            lines[where] = f"{where} is missing; write it"
        elif each["type"] == "value_error":
            lines[where] = f"{where or 'the file'}: {each['ctx']['error']}"
        else:
            value = "(not shown)" if SECRET.search(where) else repr(each["input"])
            lines[where] = f"{where} is {value}; {_remedy(each)}"
    return list(lines.values())


def known_keys(model: type[BaseModel]) -> list[str]:
    """The keys of a model as they stand in the YAML."""
    return [field.alias or name for name, field in model.model_fields.items()]


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a field's type holds, also as an item of a list or one of several alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(inner_model, get_args(annotation))), None)


def _remedy(error: ErrorDetails) -> str:
    if error["type"] == "string_pattern_mismatch":
        return f"it should match {error['ctx']['pattern']}"
    return re.sub(r" or instance of \w+", "", error["msg"]).replace("Input should", "it should")


def _locate(error: ErrorDetails, model: type[BaseModel], values: Any, path: str) -> tuple[str, type[BaseModel]]:
    """The path of an error in the file, and the model its key belongs to.

    Pydantic also puts the names of alternatives into `loc`, which stand in no file.
    """
    for part in error["loc"]:
        if part in values if isinstance(values, Mapping) else isinstance(values, list) and isinstance(part, int):
            path, values = join_path(path, part), values[part]
            model = _field_model(model, part) or model
    if error["type"] == "missing":
        path = join_path(path, error["loc"][-1])
    return path, model


def _field_model(model: type[BaseModel], key: int | str) -> type[BaseModel] | None:
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return inner_model(fields.get(str(key)))

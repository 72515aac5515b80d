"""What the API answers, as types: they check what goes out, and are the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.breaker import BreakerState
from app.latency import Stage
from app.log.frame import Reason

Scalar = str | int | float | bool | None


class Delivery(BaseModel):
    """How far one sink is with one action."""

    sink: str
    state: Literal["done", "pending", "off", "unknown"] = Field(
        description="done: the sink has applied this offset; off: the sink is switched off; unknown: the coordinator "
        "does not answer, or no worker reports on the sink"
    )


class ActionDocument(BaseModel):
    """An action that the decision asked for."""

    type: str
    key: str = Field(description="the idempotency key that every sink gets")
    fields: dict[str, Any]
    deliveries: list[Delivery]


class DecisionDocument(BaseModel):
    """One event, what was known about it, and what was decided. Missing numbers are null."""

    event_id: str
    time_ms: int = Field(description="event time, ms since the epoch")
    topic: str = Field(description="the source topic")
    partition: int = Field(description="of the source topic")
    offset: int = Field(description="in the source topic")
    log_offset: int = Field(description="of the frame in the same partition of the decision log")
    event: dict[str, Scalar]
    features: dict[str, Any]
    scores: dict[str, Any]
    versions: dict[str, str] = Field(description="of each model that answered")
    reason: Reason = Field(
        description="what decided: rules alone, rules with every model's answer, or the fallback and why"
    )
    actions: list[ActionDocument]
    deliveries: list[Delivery] = Field(description="of the decision itself, where sinks want every decision")
    times_ms: dict[str, float] = Field(description="when each stage was reached, ms since the epoch")
    stages_ms: dict[Stage, float] = Field(description="how long each stage took")


class HeaderDocument(BaseModel):
    """A header of a record: text, or hex behind 0x where it is none."""

    name: str
    value: str | None


class DeadLetterDocument(BaseModel):
    """A record that became no decision, or a delivery that its sink refused. Bytes are text, or hex behind 0x."""

    id: str = Field(description="what `python -m app dead-letters` calls it")
    state: Literal["open", "in doubt"] = Field(description="in doubt: a replay was interrupted; run it again")
    cause: str = Field(description="the class of the reason: parse, value, key, time, late, decide, model, sink, other")
    reason: str
    sink: str | None = Field(description="who refused the delivery; null when the stream rejected the record")
    topic: str = Field(description="the source topic")
    partition: int = Field(description="of the source topic")
    offset: int = Field(description="in the source topic")
    append_ms: int | None = Field(description="when the event was appended to the source, ms since the epoch")
    written_ms: int = Field(description="when it became a dead letter, ms since the epoch")
    place: str = Field(description="topic/partition/offset of the letter itself")
    attempts: int = Field(description="before this letter: ways through the pipeline, or tries of the sink")
    replays: int = Field(description="how often it was sent again")
    idempotency_key: str
    key: str | None
    value: str | None = Field(description="the first 2,000 characters")
    value_bytes: int = Field(description="the size of the whole value")
    headers: list[HeaderDocument] = Field(description="of the record that was rejected")
    stack: str | None = Field(description="of the exception, where one was the reason")


class Answer(BaseModel):
    """What became of one posted event."""

    event_id: str
    partition: int
    offset: int
    decision: DecisionDocument | None = None
    duplicate: bool = Field(
        default=False,
        description="the id had come before: `decision` is the one on its first copy, null if that is not in memory",
    )
    rejected: str | None = Field(default=None, description="why the stream put the event to the dead letters")


class Rejection(BaseModel):
    """An event that does not validate, by its place in the request."""

    at: int
    reason: str


class Problem(BaseModel):
    """Why a request failed, and what to do about it."""

    detail: str


class InvalidEvents(Problem):
    """Nothing of the request was appended."""

    events: list[Rejection]


class Undecided(Problem):
    """The events are in the log and will be decided; `events` says where, and what is decided already."""

    events: list[Answer]


class RejectedEvents(Problem):
    """The events are in the log, and the stream refused at least one of them."""

    events: list[Answer]


class DuplicateEvents(Problem):
    """The events are in the log. At least one is a copy, and the decision on its first copy is not in memory."""

    events: list[Answer]


class PartitionStatus(BaseModel):
    """One partition of the source topic. Numbers are null while no worker has reported them."""

    partition: int
    worker: str | None
    offset: int | None = Field(description="the next one to be decided")
    end_offset: int | None
    lag: int | None = Field(description="events that are appended and not decided")
    watermark_ms: int | None
    events_per_s: float | None
    keys: int | None
    state_bytes: int | None
    checkpoint_age_ms: float | None = Field(description="for how long the newest checkpoint has lacked something")
    checkpoint_bytes: int | None = Field(description="null until its worker has written one")
    checkpoint_error: str | None = Field(description="why checkpoints are not written; they are tried again")


class WorkerStatus(BaseModel):
    """One replica that sends heartbeats."""

    id: str
    kind: Literal["stream", "action"]
    heartbeat_age_ms: float
    busy: float | None = Field(description="share of the time, 0 to 1")
    partitions: list[Any]
    error: str | None = Field(description="why it cannot work on a partition that it was given")


class Throughput(BaseModel):
    events_per_s: float
    decisions_per_s: float


class Totals(BaseModel):
    """Since the coordinator started."""

    events: int
    decisions: int
    dead_letters: int = Field(description="late events included")
    actions: int
    overdue: int = Field(description="events that were past their deadline when they were read")
    duplicates: int = Field(description="copies of events, which are no events themselves")
    late: int = Field(description="behind the watermark")
    fallbacks: int = Field(description="events decided by the fallback: the sum of those below")
    fallback_failed: int = Field(description="a model raised, died, or gave no usable answer")
    fallback_late: int = Field(description="a model had not answered when the deadline was near")
    fallback_shed: int = Field(description="a model's queue was full")
    fallback_open: int = Field(description="a model had failed so often that it was not asked")
    fallback_overdue: int = Field(description="past the deadline when read, and `overdue` is fallback")


class BreakerStatus(BaseModel):
    """Whether a worker asks a model, or leaves it alone because it failed again and again."""

    model: str
    worker: str
    state: BreakerState


class Spread(BaseModel):
    """A distribution of latencies; the quantiles are null without events."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class StageStatus(Spread):
    """A stage since the coordinator started, and over the last minute against its budget."""

    last_minute: Spread
    budget_ms: int | None
    alert: bool


class SinkStatus(BaseModel):
    """How far a sink is with one partition of the decision log."""

    sink: str
    partition: int
    worker: str | None
    applied: int | None = Field(description="the last source offset whose actions it has")
    lag: int | None = Field(description="records of the decision log that it has not read")
    retries: int = Field(description="failures in a row; 0 while all goes well")
    breaker: BreakerState = Field(
        description="open: the sink is away, and nothing is tried for a while; half-open: one partition is trying"
    )
    error: str | None


class AlertStatus(BaseModel):
    """A stage whose p99 over the last minute is above its budget."""

    stage: Stage
    budget_ms: int
    since_ms: int
    p99_ms: float


class Status(BaseModel):
    """A pipeline at a glance."""

    pipeline: str
    time_ms: int
    ready: bool = Field(description="every partition has an owner")
    partitions: list[PartitionStatus]
    workers: list[WorkerStatus]
    throughput: Throughput
    totals: Totals
    stages: dict[Stage, StageStatus]
    breakers: list[BreakerStatus]
    sinks: list[SinkStatus]
    alerts: list[AlertStatus]


class Health(BaseModel):
    """`detail` says what is missing."""

    ok: bool
    detail: str | None

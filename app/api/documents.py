"""What the API answers, as types: they check what goes out, and are the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.actions.breaker import BreakerState
from app.latency import Stage

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
    reason: Literal["rules", "model", "fallback"] = Field(
        description="what decided: rules alone, rules with every model's answer, or the fallback"
    )
    actions: list[ActionDocument]
    deliveries: list[Delivery] = Field(description="of the decision itself, where sinks want every decision")
    times_ms: dict[str, float] = Field(description="when each stage was reached, ms since the epoch")
    stages_ms: dict[Stage, float] = Field(description="how long each stage took")


class Answer(BaseModel):
    """What became of one posted event."""

    event_id: str
    partition: int
    offset: int
    decision: DecisionDocument | None = None
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


class WorkerStatus(BaseModel):
    """One replica that sends heartbeats."""

    id: str
    kind: Literal["stream", "action"]
    heartbeat_age_ms: float
    busy: float | None = Field(description="share of the time, 0 to 1")
    partitions: list[Any]


class Throughput(BaseModel):
    events_per_s: float
    decisions_per_s: float


class Totals(BaseModel):
    """Since the coordinator started."""

    events: int
    decisions: int
    dead_letters: int
    actions: int
    fallbacks: int


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
    sinks: list[SinkStatus]
    alerts: list[AlertStatus]


class Health(BaseModel):
    """`detail` says what is missing."""

    ok: bool
    detail: str | None

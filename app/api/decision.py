"""From a row of the decision log to the document that the API answers."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from app.actions.action import Action, Decision, Sink, idempotency_key
from app.api.documents import ActionDocument, DecisionDocument, Delivery
from app.api.recent import Row
from app.event import Columns
from app.latency import STAGES
from app.log.frame import REASONS

SinksByAction = Mapping[type[Action], Sequence[Sink]]


class Sinks:
    """Which sinks carry out which actions, which of them are `off`, and how far each is with each partition."""

    def __init__(self, by_action: SinksByAction, off: Collection[str], status: Mapping[str, Any] | None) -> None:
        self._off = off
        self._names = {action.__name__: [sink.name for sink in sinks] for action, sinks in by_action.items()}
        reports = status["sinks"] if status else []
        self._applied = {(each["sink"], each["partition"]): each["applied"] for each in reports}

    def deliveries(self, action: str, partition: int, offset: int) -> list[Delivery]:
        return [
            Delivery(sink=name, state=self._state(name, partition, offset))  # type: ignore[arg-type]
            for name in self._names.get(action, ())
        ]

    def _state(self, sink: str, partition: int, offset: int) -> str:
        if sink in self._off:
            return "off"
        if (sink, partition) not in self._applied:
            return "unknown"
        applied = self._applied[sink, partition]
        return "done" if applied is not None and applied >= offset else "pending"


def describe(row: Row, sinks: Sinks) -> DecisionDocument:
    """The whole document of one decision."""
    header, decided = row.frame.header, row.frame.decided
    offset = int(decided.offsets[row.at])
    times_ms = _times_ms(row)
    return DecisionDocument(
        event_id=decided.event["id"][row.at],
        time_ms=int(decided.event["time"][row.at]),
        topic=header.topic,
        partition=header.partition,
        offset=offset,
        log_offset=row.log_offset,
        event=_values(decided.event, row.at),
        features=_values(decided.features, row.at),
        scores=_values(decided.scores, row.at),
        versions=dict(decided.versions),
        reason=REASONS[decided.reasons[row.at]],
        actions=_actions(row, offset, sinks),
        deliveries=sinks.deliveries(Decision.__name__, header.partition, offset),
        times_ms=times_ms,
        stages_ms={
            stage: after - before for stage, (before, after) in zip(STAGES, pairwise(times_ms.values()), strict=False)
        },
    )


def _times_ms(row: Row) -> dict[str, float]:
    """When the event reached the end of each stage: the append, then `fetched` to `logged` of STAGES."""
    stages = row.frame.stages
    return {
        "appended": float(row.frame.decided.append_ms[row.at]),
        "fetched": stages.fetched_ms,
        "features": stages.featured_ms,
        "queued": stages.queued_ms,
        "scored": stages.scored_ms,
        "decided": stages.decided_ms,
        "logged": float(row.logged_ms),
    }


def _actions(row: Row, offset: int, sinks: Sinks) -> list[ActionDocument]:
    header, encoded = row.frame.header, row.frame.decided.actions[row.at]
    actions: list[dict[str, Any]] = msgspec.json.decode(encoded) if encoded else []
    return [
        ActionDocument(
            type=fields["type"],
            key=idempotency_key(header.pipeline, header.partition, offset, index),
            fields={name: value for name, value in fields.items() if name != "type"},
            deliveries=sinks.deliveries(fields["type"], header.partition, offset),
        )
        for index, fields in enumerate(actions)
    ]


def _values(columns: Columns, at: int) -> dict[str, Any]:
    return {name: _plain(column[at]) for name, column in columns.items()}


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN, a missing number, becomes null."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain

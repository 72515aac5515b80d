"""From a config's args to a Serve application: `import_path: app.main:build`."""

from collections.abc import Sequence
from typing import Any

from ray.serve import Application

from app.actions.build import build_sinks
from app.api.ingress import Ingress
from app.config import PipelineArgs, load_pipeline
from app.runtime.action_worker import ActionWorker
from app.runtime.coordinator import Coordinator
from app.runtime.stream_worker import StreamWorker
from app.sources import open_admin

LOG_CONFIG = {"max.message.bytes": str(16 << 20)}
"""A frame of 4,096 rows with wide events is above Kafka's default of 1 MB."""


def build(args: dict[str, Any]) -> Application:
    """Every moving part of one pipeline as deployments of one application.

    Makes the topics that are missing, unless `topics.create` is false. Raises ConfigError, which names key, value and
    remedy, and BrokerError when the cluster does not answer.
    """
    settings = PipelineArgs.load(args, "args")
    pipeline = load_pipeline(settings.pipeline)
    sinks = build_sinks(settings.name, pipeline, settings.sinks)
    if settings.topics.create:
        create_topics(settings, [sink.topic for sink in sinks if sink.topic])
    coordinator = Coordinator.bind(settings)  # type: ignore[attr-defined]
    models = {name: model.bind() for name, model in pipeline.models.items()}
    workers = StreamWorker.bind(settings, coordinator, models)  # type: ignore[attr-defined]
    actions = ActionWorker.bind(settings, coordinator)  # type: ignore[attr-defined]
    return Ingress.bind(settings, coordinator, workers, actions)  # type: ignore[attr-defined]


def create_topics(settings: PipelineArgs, published: Sequence[str]) -> None:
    """Source, logs and what sinks publish to, with the broker's append time as each record's timestamp.

    The logs get as many partitions as the source has. Topics that exist are left as they are.
    """
    topics = settings.topics
    admin = open_admin(settings.kafka)
    try:
        partitions = admin.ensure_topics({topics.source: topics.partitions})[topics.source]
        admin.ensure_topics(dict.fromkeys(topics.logs, partitions), LOG_CONFIG)
        admin.ensure_topics(dict.fromkeys(published, partitions))
    finally:
        admin.close()

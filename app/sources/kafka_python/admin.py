"""See app.sources.client.Admin."""

from collections.abc import Collection, Mapping
from typing import Any

import kafka
from kafka import errors

from app.sources.client import TOPIC_TIMEOUT_S
from app.sources.failures import no_such_topic, wait_until
from app.sources.kafka_python.link import Link, common_options
from app.sources.settings import KafkaSettings


class KafkaPythonAdmin:
    def __init__(self, settings: KafkaSettings) -> None:
        self._link = Link(settings)
        self._client = self._link.open(kafka.KafkaAdminClient, common_options(settings, kafka.KafkaAdminClient))

    def ensure_topics(
        self, partitions_by_topic: Mapping[str, int], config: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        existing = self.topics()
        topic_config = {"message.timestamp.type": "LogAppendTime", **(config or {})}
        missing = {
            name: {"num_partitions": count, "configs": topic_config}
            for name, count in partitions_by_topic.items()
            if name not in existing
        }
        with self._link.request():
            if missing:
                answer = self._client.create_topics(missing, raise_errors=False)
                raise_first_error(answer["topics"], harmless=errors.TopicAlreadyExistsError)
            self._client.wait_for_topics(list(partitions_by_topic), timeout_ms=TOPIC_TIMEOUT_S * 1_000)
        counts = self.topics()
        return {name: counts[name] for name in partitions_by_topic}

    def ensure_partitions(self, partitions_by_topic: Mapping[str, int]) -> dict[str, int]:
        existing = self.topics()
        if missing := partitions_by_topic.keys() - existing.keys():
            raise no_such_topic(self._link.bootstrap, min(missing))
        growing = {name: count for name, count in partitions_by_topic.items() if existing[name] < count}
        if growing:
            with self._link.request():
                answer = self._client.create_partitions(growing, raise_errors=False).to_dict()
                # Refused where another process was faster.
                raise_first_error(answer["results"], harmless=errors.InvalidPartitionsError)
            wait_until(
                lambda: all(self.topics().get(name, 0) >= count for name, count in growing.items()),
                TOPIC_TIMEOUT_S,
                f"topics {', '.join(growing)} do not have the partitions they were given",
            )
        with self._link.request():
            self._client.wait_for_topics(list(partitions_by_topic), timeout_ms=TOPIC_TIMEOUT_S * 1_000)
        counts = self.topics()
        return {name: counts[name] for name in partitions_by_topic}

    def topics(self) -> dict[str, int]:
        with self._link.request():
            return {topic["name"]: len(topic["partitions"]) for topic in self._client.describe_topics()}

    def delete_topics(self, names: Collection[str]) -> None:
        with self._link.request():
            answer = self._client.delete_topics(list(names), raise_errors=False)
            raise_first_error(answer["topics"], harmless=errors.UnknownTopicOrPartitionError)
        wait_until(
            lambda: not self.topics().keys() & set(names),
            TOPIC_TIMEOUT_S,
            f"topics {', '.join(names)} are not gone",
        )

    def close(self) -> None:
        self._client.close()


def raise_first_error(answers: Collection[Mapping[str, Any]], harmless: type[Exception]) -> None:
    for answer in answers:
        kind = errors.for_code(answer["error_code"])
        if kind not in (errors.NoError, harmless):
            raise kind(f"{answer['name']}: {answer['error_message']}")

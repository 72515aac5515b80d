"""See app.sources.client.Admin."""

from collections.abc import Collection, Mapping
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from app.sources.client import REQUEST_TIMEOUT_S, TOPIC_TIMEOUT_S
from app.sources.confluent.link import Link, common_options
from app.sources.failures import no_such_topic, wait_until
from app.sources.settings import KafkaSettings


class ConfluentAdmin:
    def __init__(self, settings: KafkaSettings) -> None:
        self._link = Link(settings)
        self._client = self._link.open(AdminClient, common_options(settings))

    def ensure_topics(
        self, partitions_by_topic: Mapping[str, int], config: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        existing = self.topics()
        topic_config = {"message.timestamp.type": "LogAppendTime", **(config or {})}
        missing = [
            NewTopic(name, count, config=topic_config)
            for name, count in partitions_by_topic.items()
            if name not in existing
        ]
        if missing:
            self._finish(self._client.create_topics(missing), harmless=ck.KafkaError.TOPIC_ALREADY_EXISTS)
        return self._wait_for_leaders(dict.fromkeys(partitions_by_topic, 1))

    def ensure_partitions(self, partitions_by_topic: Mapping[str, int]) -> dict[str, int]:
        existing = self.topics()
        if missing := partitions_by_topic.keys() - existing.keys():
            raise no_such_topic(self._link.bootstrap, min(missing))
        growing = [NewPartitions(name, count) for name, count in partitions_by_topic.items() if existing[name] < count]
        if growing:
            # Refused where another process was faster.
            self._finish(self._client.create_partitions(growing), harmless=ck.KafkaError.INVALID_PARTITIONS)
        return self._wait_for_leaders(partitions_by_topic)

    def _wait_for_leaders(self, at_least: Mapping[str, int]) -> dict[str, int]:
        """Returns how many partitions each topic has when it has so many and a leader for each."""
        wait_until(
            lambda: all(has_leaders(self._describe().get(name), count) for name, count in at_least.items()),
            TOPIC_TIMEOUT_S,
            f"topics {', '.join(at_least)} have no leader for each partition",
        )
        counts = self.topics()
        return {name: counts[name] for name in at_least}

    def _finish(self, futures: Mapping[str, Any], harmless: int) -> None:
        with self._link.request():
            for future in futures.values():
                error = future.exception(timeout=TOPIC_TIMEOUT_S)
                if error is not None and error.args[0].code() != harmless:
                    raise error

    def _describe(self) -> dict[str, Any]:
        """Asks for all topics: asked for one by name, librdkafka makes it."""
        with self._link.request():
            found: dict[str, Any] = self._client.list_topics(timeout=REQUEST_TIMEOUT_S).topics
        return found

    def topics(self) -> dict[str, int]:
        return {name: len(topic.partitions) for name, topic in self._describe().items()}

    def delete_topics(self, names: Collection[str]) -> None:
        if not names:
            return
        self._finish(self._client.delete_topics(list(names)), harmless=ck.KafkaError.UNKNOWN_TOPIC_OR_PART)
        wait_until(
            lambda: not self.topics().keys() & set(names),
            TOPIC_TIMEOUT_S,
            f"topics {', '.join(names)} are not gone",
        )

    def close(self) -> None:
        """librdkafka has no other way: it ends its threads when the client is collected."""
        del self._client


def has_leaders(topic: Any, at_least: int) -> bool:
    return (
        topic is not None
        and topic.error is None
        and len(topic.partitions) >= at_least
        and all(one.leader >= 0 and one.error is None for one in topic.partitions.values())
    )

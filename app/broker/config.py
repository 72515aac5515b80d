"""What can be set for a topic, by Kafka's names."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kafka.errors import InvalidConfigurationError

WEEK_MS = 7 * 24 * 3_600_000
CHOICES = {
    "message.timestamp.type": ("LogAppendTime", "CreateTime"),
    "cleanup.policy": ("delete",),
}


@dataclass(frozen=True)
class TopicConfig:
    """Kafka's defaults, except for LogAppendTime (latency is measured from it) and smaller segments."""

    retention_ms: int = WEEK_MS
    retention_bytes: int = -1
    segment_bytes: int = 16 * 2**20
    segment_ms: int = WEEK_MS
    max_message_bytes: int = 1_048_588
    message_timestamp_type: str = "LogAppendTime"
    cleanup_policy: str = "delete"

    @property
    def roll_ms(self) -> int:
        """A quarter of the retention at most: as segments go whole, at most a quarter too much is kept."""
        return min(self.segment_ms, self.retention_ms // 4) if self.retention_ms >= 0 else self.segment_ms

    def as_strings(self) -> dict[str, str]:
        return {kafka_name(field.name): str(getattr(self, field.name)) for field in fields(self)}


def kafka_name(field_name: str) -> str:
    return field_name.replace("_", ".")


FIELDS = {kafka_name(field.name): field for field in fields(TopicConfig)}


def parse_config(settings: Mapping[str, str | None]) -> TopicConfig:
    """Raises InvalidConfigurationError for a name or a value that this broker could not follow."""
    values = {name: _parse(name, text) for name, text in settings.items() if text is not None}
    return TopicConfig(**{FIELDS[name].name: value for name, value in values.items()})  # type: ignore[arg-type]


def _parse(name: str, text: str) -> int | str:
    if name not in FIELDS:
        raise InvalidConfigurationError(
            f"the development broker has no topic setting {name!r}; it has {', '.join(FIELDS)}"
        )
    if name in CHOICES:
        if text not in CHOICES[name]:
            raise InvalidConfigurationError(f"{name} is {' or '.join(CHOICES[name])} here, not {text!r}")
        return text
    try:
        return int(text)
    except ValueError:
        raise InvalidConfigurationError(f"{name}={text!r}: write a whole number") from None

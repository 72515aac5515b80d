from pathlib import Path

import pytest
from kafka.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

from app.broker.config import parse_config
from app.broker.topics import Topics


def test_topics_are_there_again_with_partitions_and_settings(tmp_path: Path) -> None:
    topics = Topics(tmp_path)
    topics.create("a", 2, {"retention.ms": "5000"})
    topics.create("b", 1, {})
    topics.find("a").grow(3)
    topics.delete("b")
    recovered = Topics(tmp_path)
    [topic] = recovered
    assert (topic.name, len(topic.partitions), topic.config.retention_ms) == ("a", 3, 5_000)
    with pytest.raises(UnknownTopicOrPartitionError):
        recovered.find("b")


def test_a_topic_half_created_or_half_deleted_is_none(tmp_path: Path) -> None:
    (tmp_path / "half" / "0").mkdir(parents=True)
    assert list(Topics(tmp_path)) == []
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "ü", "x" * 250])
def test_an_illegal_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidTopicError):
        Topics(None).create(name, 1, {})


def test_a_topic_has_at_least_one_partition_and_is_created_once() -> None:
    topics = Topics(None)
    with pytest.raises(InvalidPartitionsError):
        topics.create("t", 0, {})
    topics.create("t", 2, {})
    with pytest.raises(TopicAlreadyExistsError):
        topics.create("t", 2, {})
    with pytest.raises(InvalidPartitionsError, match="2 partitions; write more"):
        topics.find("t").check_growth(2)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("retention.msec", "5", "it has retention.ms"),
        ("retention.ms", "5s", "whole number"),
        ("message.timestamp.type", "Now", "LogAppendTime or CreateTime"),
        ("cleanup.policy", "compact", "delete"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused_with_the_remedy(name: str, value: str, said: str) -> None:
    with pytest.raises(InvalidConfigurationError, match=said):
        parse_config({name: value})

import pytest

from app.errors import BrokerError, ConfigError
from app.sources import TopicPartition
from app.sources.failures import check_that_they_exist, no_such_topic, out_of_range, require_group, wait_until

PLACE = TopicPartition("payments", 2)


def test_an_offset_that_retention_took_names_the_range_and_the_loss() -> None:
    said = str(out_of_range(PLACE, 40, beginning=100, end=500))
    assert said == (
        "payments/2 has no offset 40: it holds 100 to 500 (60 records were removed, by retention or by hand);"
        " restore the log, or start from an offset of 100 to 500 and accept what is missing"
    )


def test_an_offset_behind_the_end_suspects_another_log() -> None:
    assert "holds 0 to 500 (the topic was made anew, or lost its end)" in str(out_of_range(PLACE, 501, 0, 500))


def test_partitions_that_exist_pass_and_each_topic_is_asked_for_once() -> None:
    asked: list[str] = []

    def list_partitions(topic: str) -> list[int]:
        asked.append(topic)
        return [0, 1, 2]

    check_that_they_exist("a:1", {PLACE, TopicPartition("payments", 0), TopicPartition("others", 1)}, list_partitions)
    assert sorted(asked) == ["others", "payments"]


def test_a_partition_that_does_not_exist_is_named() -> None:
    with pytest.raises(BrokerError, match="topic 'payments' at a:1 has no partition 2, only 0 to 1"):
        check_that_they_exist("a:1", {PLACE}, lambda topic: [0, 1])


def test_a_missing_topic_is_named() -> None:
    assert str(no_such_topic("a:1", "payments")).startswith("Kafka at a:1 has no topic 'payments'; create it")


def test_a_commit_needs_a_group() -> None:
    require_group("readers")
    with pytest.raises(ConfigError, match="has no group to commit to; open it with one"):
        require_group(None)


def test_waiting_ends_when_it_is_done() -> None:
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), 10, "never seen")


def test_waiting_in_vain_says_what_for() -> None:
    with pytest.raises(BrokerError, match="topics are not gone after 0 s"):
        wait_until(lambda: False, 0, "topics are not gone")

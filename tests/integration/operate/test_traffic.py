"""`simulate`, `replay` and `decisions` against a broker: what they say is in the topic is there."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from app.log.tail import read_to_end
from app.operate.cli import main
from app.sources import KafkaSettings, TopicPartition, open_admin, open_consumer

CONFIG = str(Path(__file__).parents[3] / "config" / "fraud.yaml")


@pytest.fixture
def topic(bootstrap: str) -> Iterator[str]:
    name = f"payments-{uuid.uuid4().hex[:8]}"
    yield name
    with closing(open_admin(KafkaSettings(bootstrap=bootstrap))) as admin:
        admin.delete_topics([name])


def records_of(bootstrap: str, topic: str) -> list[list[tuple[bytes | None, bytes | None]]]:
    """Key and value of each record, by partition."""
    with closing(open_consumer(KafkaSettings(bootstrap=bootstrap))) as consumer:
        return [
            [
                record
                for records in read_to_end(consumer, TopicPartition(topic, each), 0)
                for record in zip(records.keys, records.values, strict=True)
            ]
            for each in consumer.partitions(topic)
        ]


def say(capsys: pytest.CaptureFixture[str], bootstrap: str, command: str, *arguments: str) -> str:
    assert main([command, "--config", CONFIG, "--bootstrap", bootstrap, *arguments]) == 0
    return capsys.readouterr().out


def test_what_is_simulated_is_in_the_topic_keyed_by_card(
    bootstrap: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--events", "5000", "--seed", "7", "--duplicates", "0.05", "--broken", "0.01"]
    sent = json.loads(say(capsys, bootstrap, "simulate", "--topic", topic, *arguments, "--json"))
    stored = records_of(bootstrap, topic)
    assert (sent["sent"], sent["acknowledged"], sum(sent["fates"].values())) == (5_000, 5_000, 5_000)
    assert len(stored) == 4
    assert sum(map(len, stored)) == 5_000
    assert sent["fates"]["duplicate"] > 100
    partitions_of_card: dict[bytes | None, set[int]] = {}
    for partition, records in enumerate(stored):
        for key, _ in records:
            partitions_of_card.setdefault(key, set()).add(partition)
    assert all(len(partitions) == 1 for partitions in partitions_of_card.values())


def test_a_file_that_is_replayed_is_what_was_simulated_directly(
    bootstrap: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "events.jsonl")
    simulated = ["--events", "2000", "--seed", "7", "--disorder", "0.1", "--duplicates", "0.1"]
    assert main(["simulate", *simulated, "--to-file", file]) == 0
    capsys.readouterr()
    replayed = json.loads(say(capsys, bootstrap, "replay", "--file", file, "--topic", topic, "--rate", "max", "--json"))
    assert replayed == {"topic": topic, "sent": 2_000, "acknowledged": 2_000}
    from_file = records_of(bootstrap, topic)
    with closing(open_admin(KafkaSettings(bootstrap=bootstrap))) as admin:
        admin.delete_topics([topic])
    say(capsys, bootstrap, "simulate", "--topic", topic, *simulated)
    assert records_of(bootstrap, topic) == from_file


def test_a_simulation_that_resumes_goes_on_behind_the_last_day(
    bootstrap: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(capsys, bootstrap, "simulate", "--topic", topic, "--events", "50", "--start-day", "3")
    say(capsys, bootstrap, "simulate", "--topic", topic, "--events", "50", "--resume")
    values = [value or b"" for records in records_of(bootstrap, topic) for _, value in records]
    days = [msgspec.json.decode(value)["id"].split("-")[1] for value in values]
    assert sorted(days) == ["3"] * 50 + ["4"] * 50


def test_a_rate_is_kept(bootstrap: str, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun_s = time.monotonic()
    say(capsys, bootstrap, "simulate", "--topic", topic, "--events", "300", "--rate", "200")
    assert time.monotonic() - begun_s >= 299 / 200


def test_a_topic_that_may_not_be_made_is_refused(
    bootstrap: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "fraud.yaml"
    config.write_text(Path(CONFIG).read_text().replace("partitions: 4", "create: false"))
    assert main(["simulate", "--topic", topic, "--events", "1", "--config", str(config), "--bootstrap", bootstrap]) == 1
    assert f"has no topic '{topic}'" in capsys.readouterr().err

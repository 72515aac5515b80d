"""A running pipeline that grows: workers that come and go with the lag, and partitions added to its source."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from app.log.frame import Cursor
from app.log.tail import read_to_end
from app.operate.first_copies import first_copies
from app.sources import KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from tests.integration.conftest import wait_until
from tests.integration.pipeline.application import Application, start

pytestmark = [pytest.mark.ray, pytest.mark.kafka]
NAME = "growth"
START_MS = 1_600_000_000_000
BY_LAG = {
    "min_replicas": 1,
    "max_replicas": 2,
    "metrics_interval_s": 1,
    "look_back_period_s": 3,
    "upscale_delay_s": 1,
    "downscale_delay_s": 1,
    "policy": {
        "policy_function": "app.runtime.scaling:ScaleByLag",
        "policy_kwargs": {"behind_s": 1, "catch_up_s": 4, "settle_s": 4},
    },
}


@dataclass
class Scene:
    bootstrap: str
    application: Application
    sent: Counter[int] = field(default_factory=Counter)
    broken: set[tuple[int, int]] = field(default_factory=set)

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self.bootstrap)

    def send(self, counts: Mapping[int, int]) -> None:
        """So many readings to each partition, of five machines in turn."""
        with closing(open_producer(self.kafka, linger_ms=5)) as producer:
            for partition, count in counts.items():
                for _ in range(count):
                    number = self.sent[partition]
                    machine = f"{partition}-{number % 5}"
                    reading = {"id": f"{partition}/{number}", "time": START_MS + number, "machine": machine}
                    value, key = msgspec.json.encode(reading), machine.encode()
                    producer.send("readings", value, key=key, partition=partition)
                    self.sent[partition] += 1

    def send_broken(self, partition: int) -> None:
        with closing(open_producer(self.kafka)) as producer:
            producer.send("readings", b"no event", key=b"5-0", partition=partition)
        self.broken.add((partition, self.sent[partition]))
        self.sent[partition] += 1

    def workers(self, status: Mapping[str, Any]) -> int:
        return sum(each["kind"] == "stream" and bool(each["partitions"]) for each in status["workers"])

    def is_through(self, status: Mapping[str, Any]) -> bool:
        offsets = {row["partition"]: row["offset"] for row in status["partitions"] if row["worker"]}
        return offsets == {partition: self.sent[partition] for partition in offsets} and set(offsets) >= set(self.sent)

    def check(self) -> None:
        """Each fine record is decided once, and counts all of its machine's readings up to it."""
        with closing(open_consumer(self.kafka)) as consumer:
            for partition in consumer.partitions(f"{NAME}.decisions"):
                seen: dict[str, int] = defaultdict(int)
                log = TopicPartition(f"{NAME}.decisions", partition)
                offsets: list[int] = []
                for fresh in first_copies(consumer, log, 0, Cursor(-1)):
                    decided = fresh.frame.decided
                    offsets += decided.offsets[fresh.rows].tolist()
                    machines = decided.event["machine"][fresh.rows]
                    for machine, readings in zip(machines, decided.features["readings"][fresh.rows], strict=True):
                        seen[machine] += 1
                        assert readings == seen[machine]
                assert offsets == [at for at in range(self.sent[partition]) if (partition, at) not in self.broken]


@pytest.fixture(scope="module")
def scene(apache_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with closing(open_admin(KafkaSettings(bootstrap=apache_kafka))) as admin:
        admin.ensure_topics({"readings": 4})
    args = {
        "pipeline": "tests.integration.pipeline.readings:readings",
        "name": NAME,
        "topics": {"source": "readings"},
        "start": "latest",
        "sinks": {},
    }
    tuning = {
        "StreamWorker": {
            "num_replicas": None,
            "autoscaling_config": BY_LAG,
            "user_config": {"max_batch": 200, "checkpoint_interval": "1s"},
        },
        "FraudScorer": None,
    }
    application = start(tmp_path_factory.mktemp("application"), apache_kafka, args, tuning)
    yield Scene(apache_kafka, application)
    application.stop()


def test_a_second_worker_comes_with_the_lag_and_goes_when_it_is_gone(scene: Scene) -> None:
    scene.application.wait(lambda status: scene.workers(status) == 1, "there is one worker")
    scene.send(dict.fromkeys(range(4), 3_000))
    scene.application.wait(lambda status: scene.workers(status) == 2, "a second worker helps", 40)
    scene.application.wait(scene.is_through, "all is decided", 60)
    scene.application.wait(lambda status: scene.workers(status) == 1, "one worker is left", 40)
    scene.check()


def test_partitions_added_while_running_are_worked_on_from_their_first_record_on(scene: Scene) -> None:
    with closing(open_admin(scene.kafka)) as admin:
        admin.ensure_partitions({"readings": 6})
    scene.send({4: 50, 5: 50})
    scene.send_broken(5)
    scene.application.wait(lambda status: len(status["partitions"]) == 6 and status["ready"], "they are taken up", 40)
    scene.send(dict.fromkeys(range(6), 50))
    scene.application.wait(scene.is_through, "all is decided", 30)
    scene.check()
    with closing(open_consumer(scene.kafka)) as consumer:
        letters = TopicPartition(f"{NAME}.dead-letters", 5)
        wait_until(lambda: consumer.end_offsets([letters])[letters], "the dead letter of the new partition")
        assert sum(len(records) for records in read_to_end(consumer, letters, 0)) == 1

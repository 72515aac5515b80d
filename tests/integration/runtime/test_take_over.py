"""A stream worker that is killed in the middle: whoever takes over asks no model about what is decided already."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from app.log.frame import Cursor
from app.operate.first_copies import first_copies
from app.sources import KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from tests.integration.conftest import ROOT, wait_until
from tests.integration.runtime.loop_process import PARTITIONS

START_MS = 1_600_000_000_000
PAYMENTS = 4_000
KILL_AT = 1_000


class Scene:
    """Payments, each with a number of its own, in a topic of two partitions, and their decision log."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.kafka = KafkaSettings(bootstrap=bootstrap)
        self._bootstrap = bootstrap
        self._folder = folder
        self._source = f"take-over-{folder.name}"
        with closing(open_admin(self.kafka)) as admin:
            admin.ensure_topics({self._source: len(PARTITIONS), f"{self._source}.decisions": len(PARTITIONS)})
        with closing(open_producer(self.kafka)) as producer:
            for number in range(PAYMENTS):
                partition = number % len(PARTITIONS)
                card = f"{partition}-{number % 10}"
                payment = {"id": str(number), "time": START_MS + number, "card": card, "number": number}
                producer.send(self._source, json.dumps(payment).encode(), key=card.encode(), partition=partition)

    @contextmanager
    def worker(self, name: str, answers: int = PAYMENTS) -> Iterator[None]:
        """Runs until the block ends; then kill -9. Its model gives so many answers."""
        asked = self._folder / name
        asked.touch()
        arguments = {
            "bootstrap": self._bootstrap,
            "source": self._source,
            "asked": str(asked),
            "answers": answers,
        }
        arguments["folder"] = str(self._folder / "checkpoints")
        command = [sys.executable, "-m", "tests.integration.runtime.loop_process", json.dumps(arguments)]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()

    def asked(self, name: str) -> list[int]:
        return list(map(int, (self._folder / name).read_text().split()))

    def decided(self) -> list[int]:
        """The numbers of the payments in the decision log; each counts its card's payments up to it."""
        numbers: list[int] = []
        seen: dict[str, int] = defaultdict(int)
        with closing(open_consumer(self.kafka)) as consumer:
            for partition in PARTITIONS:
                log = TopicPartition(f"{self._source}.decisions", partition)
                for fresh in first_copies(consumer, log, 0, Cursor(-1)):
                    decided, rows = fresh.frame.decided, fresh.rows
                    numbers += decided.event["number"][rows].tolist()
                    cards, payments = decided.event["card"][rows], decided.features["payments"][rows]
                    for card, count in zip(cards, payments, strict=True):
                        seen[card] += 1
                        assert count == seen[card]
        return numbers


def test_what_a_killed_worker_had_logged_calls_no_model_again(bootstrap: str, tmp_path: Path) -> None:
    scene = Scene(bootstrap, tmp_path)
    with scene.worker("first", answers=15):
        wait_until(lambda: len(scene.asked("first")) > KILL_AT, "the first worker is in the middle")
    before = scene.decided()
    assert 0 < len(before) < PAYMENTS
    with scene.worker("second"):
        wait_until(lambda: len(scene.decided()) == PAYMENTS, "the second worker has done the rest")
    assert sorted(scene.decided()) == list(range(PAYMENTS))
    assert sorted(scene.asked("second")) == sorted(set(range(PAYMENTS)) - set(before)), "each of the rest once"
    assert set(before) <= set(scene.asked("first"))

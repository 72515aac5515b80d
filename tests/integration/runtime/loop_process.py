"""The loop of a stream worker as a process of its own, to be killed: real logs and checkpoints, a model that keeps
account of every row it is asked about."""

import json
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from app.config import WorkerTuning
from app.event import Columns, Event
from app.features import Features, count
from app.inference import Scores
from app.latency import StageLatency
from app.pipeline import Pipeline
from app.runtime.checkpoint import CheckpointStore
from app.runtime.loop import Parts, StreamLoop
from app.runtime.opener import TaskOpener
from app.runtime.task import TaskSettings
from app.sources import KafkaSettings, open_consumer, open_producer

PARTITIONS = (0, 1)
CALL_S = 0.01


class Payment(Event, frozen=True):
    card: str
    number: int


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last="1h")


class Risk:
    inputs: ClassVar[tuple[str, ...]] = ("number",)
    outputs: ClassVar[tuple[str, ...]] = ("risk",)


class CountingModel:
    """Writes down the numbers of the payments it is asked about before it answers; what is written outlives kill -9.
    After so many answers it gives none any more."""

    def __init__(self, asked: Path, answers: int) -> None:
        self._left = answers
        self._asked = os.open(asked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._thread = ThreadPoolExecutor(1)

    def ask(self, columns: Columns, rows: int) -> "Future[Scores]":
        os.write(self._asked, "".join(f"{number}\n" for number in columns["number"]).encode())
        self._left -= 1
        return self._thread.submit(self._answer, columns) if self._left >= 0 else Future()

    def _answer(self, columns: Columns) -> Scores:
        time.sleep(CALL_S)
        return Scores({"risk": columns["number"] / 1_000_000}, {"risk": "v1"})


def main(bootstrap: str, source: str, folder: str, asked: str, answers: int) -> None:
    kafka = KafkaSettings(bootstrap=bootstrap, client="confluent-kafka")
    pipeline = Pipeline(source=Payment, features=[CardHistory], models={"risk": Risk})
    settings = TaskSettings("fraud", source, max_ahead_ms=10**13)
    decisions = f"{source}.decisions"
    store = CheckpointStore(folder, "fraud")
    opener = TaskOpener(pipeline, settings, decisions, store, "earliest", open_consumer(kafka))
    parts = Parts(
        open_source=lambda: open_consumer(kafka, source),
        log=open_producer(kafka, linger_ms=1),
        models=CountingModel(Path(asked), answers),
        opener=opener,
        executor=ThreadPoolExecutor(1),
        saver=ThreadPoolExecutor(1),
        now_ms=lambda: time.time() * 1000,
    )
    tuning = WorkerTuning.load({"max_batch": 100, "checkpoint_interval": "500ms"})
    loop = StreamLoop(pipeline, settings, decisions, parts, tuning, StageLatency())
    loop.give(PARTITIONS)
    while True:
        loop.step()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

"""The fraud job as a hand-written loop: no Ray, no runtime of Headrace, one process.

Consume, decode, features, torch, a score per event. What it has of Headrace is what does the arithmetic: the feature
kernels and the model. It is tuned as far as this design goes. What it does without: checkpoints (it starts at the
beginning again), exactly once, a decision log, actions, dead letters, scaling, a model that somebody else serves.
"""

import argparse
import gc
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from app.event import Event
from app.features import Features, KeyedState, count, mean
from models import fraud

LATENESS_MS = 3_600_000
MOST_RECORDS = 10_000
MOST_UNSENT = 200_000
POLLS_TO_TIDY = 100
NEVER = np.iinfo(np.int64).min // 2
READY = "ready"


class Payment(Event, frozen=True, gc=False):
    card: str
    terminal: str
    amount: float


class CardHistory(Features, of=Payment, by="card"):
    payments = count(last=["1d", "7d", "30d"])
    mean_amount = mean("amount", last=["1d", "7d", "30d"])


class Score(msgspec.Struct, gc=False):
    id: str
    time: int
    risk: float


class Scorer:
    """From the values of a poll to their scores, as JSON."""

    def __init__(self, partitions: int, weights: Path = fraud.WEIGHTS) -> None:
        self._state = KeyedState(CardHistory, LATENESS_MS)
        self._newest_ms = np.full(partitions, NEVER)
        self._seen: set[str] = set()
        self._seen_until: deque[tuple[int, list[str]]] = deque()
        self._model = fraud.load(weights)
        self._decode_all = msgspec.json.Decoder(list[Payment]).decode
        self._decode_one = msgspec.json.Decoder(Payment).decode
        self._encode_lines = msgspec.json.Encoder().encode_lines

    def score(self, values: list[bytes], partitions: npt.NDArray[np.int64]) -> tuple[list[bytes], list[int]]:
        """The scores, and which value each is of: none for what is no payment, is a copy or comes too late."""
        payments, rows = self._decode(values)
        time_ms = np.array([each.time for each in payments], np.int64)
        watermark_ms = self._newest_ms.min() - LATENESS_MS  # one state for all partitions: the slowest one counts
        np.maximum.at(self._newest_ms, partitions[rows], time_ms)
        if (time_ms < watermark_ms).any():
            kept = np.flatnonzero(time_ms >= watermark_ms)
            payments, rows, time_ms = [payments[at] for at in kept], [rows[at] for at in kept], time_ms[kept]
        new = self._remember([each.id for each in payments])
        if len(new) < len(payments):
            payments, rows, time_ms = [payments[at] for at in new], [rows[at] for at in new], time_ms[new]
        columns = {
            "time": time_ms,
            "card": np.array([each.card for each in payments], object),
            "amount": np.array([each.amount for each in payments], np.float64),
        }
        features = self._state.update(columns, np.full(len(payments), watermark_ms))
        risk = self._model.predict(columns | features)["risk"].tolist()
        scores = map(Score, [each.id for each in payments], time_ms.tolist(), risk)
        return self._encode_lines(scores).splitlines(), rows

    def _remember(self, ids: list[str]) -> Sequence[int]:
        """Which of the ids are new."""
        new: Sequence[int] = range(len(ids))
        if not self._seen.isdisjoint(ids) or len(set(ids)) < len(ids):
            firsts = {event_id: at for at, event_id in reversed([*enumerate(ids)]) if event_id not in self._seen}
            new = sorted(firsts.values())
            ids = [ids[at] for at in new]
        self._seen.update(ids)
        self._seen_until.append((int(self._newest_ms.max()) + LATENESS_MS, ids))
        return new

    def _decode(self, values: list[bytes]) -> tuple[list[Payment], list[int]]:
        try:
            return self._decode_all(b"[" + b",".join(values) + b"]"), list(range(len(values)))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
            found = dict(self._decode_each(values))
            return list(found.values()), list(found)

    def _decode_each(self, values: list[bytes]) -> Iterator[tuple[int, Payment]]:
        for row, value in enumerate(values):
            try:
                yield row, self._decode_one(value)
            except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
                continue

    def tidy(self) -> None:
        """Forgets cards that nobody has used for long, and ids of long ago; call it now and then."""
        newest_ms = int(self._newest_ms.min())
        self._state.expire(newest_ms - LATENESS_MS)
        while self._seen_until and self._seen_until[0][0] < newest_ms:
            self._seen.difference_update(self._seen_until.popleft()[1])


def open_consumer(bootstrap: str, topic: str) -> tuple[Consumer, int]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "loop",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 5,  # the default of 1 s stops fetching for so long whenever the queue is full
            "queued.max.messages.kbytes": 64 << 10,
        }
    )
    partitions = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in range(partitions)])
    return consumer, partitions


def open_producer(bootstrap: str, linger_ms: int) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": linger_ms,
            "partitioner": "murmur2_random",  # scores stand in the partitions that Java would put them in
            "queue.buffering.max.messages": 2 * MOST_UNSENT,
            "delivery.report.only.error": True,  # no Python for a score that has arrived
        }
    )


def polls(consumer: Consumer) -> Iterator[list[Any]]:
    """What has come, at once; consume(n, t) alone would wait the whole t unless n came. Empty when nothing has."""
    while True:
        first = consumer.poll(0.1)
        messages = [first, *consumer.consume(MOST_RECORDS - 1, 0)] if first else []
        if any(map(Message.error, messages)):
            messages = [each for each in messages if not failure_of(each)]
        yield messages


def failure_of(message: Any) -> KafkaError | None:
    """Raises KafkaException when the client cannot go on by itself."""
    error = message.error()
    if error and not error.retriable():
        raise KafkaException(error)
    return error


def raise_undelivered(error: KafkaError | None, message: Any) -> None:
    if error:
        raise KafkaException(error)


def run(bootstrap: str, source: str, target: str, linger_ms: int) -> None:
    consumer, partitions = open_consumer(bootstrap, source)
    producer = open_producer(bootstrap, linger_ms)
    torch.set_num_threads(1)
    scorer = Scorer(partitions)
    warm_up()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000)  # collections cost a third of the time, and nothing here makes cycles
    print(READY, flush=True)
    try:
        for number, messages in enumerate(polls(consumer)):
            if messages:
                score_messages(scorer, messages, producer, target)
            if number % POLLS_TO_TIDY == 0:
                scorer.tidy()
            producer.poll(0)
    finally:
        producer.flush(10)
        consumer.close()


def score_messages(scorer: Scorer, messages: list[Any], producer: Producer, target: str) -> None:
    partitions = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
    scores, rows = scorer.score(list(map(Message.value, messages)), partitions)
    keys = map(Message.key, map(messages.__getitem__, rows))
    batch = [{"key": key, "value": score} for key, score in zip(keys, scores, strict=True)]
    while len(producer) > MOST_UNSENT:
        producer.poll(0.005)
    producer.produce_batch(target, batch, on_delivery=raise_undelivered)


def warm_up() -> None:
    """Compiles or loads the kernels, and lets torch make its threads and buffers."""
    payment = b'{"id": "1", "time": 1, "card": "1", "terminal": "1", "amount": 1}'
    Scorer(1).score([payment] * 256, np.zeros(256, np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--source", required=True, help="the topic of payments")
    parser.add_argument("--target", required=True, help="the topic for their scores")
    parser.add_argument("--linger-ms", type=int, default=5, help="5 for throughput, 1 for latency")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

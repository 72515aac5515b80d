"""Sending records to a topic at a given rate, and knowing exactly how many of them the broker has."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from app.config import PipelineArgs
from app.errors import BrokerError
from app.sources import KafkaSettings, Producer, open_admin, open_producer

R = TypeVar("R")

TICK_S = 0.005
"""The shortest pause between two batches: at 5,000/s 25 records, one produce request."""
LINGER_MS = 5
"""Kafka's own default since 4.0."""
CHUNK = 1_000
FLUSH_TIMEOUT_S = 10.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class KeyedValue(NamedTuple):
    """What a producer sends."""

    key: bytes | None
    value: bytes


class Sent(NamedTuple):
    """How many records were handed to the client, and how many of these the broker has acknowledged."""

    sent: int
    acknowledged: int


def paced(
    items: Iterable[R], rate: float | None, now_s: Callable[[], float], pause: Callable[[float], object]
) -> Iterator[list[R]]:
    """Yields the items in the batches in which they are due: item i at i / rate seconds behind the start.

    The schedule is the wall clock's and waits for nobody (open loop): after a hold-up all that is due comes at once,
    and never anything before its time. Without a rate everything is due.
    """
    items = iter(items)
    start_s, sent = now_s(), 0
    while True:
        due = sent + CHUNK if rate is None else int((now_s() - start_s) * rate) + 1
        if batch := list(islice(items, due - sent)):
            yield batch
        elif due > sent:
            return
        sent += len(batch)
        if rate is not None:
            pause(max(TICK_S, start_s + sent / rate - now_s()))


def ensure_topic(args: PipelineArgs, topic: str) -> None:
    """Makes the topic, with the partitions that the config gives its own, if it is missing and making is allowed."""
    if args.topics.create:
        with closing(open_admin(args.kafka)) as admin:
            admin.ensure_topics({topic: args.topics.partitions})


def send_paced(
    records: Iterable[KeyedValue],
    settings: KafkaSettings,
    topic: str,
    rate: float | None,
    *,
    total: int | None,
    stopping: threading.Event,
) -> Sent:
    """Sends the records in order, with a progress bar on stderr, until they end or `stopping` is set.

    Raises BrokerError when a record was refused, with the number of those that the broker has.
    """
    producer = open_producer(settings, linger_ms=LINGER_MS)
    delivery = _Delivery()
    sent = 0
    try:
        with tqdm(total=total, unit=" events", disable=None, file=sys.stderr) as bar:
            for batch in paced(records, rate, time.monotonic, stopping.wait):
                _send_batch(producer, topic, batch, delivery)
                sent += len(batch)
                bar.update(len(batch))
                if stopping.is_set() or delivery.error:
                    break
        producer.flush(FLUSH_TIMEOUT_S)
    finally:
        producer.close()
    if delivery.error or delivery.acknowledged < sent:
        raise BrokerError(f"{delivery.acknowledged} of {sent} records were acknowledged: {delivery.error}")
    return Sent(sent, delivery.acknowledged)


def _send_batch(producer: Producer, topic: str, batch: list[KeyedValue], delivery: "_Delivery") -> None:
    for key, value in batch:
        producer.send(topic, value, key=key, on_delivery=delivery)
    producer.poll(0)


class _Delivery:
    """Counts what the broker has acknowledged, and keeps the first refusal."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.error: BrokerError | None = None

    def __call__(self, error: BrokerError | None, offset: int, append_ms: int) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.error = self.error or error


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that INT, TERM or HUP sets, so that a command can end in order instead of anywhere."""
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in ENDING}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A steady stream of payments with everything that is wrong with real ones."""

import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from types import TracebackType
from typing import Self

from app.errors import HeadraceError
from app.operate.sending import paced
from app.simulate import Disturbance, Fate, Record, simulate
from app.sources import KafkaSettings, open_producer
from benchmarks.chaos.pipeline import POISON_AMOUNT

DISTURBANCE = Disturbance(duplicates=0.05, disorder=0.05, broken=0.01)
ONE_IN_POISON = 1_000
LINGER_MS = 5
FLUSH_TIMEOUT_S = 120.0


def payments(seed: int) -> Iterator[Record]:
    """Day after day, without end."""
    return (poison(record) for day in simulate("fraud", seed=seed, disturbance=DISTURBANCE) for record in day)


def poison(record: Record) -> Record:
    """The record, or, one in a thousand, the same payment of nothing. Both copies of a payment fare alike."""
    if record.fate not in (Fate.FINE, Fate.DUPLICATE) or zlib.crc32(record.value) % ONE_IN_POISON:
        return record
    return record._replace(value=json.dumps(json.loads(record.value) | {"amount": POISON_AMOUNT}).encode())


class Traffic:
    """Sends on, at the given rate, within each `with` block; waits out a broker that is away, and then catches up."""

    def __init__(self, kafka: KafkaSettings, topic: str, rate: float, seed: int) -> None:
        self._kafka = kafka
        self._topic = topic
        self._rate = rate
        self._records = payments(seed)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Returns when the broker has all that was sent, at once when the block has failed. Raises HeadraceError when
        the broker has not taken all."""
        self._stopping.set()
        if kind is not None or self._thread is None:
            return
        self._thread.join()
        if self._error is not None:
            raise HeadraceError(f"the traffic came to an end: {self._error!r}") from self._error

    def _run(self) -> None:
        try:
            with closing(open_producer(self._kafka, linger_ms=LINGER_MS)) as producer:
                for batch in paced(self._records, self._rate, time.monotonic, self._stopping.wait):
                    for record in batch:
                        producer.send(self._topic, record.value, key=record.key)
                    producer.poll(0)
                    if self._stopping.is_set():
                        break
                if unsent := producer.flush(FLUSH_TIMEOUT_S):
                    raise HeadraceError(f"{unsent} payments were not acknowledged in {FLUSH_TIMEOUT_S:.0f} s")
        except BaseException as error:  # noqa: BLE001 - the thread's edge: `stop` raises it
            self._error = error

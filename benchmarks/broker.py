"""What the development broker can take: `python -m benchmarks.broker [--minutes 10] [--on-disk] [--json F]`.

Starts a broker of its own. Throughput and wake-up always; with --minutes also a steady load of 5,000 records/s with
retention on, and every half minute what it does to latency, memory and CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

VALUE_BYTES = 200
PARTITIONS = 4
BURST = 400_000
WAKE_UPS = 1_000
STEADY_RATE = 5_000
TICK_S = 0.005
SAMPLE_S = 30.0
PADDING = bytes(VALUE_BYTES - 8)


@contextmanager
def running_broker(directory: Path | None) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "app.broker", "--port", "0"]
    command += ["--dir", str(directory)] if directory else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        bootstrap = process.stdout.readline().split(": ")[1].split(",")[0]
        try:
            yield bootstrap, psutil.Process(process.pid)
        finally:
            process.terminate()


def create_topic(bootstrap: str, name: str, **settings: str) -> None:
    topic = NewTopic(name, PARTITIONS, 1, config=settings)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([topic])[name].result()


def open_producer(bootstrap: str, linger_ms: float) -> Producer:
    settings = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": linger_ms}
    return Producer(settings | {"queue.buffering.max.messages": BURST})


def open_consumer(bootstrap: str, topic: str) -> Consumer:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    return consumer


def measure_throughput(bootstrap: str) -> dict[str, int]:
    """Records a second, one producer and then one consumer, as fast as they go."""
    create_topic(bootstrap, "throughput")
    producer = open_producer(bootstrap, linger_ms=5)
    batch = [{"value": bytes(VALUE_BYTES)}] * 1_000
    began = time.perf_counter()
    for number in range(BURST // 1_000):
        producer.produce_batch("throughput", batch, partition=number % PARTITIONS)
    producer.flush()
    produced = time.perf_counter()
    consumer, consumed = open_consumer(bootstrap, "throughput"), 0
    while consumed < BURST:
        consumed += len(consumer.consume(1_000, 1))
    ended = time.perf_counter()
    consumer.close()
    return {
        "produced_per_s": round(BURST / (produced - began)),
        "consumed_per_s": round(BURST / (ended - produced)),
    }


def measure_wake_up(bootstrap: str) -> dict[str, float]:
    """From `produce` to a consumer whose fetch was waiting; one record at a time."""
    create_topic(bootstrap, "wake-up")
    producer, consumer = open_producer(bootstrap, linger_ms=0), open_consumer(bootstrap, "wake-up")
    latencies_s = []
    for number in range(WAKE_UPS):
        began = time.perf_counter()
        producer.produce("wake-up", PADDING, partition=number % PARTITIONS)
        while consumer.poll(1) is None:
            pass
        latencies_s.append(time.perf_counter() - began)
        producer.poll(0)
    consumer.close()
    return percentiles(latencies_s[WAKE_UPS // 10 :])


def percentiles(latencies_s: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(latencies_s, (50, 99)) * 1_000
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


class LatencyReader(threading.Thread):
    """Consumes records that begin with the time they were sent at."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self._consumer = open_consumer(bootstrap, "steady")
        self._latencies_s: list[float] = []
        self.consumed = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            messages = self._consumer.consume(1_000, TICK_S)
            now = time.time()
            sent = np.frombuffer(b"".join(message.value()[:8] for message in messages))
            self._latencies_s += (now - sent).tolist()
            self.consumed += len(messages)
        self._consumer.close()

    def take(self) -> list[float]:
        taken, self._latencies_s = self._latencies_s, []
        return taken


def measure_steady_load(bootstrap: str, broker: psutil.Process, minutes: float) -> list[dict[str, float]]:
    """One sample every half minute, while 5,000 records a second come and go after 30 s."""
    retention = {"retention.ms": "30000", "segment.bytes": str(2**20)}
    create_topic(bootstrap, "steady", **retention)
    reader = LatencyReader(bootstrap)
    reader.start()
    samples, produced = [], 0
    producer, began = open_producer(bootstrap, linger_ms=5), time.time()
    next_sample = began + SAMPLE_S
    while time.time() < began + minutes * 60:
        due = int((time.time() - began) * STEADY_RATE)
        value = np.float64(time.time()).tobytes() + PADDING
        for number in range(produced, due):
            producer.produce("steady", value, partition=number % PARTITIONS)
        produced = due
        producer.poll(0)
        if time.time() >= next_sample:
            next_sample += SAMPLE_S
            samples.append(sample(began, broker, produced - reader.consumed, reader.take()))
            print(samples[-1], flush=True)
        time.sleep(TICK_S)
    producer.flush()
    reader.stopping.set()
    reader.join()
    return samples


def sample(began: float, broker: psutil.Process, lag: int, latencies_s: list[float]) -> dict[str, float]:
    cpu = broker.cpu_times()
    return {
        "at_s": round(time.time() - began),
        **percentiles(latencies_s),
        "records": len(latencies_s),
        "lag": lag,
        "rss_mib": round(broker.memory_info().rss / 2**20, 1),
        "cpu_s": round(cpu.user + cpu.system, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broker", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0, help="of steady load")
    parser.add_argument("--on-disk", action="store_true", help="with the log in files")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        running_broker(Path(directory) if args.on_disk else None) as (bootstrap, broker),
    ):
        results = {"throughput": measure_throughput(bootstrap), "wake_up": measure_wake_up(bootstrap)}
        print(results, flush=True)
        if args.minutes:
            results["steady"] = measure_steady_load(bootstrap, broker, args.minutes)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

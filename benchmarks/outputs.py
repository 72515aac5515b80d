"""What stands in topics afterwards: which payment, and when the broker appended it. Nobody's own clock is asked."""

from collections.abc import Iterator
from contextlib import closing

import confluent_kafka as ck
import msgspec
import numpy as np
import numpy.typing as npt

from app.sources import KafkaSettings, Records, open_consumer
from app.sources.confluent.consumer import group_by_partition

PERCENTILES = (50, 95, 99)


class Named(msgspec.Struct, gc=False):
    """A payment, a score or a decision by its id; a hold by its payment's."""

    id: str = ""
    payment: str = ""


def read_to_end(kafka: KafkaSettings, topic: str, partition: int, start: int) -> Iterator[Records]:
    """The committed records from `start` on. Only librdkafka tells that an end is reached which is a transaction's."""
    options = {"bootstrap.servers": kafka.bootstrap, "group.id": "benchmark", "enable.partition.eof": True}
    with closing(ck.Consumer({**options, "auto.offset.reset": "earliest", "enable.auto.commit": False})) as consumer:
        consumer.assign([ck.TopicPartition(topic, partition, start)])
        at_end = False
        while not at_end:
            messages = consumer.consume(10_000, 0.1)
            at_end = any(message.error() is not None for message in messages)
            yield from group_by_partition([message for message in messages if message.error() is None])


def append_times(kafka: KafkaSettings, topic: str) -> npt.NDArray[np.int64]:
    """When each record of the topic was appended, ms since the epoch, ascending."""
    with closing(open_consumer(kafka)) as consumer:
        partitions = consumer.partitions(topic)
    found = [records.append_ms for each in partitions for records in read_to_end(kafka, topic, each, 0)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def appended(kafka: KafkaSettings, topic: str, begin: dict[int, int]) -> list[tuple[str, int]]:
    """Payment and append time, ms, of each record from the offsets `begin` on."""
    decode = msgspec.json.Decoder(Named).decode
    found: list[tuple[str, int]] = []
    for partition, start in begin.items():
        for records in read_to_end(kafka, topic, partition, start):
            names = [decode(value or b"{}") for value in records.values]
            found += zip([each.id or each.payment for each in names], records.append_ms.tolist(), strict=True)
    return found


def latencies(
    sources: list[tuple[str, int]], targets: list[tuple[str, int]], warm_up_s: float
) -> npt.NDArray[np.int64]:
    """From each payment's append to that of what came of it, ms; those of the first `warm_up_s` left out."""
    at_ms = dict(sources)
    begin_ms = min(at_ms.values()) + warm_up_s * 1000
    return np.array([done_ms - at_ms[name] for name, done_ms in targets if at_ms[name] >= begin_ms])


def between(times_ms: npt.NDArray[np.int64], begin: float, end: float) -> tuple[float, float]:
    """Between which times, in seconds, the records between the shares `begin` and `end` of all were appended."""
    begin_ms, end_ms = np.quantile(times_ms, (begin, end))
    return float(begin_ms) / 1000, float(end_ms) / 1000


def percentiles(latencies_ms: npt.NDArray[np.int64]) -> dict[str, float]:
    values = np.percentile(latencies_ms, PERCENTILES)
    return {f"p{p}_ms": round(float(value), 1) for p, value in zip(PERCENTILES, values, strict=True)}

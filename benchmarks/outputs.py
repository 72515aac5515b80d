"""What stands in topics afterwards: which payment, and when the broker appended it. Nobody's own clock is asked."""

from contextlib import closing

import msgspec
import numpy as np
import numpy.typing as npt

from app.log.tail import read_to_end
from app.sources import KafkaSettings, TopicPartition, open_consumer

PERCENTILES = (50, 95, 99)


class Named(msgspec.Struct, gc=False):
    """A payment, a score or a decision by its id; a hold by its payment's."""

    id: str = ""
    payment: str = ""


def append_times(kafka: KafkaSettings, topic: str) -> npt.NDArray[np.int64]:
    """When each record of the topic was appended, ms since the epoch, ascending."""
    with closing(open_consumer(kafka)) as consumer:
        found = [
            records.append_ms
            for partition in consumer.partitions(topic)
            for records in read_to_end(consumer, TopicPartition(topic, partition), 0)
        ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def appended(kafka: KafkaSettings, topic: str, begin: dict[int, int]) -> list[tuple[str, int]]:
    """Payment and append time, ms, of each record from the offsets `begin` on."""
    decode = msgspec.json.Decoder(Named).decode
    found: list[tuple[str, int]] = []
    with closing(open_consumer(kafka)) as consumer:
        for partition, start in begin.items():
            for records in read_to_end(consumer, TopicPartition(topic, partition), start):
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

"""Reading a log from a place to where it ends now."""

import time
from collections.abc import Iterator

from app.errors import BrokerError
from app.sources import Consumer, Records, TopicPartition

PATIENCE_S = 30.0


def read_to_end(consumer: Consumer, partition: TopicPartition, start: int) -> Iterator[Records]:
    """The records from `start` (or the first that the log still holds) up to the end that the log has when called.

    Takes over the consumer's assignment; it is one without a group, which also knows when nothing but the markers of
    transactions is left. Raises BrokerError when nothing comes for 30 s.
    """
    begin = max(start, consumer.beginning_offsets([partition])[partition])
    end = consumer.end_offsets([partition])[partition]
    consumer.assign({})
    if begin >= end:
        return
    consumer.assign({partition: begin})
    heard_s = time.monotonic()
    while begin < end:
        for records in consumer.poll(10_000, 100):
            heard_s = time.monotonic()
            yield records
        begin = max(begin, consumer.passed(partition))
        if time.monotonic() - heard_s > PATIENCE_S:
            raise BrokerError(
                f"{partition} gave nothing for {PATIENCE_S:.0f} s between offset {begin} and its end {end}; "
                "is the broker there?"
            )
    consumer.assign({})

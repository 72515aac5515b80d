"""Looks through the decision log for one event: for decisions that are too old to be in memory."""

import time
from typing import NamedTuple

from app.api.recent import Row, read_frames
from app.log.frame import Cursor
from app.log.tail import read_to_end
from app.sources import Consumer, TopicPartition

SEARCH_FRAMES = 20_000
"""How many frames before its end a partition is searched: 3 minutes at 100 frames a second, days when there is little
to do."""
SEARCH_S = 5.0


class Found(NamedTuple):
    """The newest decision on the event, or None. `everywhere` says that the whole log was looked through."""

    row: Row | None
    everywhere: bool


def search_log(consumer: Consumer, topic: str, event_id: str) -> Found:
    """Blocks for about 5 s at most. Takes over the consumer's assignment. Raises BrokerError."""
    give_up_s = time.monotonic() + SEARCH_S
    partitions = [TopicPartition(topic, each) for each in consumer.partitions(topic)]
    found = [_search_partition(consumer, partition, event_id, give_up_s) for partition in partitions]
    rows = [each.row for each in found if each.row is not None]
    newest = max(rows, key=lambda row: row.logged_ms, default=None)
    return Found(newest, all(each.everywhere for each in found))


def _search_partition(consumer: Consumer, partition: TopicPartition, event_id: str, give_up_s: float) -> Found:
    begin = consumer.beginning_offsets([partition])[partition]
    start = max(begin, consumer.end_offsets([partition])[partition] - SEARCH_FRAMES)
    cursor, newest = Cursor(), None
    for records in read_to_end(consumer, partition, start):
        for logged in read_frames(cursor, records):
            newest = logged.find(event_id) or (None if logged.anew else newest)
        if time.monotonic() > give_up_s:
            return Found(newest, everywhere=False)
    return Found(newest, everywhere=start == begin)

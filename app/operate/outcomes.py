"""What became of the events of one run, counted from the decision log."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from app.config import PipelineArgs
from app.log.frame import Cursor, count_late
from app.operate.first_copies import first_copies
from app.sources import Consumer, TopicPartition


class Start(NamedTuple):
    """Where the source and the decision log ended when a run began: partition → the next record's offset."""

    source: Mapping[int, int]
    log: Mapping[int, int]


class Outcomes(NamedTuple):
    """Counts of first copies. `through`: source partition → the last offset that they cover.

    `late` are dead letters, too.
    """

    decisions: int
    dead_letters: int
    duplicates: int
    late: int
    actions: int
    through: Mapping[int, int]


def end_offsets(consumer: Consumer, topic: str) -> dict[int, int]:
    """Partition → the offset that the next record will get."""
    partitions = [TopicPartition(topic, each) for each in consumer.partitions(topic)]
    return {each.partition: end for each, end in consumer.end_offsets(partitions).items()}


def mark_start(consumer: Consumer, args: PipelineArgs) -> Start:
    return Start(end_offsets(consumer, args.topics.source), end_offsets(consumer, args.topics.decisions))


def count_outcomes(consumer: Consumer, args: PipelineArgs, start: Start) -> Outcomes:
    """Counts what the log says now of the records that the source got since `start`."""
    decisions = dead_letters = duplicates = late = actions = 0
    through = {}
    for partition, begin in start.source.items():
        cursor = Cursor(begin - 1)
        log = TopicPartition(args.topics.decisions, partition)
        for fresh in first_copies(consumer, log, start.log[partition], cursor):
            decisions += fresh.rows.stop - fresh.rows.start
            dead_letters += len(fresh.dead_letters)
            duplicates += len(fresh.duplicates)
            late += count_late(fresh.dead_letters)
            actions += sum(len(msgspec.json.decode(each)) for each in fresh.frame.decided.actions[fresh.rows] if each)
        through[partition] = begin - 1 if cursor.applied is None else cursor.applied
    return Outcomes(decisions, dead_letters, duplicates, late, actions, through)

"""Kafka, as the sinks of a worker see it."""

from collections.abc import Callable
from dataclasses import dataclass

from app.sources import OpenConsumer, Producer, TransactionalProducer


@dataclass(frozen=True)
class Kafka:
    """How to reach it, and the pipeline's topics there.

    open_producer:               for dead letters; a linger of 1 ms is right, as each one is flushed.
    open_transactional_producer: with the transactional id that it is given.
    """

    decisions: str
    dead_letters: str
    late: str
    open_consumer: OpenConsumer
    open_producer: Callable[[], Producer]
    open_transactional_producer: Callable[[str], TransactionalProducer]

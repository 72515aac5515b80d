"""Kafka: records in and out, by either of two client libraries; nothing else in Headrace imports one."""

from app.sources.client import (
    Admin,
    CommittedOffset,
    Consumer,
    Header,
    OnDelivery,
    OpenConsumer,
    Producer,
    Records,
    TopicPartition,
    TransactionalProducer,
)
from app.sources.connect import open_admin, open_consumer, open_producer, open_transactional_producer
from app.sources.settings import ClientName, Compression, KafkaSettings

__all__ = [
    "Admin",
    "ClientName",
    "CommittedOffset",
    "Compression",
    "Consumer",
    "Header",
    "KafkaSettings",
    "OnDelivery",
    "OpenConsumer",
    "Producer",
    "Records",
    "TopicPartition",
    "TransactionalProducer",
    "open_admin",
    "open_consumer",
    "open_producer",
    "open_transactional_producer",
]

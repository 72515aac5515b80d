"""Opens a client of the library that the settings choose, and imports only that one."""

from app.sources.client import Admin, Consumer, Producer, TransactionalProducer
from app.sources.settings import Compression, KafkaSettings


def open_consumer(
    settings: KafkaSettings,
    group: str | None = None,
    *,
    buffer_bytes: int = 32 << 20,
    hurried: bool = True,
    read_uncommitted: bool = False,
) -> Consumer:
    """A consumer that fetches about buffer_bytes ahead; `group` is where it commits, None if it never does.

    A hurried one has a record as soon as it is appended; one that is not, up to half a second later, in large portions
    that cost broker and consumer little. One that reads what is uncommitted waits for no transaction: neither for
    records behind an open one, nor for the group's offsets that an open one is about to change.

    Raises BrokerError when the cluster does not answer, ConfigError when the library refuses an option.
    """
    if settings.client == "kafka-python":
        from app.sources.kafka_python.consumer import KafkaPythonConsumer

        return KafkaPythonConsumer(settings, group, buffer_bytes, hurried=hurried, read_uncommitted=read_uncommitted)
    from app.sources.confluent.consumer import ConfluentConsumer

    return ConfluentConsumer(settings, group, buffer_bytes, hurried=hurried, read_uncommitted=read_uncommitted)


def open_producer(settings: KafkaSettings, *, linger_ms: int = 5, compression: Compression = "none") -> Producer:
    """A producer that waits up to linger_ms to fill a batch: 1 for latency, 5 for throughput.

    0 with single records floods the broker (p50 348 ms at 1,000 a second). Raises BrokerError when the cluster
    does not answer, ConfigError when the library refuses an option.
    """
    if settings.client == "kafka-python":
        from app.sources.kafka_python.producer import KafkaPythonProducer

        return KafkaPythonProducer(settings, linger_ms, compression)
    from app.sources.confluent.producer import ConfluentProducer

    return ConfluentProducer(settings, linger_ms, compression)


def open_transactional_producer(settings: KafkaSettings, transactional_id: str) -> TransactionalProducer:
    """The only producer of this id from now on. Raises BrokerError when the cluster does not answer or does not take
    it, ConfigError when the library refuses an option."""
    if settings.client == "kafka-python":
        from app.sources.kafka_python.transactional_producer import KafkaPythonTransactionalProducer

        return KafkaPythonTransactionalProducer(settings, transactional_id)
    from app.sources.confluent.transactional_producer import ConfluentTransactionalProducer

    return ConfluentTransactionalProducer(settings, transactional_id)


def open_admin(settings: KafkaSettings) -> Admin:
    """Raises BrokerError when the cluster does not answer, ConfigError when the library refuses an option."""
    if settings.client == "kafka-python":
        from app.sources.kafka_python.admin import KafkaPythonAdmin

        return KafkaPythonAdmin(settings)
    from app.sources.confluent.admin import ConfluentAdmin

    return ConfluentAdmin(settings)

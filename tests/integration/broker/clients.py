"""Two client libraries behind one small face, so that each test of the suite runs with both."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import confluent_kafka as ck
import confluent_kafka.admin as ck_admin
import kafka
import kafka.admin
import kafka.errors
from kafka.structs import OffsetAndMetadata, TopicPartition

Headers = list[tuple[str, bytes]]
PATIENCE_S = 30
QUICKLY_MS = 20
EIGHT_MB_AND_A_BIT = 9 * 2**20
Isolation = Literal["read_committed", "read_uncommitted"]


class RefusedError(Exception):
    """The broker answered an error; `code` is Kafka's."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Record:
    """What is sent."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = field(default_factory=list)
    timestamp_ms: int = 0


@dataclass
class Fetched:
    """What is received."""

    offset: int
    value: bytes | None
    key: bytes | None
    headers: Headers
    timestamp_ms: int
    by_append_time: bool


class Client(ABC):
    """One client library, connected to one broker. Producers are kept until `close`: to start one takes 0.5 s."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._producers: dict[tuple[str, bool], Any] = {}

    def close(self) -> None:
        for producer in self._producers.values():
            producer.close()

    def producer(self, compression: str = "none", in_small_batches: bool = False) -> Any:
        """An idempotent producer, with the library's own `flush`."""
        wanted = compression, in_small_batches
        if wanted not in self._producers:
            self._producers[wanted] = self.new_producer(*wanted)
        return self._producers[wanted]

    @abstractmethod
    def create_topic(self, topic: str, partitions: int = 1, **settings: object) -> None:
        """Raises RefusedError. Settings by Kafka's names with underscores: `retention_ms=1000`."""

    @abstractmethod
    def add_partitions(self, topic: str, count: int) -> None: ...

    @abstractmethod
    def delete_topic(self, topic: str) -> None: ...

    @abstractmethod
    def delete_records(self, topic: str, before: int) -> None: ...

    @abstractmethod
    def partitions(self, topic: str) -> int: ...

    @abstractmethod
    def groups(self) -> list[str]: ...

    @abstractmethod
    def group_offsets(self, group: str) -> dict[tuple[str, int], int]:
        """All that the group has committed, as lag tools ask for it."""

    @abstractmethod
    def setting(self, topic: str, name: str) -> str: ...

    @abstractmethod
    def new_producer(self, compression: str = "none", in_small_batches: bool = False) -> Any: ...

    @abstractmethod
    def send(self, producer: Any, topic: str, record: Record, partition: int = 0) -> list[Any]:
        """Queues a record; the list holds its offset, or the error, after `flush`."""

    @abstractmethod
    def new_transactional(self, transactional_id: str, timeout_ms: int = 60_000) -> Any:
        """The only producer of this id from now on. Its transactions are begun, committed and aborted below; each of
        these, and `send_offset`, raises RefusedError, with code FENCED for one that is not the only one any more."""

    @abstractmethod
    def begin(self, producer: Any) -> None: ...

    @abstractmethod
    def send_offset(self, producer: Any, group: str, topic: str, offset: int, metadata: str) -> None:
        """Commits the offset of partition 0 with the open transaction."""

    @abstractmethod
    def commit_transaction(self, producer: Any) -> None: ...

    @abstractmethod
    def abort_transaction(self, producer: Any) -> None: ...

    @abstractmethod
    @contextmanager
    def reader(
        self,
        topic: str,
        offset: int = 0,
        partition: int = 0,
        max_wait_ms: int = 500,
        isolation: Isolation = "read_committed",
    ) -> Iterator["Reader"]: ...

    @abstractmethod
    def bounds(self, topic: str, isolation: Isolation = "read_committed") -> tuple[int, int]:
        """(start, end) of partition 0."""

    @abstractmethod
    def offset_at(self, topic: str, timestamp_ms: int) -> int | None: ...

    @abstractmethod
    def commit(self, group: str, topic: str, offset: int, metadata: str) -> None: ...

    @abstractmethod
    def committed(self, group: str, topic: str, isolation: Isolation = "read_committed") -> tuple[int, str] | None: ...

    def produce(
        self, topic: str, records: Sequence[Record], partition: int = 0, compression: str = "none"
    ) -> list[int]:
        """Returns the offsets. Raises RefusedError."""
        producer = self.producer(compression)
        outcomes = [self.send(producer, topic, record, partition) for record in records]
        producer.flush(PATIENCE_S)
        for (outcome,) in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for (outcome,) in outcomes]

    def fetch(
        self,
        topic: str,
        count: int,
        offset: int = 0,
        partition: int = 0,
        isolation: Isolation = "read_committed",
    ) -> list[Fetched]:
        with self.reader(topic, offset, partition, isolation=isolation) as reader:
            return reader.take(count)


class Reader(ABC):
    """A consumer of one partition."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Fetched]:
        """Raises RefusedError."""

    def take(self, count: int) -> list[Fetched]:
        """At least `count` records; fewer only when they do not come for a long time."""
        taken: list[Fetched] = []
        while len(taken) < count:
            got = self.poll(PATIENCE_S)
            if not got:
                break
            taken += got
        return taken


class KafkaPython(Client):
    """kafka-python."""

    def create_topic(self, topic: str, partitions: int = 1, **settings: object) -> None:
        configs = {name.replace("_", "."): str(value) for name, value in settings.items()}
        with self._admin() as admin:
            admin.create_topics([kafka.admin.NewTopic(topic, partitions, 1, topic_configs=configs)])
            admin.wait_for_topics([topic])

    def add_partitions(self, topic: str, count: int) -> None:
        with self._admin() as admin:
            admin.create_partitions({topic: kafka.admin.NewPartitions(count)})

    def delete_topic(self, topic: str) -> None:
        with self._admin() as admin:
            admin.delete_topics([topic])

    def delete_records(self, topic: str, before: int) -> None:
        with self._admin() as admin:
            admin.delete_records({TopicPartition(topic, 0): before})

    def partitions(self, topic: str) -> int:
        with self._admin() as admin:
            [described] = admin.describe_topics([topic])
            return len(described["partitions"])

    def groups(self) -> list[str]:
        with self._admin() as admin:
            return [group["group_id"] for group in admin.list_groups()]

    def group_offsets(self, group: str) -> dict[tuple[str, int], int]:
        with self._admin() as admin:
            assert admin.describe_groups([group])[group]["error"] is None
            listed = admin.list_group_offsets({group: None})[group]
            return {(at.topic, at.partition): committed.offset for at, committed in listed.items()}

    def setting(self, topic: str, name: str) -> str:
        resource = kafka.admin.ConfigResource(kafka.admin.ConfigResourceType.TOPIC, topic)
        with self._admin() as admin:
            described = admin.describe_configs([resource], config_filter="all")
            return str(described["topic"][topic][name]["value"])

    def new_producer(self, compression: str = "none", in_small_batches: bool = False) -> Any:
        return kafka.KafkaProducer(
            bootstrap_servers=self.bootstrap,
            compression_type=None if compression == "none" else compression,
            linger_ms=0 if in_small_batches else 20,
            batch_size=200 if in_small_batches else 16_384,
            max_request_size=EIGHT_MB_AND_A_BIT,
            reconnect_backoff_max_ms=200,
            retry_backoff_ms=QUICKLY_MS,
        )

    def send(self, producer: Any, topic: str, record: Record, partition: int = 0) -> list[Any]:
        outcome: list[Any] = []
        future = producer.send(topic, record.value, record.key, record.headers, partition, record.timestamp_ms or None)
        future.add_callback(lambda metadata: outcome.append(metadata.offset))
        future.add_errback(lambda error: outcome.append(RefusedError(error.errno)))
        return outcome

    def new_transactional(self, transactional_id: str, timeout_ms: int = 60_000) -> Any:
        producer = kafka.KafkaProducer(
            bootstrap_servers=self.bootstrap,
            transactional_id=transactional_id,
            transaction_timeout_ms=timeout_ms,
            reconnect_backoff_max_ms=200,
            retry_backoff_ms=QUICKLY_MS,
        )
        producer.init_transactions()
        return producer

    def begin(self, producer: Any) -> None:
        producer.begin_transaction()

    def send_offset(self, producer: Any, group: str, topic: str, offset: int, metadata: str) -> None:
        offsets = {TopicPartition(topic, 0): OffsetAndMetadata(offset, metadata, -1)}
        with refusals(producer):
            producer.send_offsets_to_transaction(offsets, group)

    def commit_transaction(self, producer: Any) -> None:
        with refusals(producer):
            producer.flush()
            producer.commit_transaction()

    def abort_transaction(self, producer: Any) -> None:
        with refusals(producer):
            producer.abort_transaction()

    @contextmanager
    def reader(
        self,
        topic: str,
        offset: int = 0,
        partition: int = 0,
        max_wait_ms: int = 500,
        isolation: Isolation = "read_committed",
    ) -> Iterator["Reader"]:
        settings = {"fetch_max_wait_ms": max_wait_ms, "auto_offset_reset": "none", "isolation_level": isolation}
        with self._consumer(**settings) as consumer:
            consumer.assign([TopicPartition(topic, partition)])
            consumer.seek(TopicPartition(topic, partition), offset)
            yield KafkaPythonReader(consumer)

    def bounds(self, topic: str, isolation: Isolation = "read_committed") -> tuple[int, int]:
        first = TopicPartition(topic, 0)
        with self._consumer(isolation_level=isolation) as consumer:
            return consumer.beginning_offsets([first])[first], consumer.end_offsets([first])[first]

    def offset_at(self, topic: str, timestamp_ms: int) -> int | None:
        first = TopicPartition(topic, 0)
        with self._consumer() as consumer:
            found = consumer.offsets_for_times({first: timestamp_ms})[first]
            return found and found.offset

    def commit(self, group: str, topic: str, offset: int, metadata: str) -> None:
        with self._consumer(group_id=group) as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(offset, metadata, -1)})

    def committed(self, group: str, topic: str, isolation: Isolation = "read_committed") -> tuple[int, str] | None:
        with self._consumer(group_id=group, isolation_level=isolation) as consumer:
            found = consumer.committed(TopicPartition(topic, 0), metadata=True)
            return found and (found.offset, found.metadata)

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        admin = kafka.admin.KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            yield admin
        except kafka.errors.BrokerResponseError as error:
            raise RefusedError(error.errno) from error
        finally:
            admin.close()

    @contextmanager
    def _consumer(self, **settings: Any) -> Iterator[Any]:
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False, retry_backoff_ms=QUICKLY_MS, **settings
        )
        try:
            yield consumer
        finally:
            consumer.close()


@contextmanager
def refusals(producer: Any) -> Iterator[None]:
    """An error that follows from an earlier one names only that one's text: the producer itself knows it."""
    try:
        yield
    except kafka.errors.KafkaError as error:
        first = (
            error if isinstance(error, kafka.errors.BrokerResponseError) else producer._transaction_manager.last_error
        )
        raise RefusedError(first.errno) from error


class KafkaPythonReader(Reader):
    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def poll(self, timeout_s: float) -> list[Fetched]:
        try:
            polled = self._consumer.poll(int(timeout_s * 1_000))
        except kafka.errors.OffsetOutOfRangeError as error:
            raise RefusedError(error.errno) from error
        return [
            Fetched(
                record.offset,
                record.value,
                record.key,
                list(record.headers),
                record.timestamp,
                record.timestamp_type == 1,
            )
            for records in polled.values()
            for record in records
        ]


class ConfluentKafka(Client):
    """confluent-kafka, over librdkafka."""

    def create_topic(self, topic: str, partitions: int = 1, **settings: object) -> None:
        configs = {name.replace("_", "."): str(value) for name, value in settings.items()}
        new = ck_admin.NewTopic(topic, partitions, 1, config=configs)
        self._wait(self._admin.create_topics([new]))

    def add_partitions(self, topic: str, count: int) -> None:
        self._wait(self._admin.create_partitions([ck_admin.NewPartitions(topic, count)]))

    def delete_topic(self, topic: str) -> None:
        self._wait(self._admin.delete_topics([topic]))

    def delete_records(self, topic: str, before: int) -> None:
        self._wait(self._admin.delete_records([ck.TopicPartition(topic, 0, before)]))

    def partitions(self, topic: str) -> int:
        return len(self._admin.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions)

    def groups(self) -> list[str]:
        listed = self._admin.list_consumer_groups(request_timeout=PATIENCE_S).result()
        return [group.group_id for group in listed.valid]

    def group_offsets(self, group: str) -> dict[tuple[str, int], int]:
        [described] = self._admin.describe_consumer_groups([group], request_timeout=PATIENCE_S).values()
        assert described.result().group_id == group
        wanted = ck.ConsumerGroupTopicPartitions(group)
        [future] = self._admin.list_consumer_group_offsets([wanted], request_timeout=PATIENCE_S).values()
        return {(at.topic, at.partition): at.offset for at in future.result().topic_partitions}

    def setting(self, topic: str, name: str) -> str:
        resource = ck_admin.ConfigResource(ck_admin.ConfigResource.Type.TOPIC, topic)
        [future] = self._admin.describe_configs([resource]).values()
        return str(future.result(PATIENCE_S)[name].value)

    def new_producer(self, compression: str = "none", in_small_batches: bool = False) -> Any:
        return ck.Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "enable.idempotence": True,
                "compression.type": compression,
                "linger.ms": 0 if in_small_batches else 20,
                "batch.num.messages": 10 if in_small_batches else 10_000,
                "message.max.bytes": EIGHT_MB_AND_A_BIT,
                "reconnect.backoff.max.ms": 200,
                "retry.backoff.ms": QUICKLY_MS,
            }
        )

    def send(self, producer: Any, topic: str, record: Record, partition: int = 0) -> list[Any]:
        outcome: list[Any] = []

        def delivered(error: ck.KafkaError | None, message: ck.Message) -> None:
            outcome.append(RefusedError(error.code()) if error else message.offset())

        producer.produce(
            topic,
            record.value,
            record.key,
            partition,
            on_delivery=delivered,
            timestamp=record.timestamp_ms,
            headers=record.headers,
        )
        producer.poll(0)
        return outcome

    def new_transactional(self, transactional_id: str, timeout_ms: int = 60_000) -> Any:
        producer = ck.Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "transactional.id": transactional_id,
                "transaction.timeout.ms": timeout_ms,
                "reconnect.backoff.max.ms": 200,
                "retry.backoff.ms": QUICKLY_MS,
            }
        )
        producer.init_transactions(PATIENCE_S)
        return producer

    def begin(self, producer: Any) -> None:
        producer.begin_transaction()

    def send_offset(self, producer: Any, group: str, topic: str, offset: int, metadata: str) -> None:
        with self._consumer(**{"group.id": group}) as consumer:
            member = consumer.consumer_group_metadata()
        with librdkafka_refusals():
            producer.send_offsets_to_transaction([ck.TopicPartition(topic, 0, offset, metadata)], member, PATIENCE_S)

    def commit_transaction(self, producer: Any) -> None:
        with librdkafka_refusals():
            producer.commit_transaction(PATIENCE_S)

    def abort_transaction(self, producer: Any) -> None:
        with librdkafka_refusals():
            producer.abort_transaction(PATIENCE_S)

    @contextmanager
    def reader(
        self,
        topic: str,
        offset: int = 0,
        partition: int = 0,
        max_wait_ms: int = 500,
        isolation: Isolation = "read_committed",
    ) -> Iterator["Reader"]:
        with self._consumer(**{"fetch.wait.max.ms": max_wait_ms, "isolation.level": isolation}) as consumer:
            consumer.assign([ck.TopicPartition(topic, partition, offset)])
            yield ConfluentReader(consumer)

    def bounds(self, topic: str, isolation: Isolation = "read_committed") -> tuple[int, int]:
        with self._consumer(**{"isolation.level": isolation}) as consumer:
            start, end = consumer.get_watermark_offsets(ck.TopicPartition(topic, 0), PATIENCE_S)
            return start, end

    def offset_at(self, topic: str, timestamp_ms: int) -> int | None:
        with self._consumer() as consumer:
            [found] = consumer.offsets_for_times([ck.TopicPartition(topic, 0, timestamp_ms)], PATIENCE_S)
            return found.offset if found.offset >= 0 else None

    def commit(self, group: str, topic: str, offset: int, metadata: str) -> None:
        with self._consumer(**{"group.id": group}) as consumer:
            wanted = ck.TopicPartition(topic, 0, offset, metadata=metadata)
            consumer.commit(offsets=[wanted], asynchronous=False)

    def committed(self, group: str, topic: str, isolation: Isolation = "read_committed") -> tuple[int, str] | None:
        with self._consumer(**{"group.id": group, "isolation.level": isolation}) as consumer:
            [found] = consumer.committed([ck.TopicPartition(topic, 0)], PATIENCE_S)
            return (found.offset, found.metadata) if found.offset >= 0 else None

    @cached_property
    def _admin(self) -> Any:
        return ck_admin.AdminClient({"bootstrap.servers": self.bootstrap})

    @staticmethod
    def _wait(futures: dict[Any, Any]) -> None:
        for future in futures.values():
            try:
                future.result(PATIENCE_S)
            except ck.KafkaException as error:
                raise RefusedError(error.args[0].code()) from error

    @contextmanager
    def _consumer(self, **settings: Any) -> Iterator[Any]:
        defaults = {
            "bootstrap.servers": self.bootstrap,
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
        consumer = ck.Consumer(defaults | settings)
        try:
            yield consumer
        finally:
            consumer.close()


@contextmanager
def librdkafka_refusals() -> Iterator[None]:
    try:
        yield
    except ck.KafkaException as error:
        raise RefusedError(error.args[0].code()) from error


class ConfluentReader(Reader):
    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def poll(self, timeout_s: float) -> list[Fetched]:
        message = self._consumer.poll(timeout_s)
        return [self._convert(message)] if message is not None else []  # one without a value is falsy

    @staticmethod
    def _convert(message: ck.Message) -> Fetched:
        error = message.error()
        if error:
            out_of_range = error.code() == ck.KafkaError._AUTO_OFFSET_RESET
            raise RefusedError(ck.KafkaError.OFFSET_OUT_OF_RANGE if out_of_range else error.code())
        kind, timestamp_ms = message.timestamp()
        return Fetched(
            message.offset(),
            message.value(),
            message.key(),
            message.headers() or [],
            timestamp_ms,
            kind == ck.TIMESTAMP_LOG_APPEND_TIME,
        )

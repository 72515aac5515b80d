"""One set of settings, in the words of two libraries."""

import subprocess
import sys

import kafka
import pytest

from app.errors import ConfigError
from app.sources import KafkaSettings
from app.sources.confluent import consumer as confluent_consumer
from app.sources.confluent import link as confluent_link
from app.sources.confluent import producer as confluent_producer
from app.sources.confluent import transactional_producer as confluent_transactional
from app.sources.kafka_python import consumer as kafka_python_consumer
from app.sources.kafka_python import link as kafka_python_link
from app.sources.kafka_python import producer as kafka_python_producer
from app.sources.kafka_python import transactional_producer as kafka_python_transactional

SECURE = KafkaSettings.model_validate(
    {
        "bootstrap": "a:1,b:2",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "ann",
        "sasl_password": "hush",
        "ssl_cafile": "ca.pem",
        "ssl_certfile": "our.pem",
        "ssl_keyfile": "our.key",
        "ssl_check_hostname": False,
    }
)
PLAIN = KafkaSettings(bootstrap="a:1")


def test_security_in_the_words_of_librdkafka() -> None:
    options = confluent_link.common_options(SECURE)
    assert (
        options.items()
        >= {
            "bootstrap.servers": "a:1,b:2",
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "ann",
            "sasl.password": "hush",
            "ssl.ca.location": "ca.pem",
            "ssl.certificate.location": "our.pem",
            "ssl.key.location": "our.key",
            "ssl.endpoint.identification.algorithm": "none",
        }.items()
    )


def test_what_is_not_set_is_not_passed_to_librdkafka() -> None:
    assert "sasl.password" not in confluent_link.common_options(PLAIN)
    assert None not in confluent_link.common_options(PLAIN).values()


def test_a_client_of_librdkafka_asks_for_nothing_that_piles_up_while_nobody_polls_it() -> None:
    for options in (
        confluent_consumer.consumer_options(PLAIN, "group", 1 << 20),
        confluent_producer.producer_options(PLAIN, 1, "none"),
        confluent_transactional.transactional_options(PLAIN, "id"),
    ):
        assert "statistics.interval.ms" not in options


def test_security_in_the_words_of_kafka_python() -> None:
    options = kafka_python_link.common_options(SECURE, kafka.KafkaConsumer)
    expected = {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "hush",
        "ssl_cafile": "ca.pem",
        "ssl_certfile": "our.pem",
        "ssl_keyfile": "our.key",
        "ssl_check_hostname": False,
    }
    assert {name: options[name] for name in expected} == expected


def test_both_read_committed_records_from_given_positions_only() -> None:
    options = confluent_consumer.consumer_options(PLAIN, "group", 1 << 20)
    assert options["auto.offset.reset"] == "error"
    assert options["enable.auto.commit"] is False
    assert options["isolation.level"] == "read_committed"
    assert options["queued.max.messages.kbytes"] == 1024
    options = kafka_python_consumer.consumer_options(PLAIN, "group", 1 << 20)
    assert options["auto_offset_reset"] == "none"
    assert options["enable_auto_commit"] is False
    assert options["isolation_level"] == "read_committed"
    assert options["fetch_max_bytes"] == 1 << 20


def test_both_write_idempotently_to_all_replicas_without_end() -> None:
    options = confluent_producer.producer_options(PLAIN, 1, "lz4")
    assert (options["enable.idempotence"], options["acks"]) == (True, "all")
    assert (options["linger.ms"], options["compression.type"]) == (1, "lz4")
    assert options["message.timeout.ms"] == 0
    options = kafka_python_producer.producer_options(PLAIN, 1, "none")
    assert (options["enable_idempotence"], options["acks"]) == (True, "all")
    assert (options["linger_ms"], options["compression_type"]) == (1, None)
    assert options["delivery_timeout_ms"] == float("inf")


def test_both_bound_a_transaction_and_the_time_that_its_records_are_tried() -> None:
    options = confluent_transactional.transactional_options(PLAIN, "fraud.holds/0")
    assert (options["transactional.id"], options["transaction.timeout.ms"]) == ("fraud.holds/0", 10_000)
    assert (options["enable.idempotence"], options["acks"], options["linger.ms"]) == (True, "all", 100)
    assert "message.timeout.ms" not in options  # librdkafka takes the transaction's
    options = kafka_python_transactional.transactional_options(PLAIN, "fraud.holds/0")
    assert (options["transactional_id"], options["transaction_timeout_ms"]) == ("fraud.holds/0", 10_000)
    assert (options["enable_idempotence"], options["acks"], options["linger_ms"]) == (True, "all", 0)


def test_both_read_the_uncommitted_where_that_is_asked_for() -> None:
    options = confluent_consumer.consumer_options(PLAIN, "group", 1 << 20, read_uncommitted=True)
    assert options["isolation.level"] == "read_uncommitted"
    options = kafka_python_consumer.consumer_options(PLAIN, "group", 1 << 20, read_uncommitted=True)
    assert options["isolation_level"] == "read_uncommitted"


def test_extra_options_replace_what_is_tuned() -> None:
    settings = KafkaSettings(bootstrap="a:1", extra={"fetch.wait.max.ms": 7})
    assert confluent_consumer.consumer_options(settings, None, 1 << 20)["fetch.wait.max.ms"] == 7


def test_a_class_of_kafka_python_gets_the_extra_options_that_it_has() -> None:
    settings = KafkaSettings(bootstrap="a:1", client="kafka-python", extra={"fetch_max_wait_ms": 7})
    assert kafka_python_consumer.consumer_options(settings, None, 1 << 20)["fetch_max_wait_ms"] == 7
    assert "fetch_max_wait_ms" not in kafka_python_producer.producer_options(settings, 5, "none")


def test_an_option_that_no_class_of_kafka_python_has_is_refused() -> None:
    settings = KafkaSettings(bootstrap="a:1", client="kafka-python", extra={"fetch.wait.max.ms": 7})
    with pytest.raises(ConfigError, match=r"kafka-python has no option 'fetch\.wait\.max\.ms'; correct it"):
        kafka_python_consumer.consumer_options(settings, None, 1 << 20)


def test_no_library_is_imported_before_it_is_opened() -> None:
    program = "import sys, app.sources; print({'kafka', 'confluent_kafka'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"

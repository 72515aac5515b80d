"""SASL over TLS against Apache Kafka: who may come in, and what the others are told."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from app.errors import BrokerError
from app.sources import ClientName, KafkaSettings, TopicPartition, open_admin, open_consumer, open_producer
from tests.integration.conftest import free_port, kafka_command, run_broker

pytestmark = pytest.mark.kafka
LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="hush";'


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The settings with which Ann gets in."""
    command = kafka_command()
    folder = tmp_path_factory.mktemp("secured-kafka")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    write_key_store(authority.issue_cert("127.0.0.1"), folder / "server.pem")
    plain, secure = free_port(2), free_port()
    broker = run_broker([*command, *options(plain, secure, folder)], secure, folder / "output")
    next(broker)
    yield {
        "bootstrap": f"127.0.0.1:{secure}",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "ann",
        "sasl_password": "hush",
        "ssl_cafile": str(folder / "ca.pem"),
    }
    broker.close()


def write_key_store(certificate: trustme.LeafCert, path: Path) -> None:
    """Kafka wants the private key as PKCS#8."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for link in certificate.cert_chain_pems:
        link.write_to_path(path, append=True)


def options(plain: int, secure: int, folder: Path) -> list[str]:
    settings = {
        "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{plain + 1},SASL_SSL://127.0.0.1:{secure}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": LOGIN,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "server.pem"),
        "broker.session.timeout.ms": "18000",
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["--port", str(plain), "--dir", str(folder / "data"), *given]


@pytest.fixture(params=["confluent-kafka", "kafka-python"])
def client(request: pytest.FixtureRequest) -> ClientName:
    return request.param


def test_a_record_goes_there_and_back_over_tls_with_a_password(secured: dict[str, Any], client: ClientName) -> None:
    settings = KafkaSettings.model_validate({**secured, "client": client})
    topic = f"secret-{client}"
    with closing(open_admin(settings)) as admin:
        admin.ensure_topics({topic: 1})
    with closing(open_producer(settings)) as producer:
        producer.send(topic, b"psst", partition=0)
    with closing(open_consumer(settings)) as consumer:
        consumer.assign({TopicPartition(topic, 0): 0})
        [records] = consumer.poll(10, 10_000)
    assert records.values == [b"psst"]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [({"sasl_password": "guessed"}, "uthentication"), ({"ssl_cafile": None}, "certificate")],
    ids=["wrong password", "unknown authority"],
)
def test_who_does_not_get_in_is_told_why(
    secured: dict[str, Any], client: ClientName, wrong: dict[str, Any], hint: str
) -> None:
    settings = KafkaSettings.model_validate({**secured, **wrong, "client": client})
    with pytest.raises(BrokerError) as refused:
        open_consumer(settings)
    assert f"Kafka at {secured['bootstrap']}" in str(refused.value)
    assert hint in str(refused.value)
    assert "guessed" not in str(refused.value)

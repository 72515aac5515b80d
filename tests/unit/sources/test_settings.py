import pytest
from pydantic import ValidationError

from app.sources import KafkaSettings

SASL = {"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": "ann", "sasl_password": "hush"}
CERTIFICATE = {"ssl_certfile": "our.pem", "ssl_keyfile": "our.key"}


def test_bootstrap_alone_is_enough() -> None:
    settings = KafkaSettings(bootstrap="localhost:9092")
    assert settings.client == "confluent-kafka"
    assert settings.security_protocol == "PLAINTEXT"


def test_several_brokers_lose_the_blanks_between_them() -> None:
    assert KafkaSettings(bootstrap="a:1, [::1]:2 ,c.example:3").bootstrap == "a:1,[::1]:2,c.example:3"


@pytest.mark.parametrize("bootstrap", ["", "localhost", "localhost:", ":9092", "a:1,,b:2", "http://a:1", "a:1:2"])
def test_what_is_no_address_is_refused_by_name(bootstrap: str) -> None:
    with pytest.raises(ValidationError, match=r"is no broker's address; write host:port, like 'localhost:9092'"):
        KafkaSettings(bootstrap=bootstrap)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"clent": "kafka-python"}, "clent"),
        ({"client": "librdkafka"}, "'confluent-kafka' or 'kafka-python'"),
        ({"security_protocol": "TLS"}, "'PLAINTEXT', 'SSL'"),
        ({"security_protocol": "SASL_SSL"}, "SASL_SSL needs sasl_mechanism, sasl_username and sasl_password"),
        ({"security_protocol": "SASL_SSL", **SASL, "sasl_password": None}, "give all three"),
        (SASL, "PLAINTEXT uses no sasl_…; make security_protocol SASL_SSL, or remove them"),
        (CERTIFICATE, "PLAINTEXT uses no ssl_…; make security_protocol SSL"),
        ({"security_protocol": "SSL", "ssl_certfile": "our.pem"}, "belong together; give both, or neither"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        KafkaSettings.model_validate({"bootstrap": "localhost:9092", **given})


@pytest.mark.parametrize(
    "name",
    ["auto.offset.reset", "auto_offset_reset", "enable.idempotence", "acks", "partitioner", "group.id"],
)
def test_an_option_that_a_promise_rests_on_cannot_be_set(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"'{name}' cannot be set \(.+\); remove it"):
        KafkaSettings(bootstrap="localhost:9092", extra={name: "x"})


@pytest.mark.parametrize("name", ["sasl.username", "sasl_plain_password", "security.protocol", "ssl_cafile"])
def test_an_option_with_a_setting_of_its_own_is_refused_in_extra(name: str) -> None:
    with pytest.raises(ValidationError, match=f"'{name}' has a setting of its own"):
        KafkaSettings(bootstrap="localhost:9092", extra={name: "x"})


def test_a_password_is_never_shown() -> None:
    settings = KafkaSettings(bootstrap="localhost:9092", security_protocol="SASL_SSL", **SASL)
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    assert settings.password == "hush"

"""Which Kafka, by which client library, with which credentials: what the YAML says of it."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

ClientName = Literal["confluent-kafka", "kafka-python"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
Option = str | int | float | bool

HOST_AND_PORT = re.compile(r"([^\s,:]+|\[[0-9a-fA-F:.]+\]):\d{1,5}")

# What a promise of this package rests on, in the spelling of both libraries ("." written as "_").
KEPT_OPTIONS = {
    "bootstrap_servers": "the setting `bootstrap` names them",
    "group_id": "who opens a consumer names its group",
    "auto_offset_reset": "a position that is not in the log must be an error, never a silent jump",
    "enable_auto_commit": "offsets are committed by hand",
    "enable_auto_offset_store": "offsets are committed by hand",
    "enable_idempotence": "a retry must not write a record twice",
    "transactional_id": "each partition of a sink has one of its own",
    "transaction_timeout_ms": "readers wait for a transaction of a worker that was killed",
    "acks": "a record counts as written when all replicas have it",
    "partitioner": "a key must reach the same partition from every client",
    "delivery_timeout_ms": "a record is tried until it arrives: none may be missing between two others",
    "message_timeout_ms": "a record is tried until it arrives: none may be missing between two others",
}


class KafkaSettings(BaseModel):
    """How to reach a Kafka cluster: one set of names for both libraries, validated before anything starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap: str = Field(description="host:port of a broker, or of several with commas between them")
    client: ClientName = "confluent-kafka"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: str | None = Field(default=None, description="certificates of the CA (PEM); None: the system's")
    ssl_certfile: str | None = Field(default=None, description="our own certificate (PEM)")
    ssl_keyfile: str | None = Field(default=None, description="the private key of ssl_certfile (PEM)")
    ssl_check_hostname: bool = True
    extra: dict[str, Option] = Field(
        default_factory=dict, description="further options of the chosen library, in its own spelling"
    )

    @field_validator("bootstrap")
    @classmethod
    def _names_hosts_and_ports(cls, bootstrap: str) -> str:
        servers = [server.strip() for server in bootstrap.split(",")]
        for server in servers:
            if not HOST_AND_PORT.fullmatch(server):
                raise ValueError(f"{server!r} is no broker's address; write host:port, like 'localhost:9092'")
        return ",".join(servers)

    @field_validator("extra")
    @classmethod
    def _leaves_the_promises_alone(cls, extra: dict[str, Option]) -> dict[str, Option]:
        for name in extra:
            spelling = name.replace(".", "_")
            if spelling in KEPT_OPTIONS:
                raise ValueError(f"{name!r} cannot be set ({KEPT_OPTIONS[spelling]}); remove it")
            if spelling in cls.model_fields or spelling.startswith("sasl_plain_"):
                raise ValueError(f"{name!r} has a setting of its own; write it beside `extra`, not in it")
        return extra

    @model_validator(mode="after")
    def _is_whole(self) -> "KafkaSettings":
        protocol = self.security_protocol
        credentials = (self.sasl_mechanism, self.sasl_username, self.sasl_password)
        if protocol.startswith("SASL_") and not all(credentials):
            raise ValueError(f"{protocol} needs sasl_mechanism, sasl_username and sasl_password; give all three")
        if not protocol.startswith("SASL_") and any(credentials):
            raise ValueError(f"{protocol} uses no sasl_…; make security_protocol SASL_SSL, or remove them")
        if not protocol.endswith("SSL") and (self.ssl_cafile or self.ssl_certfile):
            raise ValueError(f"{protocol} uses no ssl_…; make security_protocol SSL or SASL_SSL, or remove them")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("ssl_certfile and ssl_keyfile belong together; give both, or neither")
        return self

    @property
    def password(self) -> str | None:
        """The SASL password in the clear, for the client alone."""
        return self.sasl_password.get_secret_value() if self.sasl_password else None

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.api.backend import Backend
from app.api.http import create_api
from app.testing.kafka import MemoryKafka
from tests.unit.api.stand_in import Coordinator, DecidedProducer, Stream, make_backend


@pytest.fixture
def broker() -> MemoryKafka:
    return MemoryKafka()


@pytest.fixture
def stream(broker: MemoryKafka) -> Stream:
    return Stream(broker)


@pytest.fixture
def producer(stream: Stream) -> DecidedProducer:
    return DecidedProducer(stream)


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def backend(broker: MemoryKafka, producer: DecidedProducer, coordinator: Coordinator) -> Backend:
    return make_backend(broker, producer, coordinator)


@pytest.fixture
def client(backend: Backend) -> Iterator[TestClient]:
    with TestClient(create_api(backend)) as client:
        yield client


@pytest.fixture
def guarded(backend: Backend) -> Iterator[TestClient]:
    """The API with the token 'secret'."""
    with TestClient(create_api(backend, "secret")) as client:
        yield client

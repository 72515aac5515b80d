from pathlib import Path

import pytest

from app.errors import HeadraceError
from benchmarks.site import make_brokers


def test_one_broker_is_asked_for_a_port_and_a_folder_alone() -> None:
    [(name, broker)] = make_brokers(["kafka"], Path("data"), 1).items()
    assert name == "broker"
    assert broker.command[:5] == ["kafka", "--port", str(broker.port), "--dir", "data/broker"]
    assert "--voters" not in broker.command


def test_the_brokers_of_a_cluster_know_each_other_and_share_nothing() -> None:
    brokers = make_brokers(["kafka"], Path("data"), 3)
    assert list(brokers) == ["broker", "broker-2", "broker-3"]
    ports = [broker.port for broker in brokers.values()]
    assert len({*ports, *(port + 1 for port in ports)}) == 6
    for number, broker in enumerate(brokers.values(), start=1):
        said = dict(zip(broker.command[1::2], broker.command[2::2], strict=True))
        assert said["--node"] == str(number)
        assert said["--voters"] == ",".join(f"{at}@127.0.0.1:{port + 1}" for at, port in enumerate(ports, start=1))
    assert len({broker.command[4] for broker in brokers.values()}) == 3


def test_the_development_broker_is_no_cluster() -> None:
    with pytest.raises(HeadraceError, match="needs Apache Kafka; set KAFKA_CMD"):
        make_brokers(None, Path("data"), 3)

"""What can go wrong with a broker, said the same way whichever client found it."""

import time
from collections.abc import Callable, Collection

from app.errors import BrokerError, ConfigError, FencedError
from app.sources.client import TopicPartition


def unreachable(bootstrap: str, reason: object) -> BrokerError:
    return BrokerError(
        f"Kafka at {bootstrap} is out of reach, or not ready ({reason}); see whether it runs, and whether"
        " `bootstrap` and the security settings are right"
    )


def refused(bootstrap: str, reason: object) -> BrokerError:
    return BrokerError(f"Kafka at {bootstrap} refused: {reason}")


def fenced(bootstrap: str, reason: object) -> FencedError:
    return FencedError(
        f"Kafka at {bootstrap} has fenced this producer ({reason}): another one with its transactional id has taken"
        " over, or its transaction took too long; what it had open is undone"
    )


def unfinished(bootstrap: str, step: str, waited_s: float) -> BrokerError:
    return BrokerError(
        f"Kafka at {bootstrap} did not {step} within {waited_s:g} s; it is undone or finished by the next producer"
        " of this transactional id"
    )


def no_such_topic(bootstrap: str, topic: str) -> BrokerError:
    return BrokerError(f"Kafka at {bootstrap} has no topic {topic!r}; create it, or correct its name")


def out_of_range(partition: TopicPartition, wanted: int, beginning: int, end: int) -> BrokerError:
    """The position `wanted` lies outside of the log, whose records are [beginning, end)."""
    if wanted < beginning:
        cause = f"{beginning - wanted} records were removed, by retention or by hand"
    else:
        cause = "the topic was made anew, or lost its end"
    return BrokerError(
        f"{partition} has no offset {wanted}: it holds {beginning} to {end} ({cause}); restore the log, or"
        f" start from an offset of {beginning} to {end} and accept what is missing"
    )


def buffer_full(bootstrap: str, waited_s: float) -> BrokerError:
    return BrokerError(
        f"Kafka at {bootstrap} has made no room in the send buffer for {waited_s:g} s; see whether it runs and keeps up"
    )


def given_up(bootstrap: str, unsent: int, waited_s: float) -> BrokerError:
    return BrokerError(
        f"{unsent} records are given up: Kafka at {bootstrap} did not take them within {waited_s:g} s of closing;"
        " see whether it runs, then send them again"
    )


def check_that_they_exist(
    bootstrap: str, partitions: Collection[TopicPartition], list_partitions: Callable[[str], list[int]]
) -> None:
    """Raises BrokerError for the first topic or partition that the cluster does not have."""
    known = {topic: list_partitions(topic) for topic in {partition.topic for partition in partitions}}
    for topic, number in partitions:
        if number not in known[topic]:
            raise BrokerError(
                f"topic {topic!r} at {bootstrap} has no partition {number}, only {known[topic][0]} to"
                f" {known[topic][-1]}; assign one of these, or add partitions to the topic"
            )


def require_group(group: str | None) -> None:
    if group is None:
        raise ConfigError("this consumer has no group to commit to; open it with one")


def wait_until(done: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Asks every 50 ms. Raises BrokerError, saying `otherwise`, after timeout_s."""
    give_up_at = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > give_up_at:
            raise BrokerError(f"{otherwise} after {timeout_s:g} s; see the brokers' logs")
        time.sleep(0.05)

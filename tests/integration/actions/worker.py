"""An action worker as a process of its own, to be killed: every sink of the test pipeline that is not off."""

import json
import signal
import sys
import threading
from functools import partial
from typing import Any

from app.actions.build import build_sinks
from app.actions.kafka import Kafka
from app.actions.loop import SinkLoop
from app.actions.post import Post
from app.actions.publish import Publish
from app.actions.redis import Redis
from app.actions.upsert import Upsert
from app.event import Event
from app.pipeline import Pipeline
from app.sources import KafkaSettings, open_consumer, open_producer, open_transactional_producer
from tests.unit.actions.decision_log import PIPELINE, Hold


class Payment(Event, frozen=True):
    card: str


PUBLISHED = Pipeline(
    source=Payment,
    actions={Hold: [Publish("holds"), Post("cases"), Upsert("held"), Upsert("held-here"), Redis("hashes", "payment")]},
)


def kafka(bootstrap: str, client: str, decisions: str, dead_letters: str, late: str) -> Kafka:
    settings = KafkaSettings.model_validate({"bootstrap": bootstrap, "client": client})
    return Kafka(
        decisions=decisions,
        dead_letters=dead_letters,
        late=late,
        open_consumer=partial(open_consumer, settings),
        open_producer=partial(open_producer, settings, linger_ms=1),
        open_transactional_producer=partial(open_transactional_producer, settings),
    )


def run(loop: SinkLoop[Any], over: threading.Event) -> None:
    while not over.is_set():
        loop.step(100)
    loop.close()


def main(arguments: dict[str, Any]) -> None:
    over = threading.Event()
    # A handler would run once the main thread wakes; just behind a SIGCONT the system may give the signal to another.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("ready", flush=True)  # to be terminated in order
    connect = kafka(*arguments["kafka"])
    loops = [sink.open(connect) for sink in build_sinks(PIPELINE, PUBLISHED, arguments["sinks"])]
    threads = [threading.Thread(target=run, args=[loop, over]) for loop in loops]
    for loop, thread in zip(loops, threads, strict=True):
        loop.assign(arguments["partitions"])
        thread.start()
    signal.sigwait([signal.SIGTERM])
    over.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

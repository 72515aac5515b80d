"""`dead-letters` against a broker, with letters that a pipeline has made: what is sent again takes effect once."""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.actions.build import build_sinks
from app.actions.kafka import Kafka
from app.actions.letters import REJECTS
from app.actions.message import reject_message
from app.actions.selection import Reject
from app.log.frame import Cursor, DeadLetter, Stages, encode_frame
from app.log.replayed import replay_of
from app.log.tail import read_to_end
from app.operate.cli import main
from app.operate.config_file import read_args
from app.operate.first_copies import first_copies
from app.pipelines.fraud import fraud
from app.runtime.task import Outcome, Task, TaskSettings, decide
from app.sources import Records, TopicPartition, open_admin, open_consumer, open_producer, open_transactional_producer
from tests.integration.actions.conftest import Receiver
from tests.integration.conftest import ROOT, free_port, wait_until

STAGES = Stages(0, 0, 0, 0, 0)
PARTITIONS = 2
HOUR_MS = 3_600_000


class Line:
    """The fraud pipeline by its fallback, step by step, on topics of its own; its one webhook is `receiver`."""

    def __init__(self, bootstrap: str, folder: Path, receiver: Receiver) -> None:
        source = f"payments-{uuid.uuid4().hex[:8]}"
        self.config = folder / "fraud.yaml"
        text = (ROOT / "config" / "fraud.yaml").read_text()
        text = text.replace("source: payments #", f"source: {source}\n        decisions: {source}.decisions\n#")
        text = text.replace(
            "partitions: 4",
            f"dead_letters: {source}.dead\n        late: {source}.late\n        partitions: {PARTITIONS}",
        )
        text = text.replace("${CASE_SYSTEM_URL:-off}", receiver.url).replace("topic: holds", "topic: off")
        self.config.write_text(text.replace("dsn: ${FRAUD_DB:-sqlite:///.headrace/fraud.db}", "dsn: off"))
        self.args = read_args(self.config, "fraud", bootstrap)
        self.topics = self.args.topics
        self.bootstrap = bootstrap
        with closing(open_admin(self.args.kafka)) as admin:
            topics = self.topics
            names = (topics.source, topics.decisions, topics.dead_letters, topics.late)
            admin.ensure_topics(dict.fromkeys(names, PARTITIONS))
        self.consumer = open_consumer(self.args.kafka)
        self.producer = open_producer(self.args.kafka, linger_ms=1)
        self.settings = TaskSettings("fraud", self.topics.source)
        self.decided = [-1] * PARTITIONS

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()

    def send(self, value: bytes, key: bytes, partition: int = 0) -> None:
        self.producer.send(
            self.topics.source, value, key=key, partition=partition, headers=[("trace", b"\xff"), ("none", None)]
        )
        assert self.producer.flush(30) == 0

    def run(self) -> None:
        """Decides what there is, from the first record on, and carries it out."""
        for partition in range(PARTITIONS):
            task = Task(fraud, self.settings, partition, next_offset=0, decided_through=self.decided[partition])
            for records in self.read(self.topics.source, partition):
                part = task.admit(records)
                if part is not None:
                    frame = decide(fraud, self.settings, part, Outcome({}, {}, "fallback-failed"), STAGES)
                    header, value = encode_frame(frame)
                    self.producer.send(self.topics.decisions, value, partition=partition, headers=[header])
            self.decided[partition] = task.next_offset - 1
        assert self.producer.flush(30) == 0
        self._act()

    def _act(self) -> None:
        kafka = Kafka(
            decisions=self.topics.decisions,
            dead_letters=self.topics.dead_letters,
            late=self.topics.late,
            open_consumer=partial(open_consumer, self.args.kafka),
            open_producer=partial(open_producer, self.args.kafka, linger_ms=1),
            open_transactional_producer=partial(open_transactional_producer, self.args.kafka),
        )
        logs = [TopicPartition(self.topics.decisions, each) for each in range(PARTITIONS)]
        ends = {log.partition: end for log, end in self.consumer.end_offsets(logs).items()}
        for sink in build_sinks("fraud", fraud, self.args.sinks):
            loop = sink.open(kafka)
            loop.assign(range(PARTITIONS))

            def caught_up(loop: Any = loop) -> bool:
                loop.step(100)
                places = loop.status().partitions
                return {at: place.log_offset for at, place in places.items()} == ends

            wait_until(caught_up, sink.name)
            loop.close()

    def read(self, topic: str, partition: int) -> Iterator[Records]:
        return read_to_end(self.consumer, TopicPartition(topic, partition), 0)

    def replays(self) -> Counter[tuple[str, int]]:
        """Letter and number of every record in the source that was sent again."""
        headers = [
            each
            for at in range(PARTITIONS)
            for records in self.read(self.topics.source, at)
            for each in records.headers()
        ]
        return Counter(found for found in map(replay_of, headers) if found is not None)

    def decisions(self) -> Counter[str]:
        """How often each event was decided."""
        logs = [TopicPartition(self.topics.decisions, each) for each in range(PARTITIONS)]
        ids = [
            fresh.frame.decided.event["id"][fresh.rows]
            for log in logs
            for fresh in first_copies(self.consumer, log, 0, Cursor(-1))
        ]
        return Counter(each for some in ids for each in some)

    @property
    def arguments(self) -> list[str]:
        return ["--config", str(self.config), "--bootstrap", self.bootstrap]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    webhook = Receiver(free_port())
    webhook.start()
    yield webhook
    webhook.stop()


@pytest.fixture
def line(bootstrap: str, tmp_path: Path, receiver: Receiver) -> Iterator[Line]:
    line = Line(bootstrap, tmp_path, receiver)
    yield line
    line.close()


@pytest.fixture
def call(line: Line, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command, which has to end with `status`; gives what it prints."""

    def call(what: str, *arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["dead-letters", what, *arguments, *line.arguments]) == status
        said = capsys.readouterr()
        return said.out if status == 0 else said.err

    return call


def listed(said: str) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in map(json.loads, said.splitlines())}


def payment(event_id: str, amount: float = 10.0, ahead_ms: int = 0) -> bytes:
    time_ms = time.time_ns() // 1_000_000 + ahead_ms
    return json.dumps({"id": event_id, "time": time_ms, "card": "c", "terminal": "t", "amount": amount}).encode()


def test_letters_are_listed_shown_replayed_and_dropped(
    line: Line, receiver: Receiver, call: Callable[..., str]
) -> None:
    receiver.status = 422
    line.send(payment("fine"), b"c")
    line.send(b"\xff{", b"c")
    line.send(payment("foreign"), b"another")
    line.send(payment("risky", amount=900.0), b"c", partition=1)
    line.run()

    found = listed(call("ls", "--jsonl"))
    assert {name: (each["cause"], each["sink"]) for name, each in found.items()} == {
        "0/1": ("parse", None),
        "0/2": ("key", None),
        "1/0/0@case-system": ("sink", "case-system"),
    }
    broken = found["0/1"]
    assert (broken["key"], broken["value"], broken["attempts"], broken["state"]) == ("c", "0xff7b", 1, "open")
    assert (broken["topic"], broken["partition"], broken["offset"]) == (line.topics.source, 0, 1)
    assert broken["headers"] == [{"name": "trace", "value": "0xff"}, {"name": "none", "value": None}]
    assert all(abs(each["append_ms"] - each["written_ms"]) < 60_000 for each in found.values())
    assert "the record's key is b'another'" in call("show", "0/2")
    assert list(listed(call("ls", "--json", "--reason", "key"))) == ["0/2"]
    assert list(listed(call("ls", "--json", "--sink", "case-system"))) == ["1/0/0@case-system"]
    assert call("ls", "--until", "1h") == call("ls", "--since", "2099-01-01") == ""
    assert len(call("ls", "--since", "1h").splitlines()) == 3

    assert "1/0/0@case-system: http" in call("replay", "--sink", "case-system", status=1)
    receiver.status = 200
    assert json.loads(call("replay", "--all", "--json")) == {"replayed": 3, "refused": []}
    assert call("ls") == ""
    assert list(receiver.kept) == ["fraud/1/0/0"]
    assert line.replays() == {("0/1", 1): 1, ("0/2", 1): 1}

    line.run()
    again = listed(call("ls", "--jsonl"))
    assert {name: (each["cause"], each["attempts"]) for name, each in again.items()} == {
        "0/3": ("parse", 2),
        "0/4": ("key", 2),
    }
    assert again["0/3"]["headers"] == broken["headers"]
    assert "0/1: it was replayed before; --again" in call("replay", "0/1", status=1)
    assert "0/3: it was tried 2 times" in call("replay", "0/3", "--most-attempts", "2", status=1)
    assert json.loads(call("replay", "0/1", "--again", "--json"))["replayed"] == 1
    assert json.loads(call("drop", "--all", "--json")) == {"dropped": 2, "refused": []}
    assert call("ls") == ""
    states = {name: each["state"] for name, each in listed(call("ls", "--jsonl", "--dealt-with")).items()}
    assert states == {
        "0/1": "replayed",
        "0/2": "replayed",
        "1/0/0@case-system": "replayed",
        "0/3": "dropped",
        "0/4": "dropped",
    }
    assert receiver.requests == 3


def test_a_record_that_is_replayed_and_decides_well_is_decided_once(line: Line, call: Callable[..., str]) -> None:
    line.send(payment("early", ahead_ms=2 * HOUR_MS), b"c")
    line.send(payment("fine"), b"c")
    line.run()
    assert listed(call("ls", "--jsonl"))["0/0"]["cause"] == "time"
    line.settings = replace(line.settings, max_ahead_ms=3 * HOUR_MS)
    call("replay", "--reason", "time")
    line.run()
    assert line.decisions() == {"fine": 1, "early": 1}
    assert call("ls") == ""


def test_a_sink_that_is_away_is_said_so_and_its_letters_stay(
    line: Line, receiver: Receiver, call: Callable[..., str]
) -> None:
    receiver.status = 422
    line.send(payment("risky", amount=900.0), b"c")
    line.run()
    receiver.stop()
    assert "the sink 'case-system' is away" in call("replay", "--all", status=1)
    assert len(call("ls").splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "0/99"), "there is no dead letter '0/99'; `python -m app dead-letters ls` lists"),
        (("replay",), "which letters? give their ids, a filter like --reason parse, or --all"),
        (("drop",), "which letters?"),
    ],
)
def test_what_is_asked_wrongly_is_said_with_the_remedy(
    line: Line, call: Callable[..., str], arguments: Sequence[str], message: str
) -> None:
    assert message in call(*arguments, status=1)


LETTERS = 4_000


def write_letters(line: Line) -> None:
    for at in range(LETTERS):
        partition, offset = at % PARTITIONS, 1_000_000 + at
        letter = DeadLetter(offset, 1_000, "no event", b"k", b"v%d" % at, "parse", (("trace", b"1"),))
        reject = Reject(f"fraud/{partition}/{offset}/rejected", line.topics.source, partition, offset, letter)
        message = reject_message(REJECTS, reject)
        line.producer.send(
            line.topics.dead_letters, message.value, key=message.key, partition=partition, headers=message.headers
        )
    assert line.producer.flush(60) == 0


def test_a_replay_that_is_killed_again_and_again_sends_each_letter_once(line: Line, call: Callable[..., str]) -> None:
    write_letters(line)
    command = [sys.executable, "-m", "app", "dead-letters", "replay", "--all", *line.arguments]
    source = [TopicPartition(line.topics.source, each) for each in range(PARTITIONS)]
    for goal in (1, 1_700, 3_000):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        wait_until(lambda goal=goal: sum(line.consumer.end_offsets(source).values()) >= goal, f"{goal} replays")
        process.send_signal(signal.SIGKILL)
        process.wait()
    call("replay", "--all")
    sent = line.replays()
    assert len(sent) == LETTERS
    assert set(sent.values()) == {1}
    assert call("ls") == ""

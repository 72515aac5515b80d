"""How long partitions stand still when their worker is killed: `python -m benchmarks.recovery`.

A million cards, each with its state in the checkpoints of four partitions; a steady stream of payments; then kill -9
of a stream worker, again and again: with another one there that takes over, and alone, so that Serve has to start a new
one. What counts is the first decision in the log of each of its partitions, by the broker's clock; the slowest
partition is the result. Writes benchmarks/results/recovery.json.
"""

import argparse
import json
import signal
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from app.errors import HeadraceError
from app.log.tail import read_to_end
from app.operate.stack import APPLICATION
from app.sources import TopicPartition, open_consumer
from benchmarks import results
from benchmarks.site import Site, open_site, start
from benchmarks.systems import Headrace
from benchmarks.traffic import SENDER, send

SOURCE = "payments-recovery"
FILE = results.FILE.with_name("recovery.json")
CARDS = 1_000_000
RATE = 1_000
KILLS = 3
GOALS_S = {2: 5.0, 1: 15.0}
"""By the number of workers."""
LAST_WORDS_MS = 500
"""A frame appended so soon after the kill was on its way before; a silent worker loses its partitions after 3 s."""
START_MS = 1_700_000_000_000
PATIENCE_S, SENDER_PATIENCE_S = 60.0, 5.0


def measure_recovery(site: Site, cards: int, kills: int) -> list[dict[str, Any]]:
    site.make_topics(SOURCE)
    send(site, write_payments(site.data / "cards.jsonl", 0, cards, cards), SOURCE, rate=None)
    return [measure_with(site, workers, cards, kills, run * cards) for run, workers in enumerate(GOALS_S, 1)]


def measure_with(site: Site, workers: int, cards: int, kills: int, first: int) -> dict[str, Any]:
    target = f"recovery-{workers}"
    site.make_topics(target)
    system = Headrace(workers, scores_all=False)
    system.start(site, SOURCE, target, linger_ms=5)
    try:
        system.wait_until_done(site, SOURCE, target)
        keys = sum(row["keys"] for row in system.status()["partitions"])
        steady = write_payments(site.data / f"{target}.jsonl", first, 300 * RATE, cards)
        command = [sys.executable, "-m", "app", "replay", "--file", str(steady), "--topic", SOURCE, "--json"]
        start(site.processes, SENDER, [*command, "--bootstrap", site.bootstrap, "--rate", str(RATE)])
        seconds = [kill_and_wait(site, system, workers, f"{target}.decisions") for _ in range(kills)]
        site.processes.end(SENDER, signal.SIGINT, SENDER_PATIENCE_S)
    finally:
        system.stop(site)
    row = {"workers": workers, "keys": keys, "rate": RATE, "seconds": seconds, "goal_s": GOALS_S[workers]}
    site.console.say(f"{workers} worker(s), {keys:,} keys: decisions again after {', '.join(map(str, seconds))} s")
    return row


def kill_and_wait(site: Site, system: Headrace, workers: int, log: str) -> float:
    site.wait(lambda: is_whole(system, workers), "every worker at work", APPLICATION, PATIENCE_S * 2)
    time.sleep(12)  # a checkpoint interval and a little: what is lost is what usually is
    victim = stream_workers()[0]
    name = replica_id(victim)
    partitions = [row["partition"] for row in system.status()["partitions"] if name in (row["worker"] or "")]
    ends = site.end_offsets(log)
    killed_ms = time.time() * 1000
    victim.kill()
    firsts: dict[int, float] = {}

    def all_decide() -> bool:
        firsts.update(first_appends(site, log, {each: ends[each] for each in partitions}, killed_ms + LAST_WORDS_MS))
        return len(firsts) == len(partitions)

    site.wait(all_decide, "decisions", APPLICATION, PATIENCE_S)
    return round((max(firsts.values()) - killed_ms) / 1000, 2)


def is_whole(system: Headrace, workers: int) -> bool:
    try:
        status = system.status()
    except HeadraceError:  # a replica of the API may be busy
        return False
    at_work = {row["worker"] for row in status["partitions"]}
    return (
        bool(status["ready"])
        and len(at_work) == workers
        and max(row["lag"] or 0 for row in status["partitions"]) < RATE
    )


def first_appends(site: Site, log: str, begin: dict[int, int], after_ms: float) -> dict[int, float]:
    """When the first frame at or after a time was appended to each partition of the decision log, if any was."""
    found = {}
    with closing(open_consumer(site.kafka)) as consumer:
        for partition, offset in begin.items():
            batches = [records.append_ms for records in read_to_end(consumer, TopicPartition(log, partition), offset)]
            appended_ms = np.concatenate([np.empty(0, np.int64), *batches])
            if (later := appended_ms[appended_ms >= after_ms]).size:
                found[partition] = float(later[0])
    return found


def stream_workers() -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "ServeReplica:fraud:StreamWorker" in "".join(each.cmdline()):
                found.append(each)
    return found


def replica_id(process: psutil.Process) -> str:
    """As it stands in the name of the replica's log file: replica_fraud_StreamWorker_{id}.log."""
    [path] = [file.path for file in process.open_files() if Path(file.path).name.startswith("replica_")]
    return Path(path).stem.rpartition("_")[2]


def write_payments(file: Path, first: int, count: int, cards: int) -> Path:
    """A payment a card, in turn; each a millisecond after the one before."""
    encode = msgspec.json.Encoder().encode
    with file.open("wb") as lines:
        for number in range(first, first + count):
            card, terminal = f"card-{number % cards:07d}", f"terminal-{number % 10_000:04d}"
            payment = {
                "id": f"p{number}",
                "time": START_MS + number,
                "card": card,
                "terminal": terminal,
                "amount": 12.5,
            }
            lines.write(encode(payment) + b"\n")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--cards", type=int, default=CARDS)
    parser.add_argument("--kills", type=int, default=KILLS, help="of each number of workers")
    parser.add_argument("--json", type=Path, default=FILE, help="write the results here")
    options = parser.parse_args()
    circumstances = results.circumstances()
    with open_site("confluent-kafka") as site:
        rows = measure_recovery(site, options.cards, options.kills)
        found = {"circumstances": circumstances, "kafka": site.broker, "client": site.client, "rows": rows}
    print(json.dumps(rows, indent=2))
    options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

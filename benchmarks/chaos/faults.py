"""The faults. Each strikes, says when, lasts, and returns when it is over; what the pipeline makes of it is judged
elsewhere."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.chaos.scene import Scene

Fault = Callable[[Scene], None]
FROZEN_S = 30.0
"""Serve has killed and replaced a frozen replica after 14 s."""
FROZEN_BRIEFLY_S = 8.0
"""The others have taken over its partitions after 3 s, and Serve has not noticed yet: it wakes up as a second owner."""
AWAY_S = 60.0
SINK_AWAY_S = 30.0
NODE_AWAY_S = 30.0
SLOW_S = 20.0
MODEL_TIMEOUT_S = 1.0


def nothing(scene: Scene) -> None:
    """What the others are compared with."""
    scene.struck()


def killed(deployment: str) -> Fault:
    return lambda scene: kill(scene, scene.replicas(deployment)[:1])


def controller_killed(scene: Scene) -> None:
    kill(scene, scene.processes("ray::ServeController"))


def kill(scene: Scene, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        process.kill()
    scene.struck()


def frozen(deployment: str, seconds: float) -> Fault:
    def fault(scene: Scene) -> None:
        with stopped(scene, scene.replicas(deployment)[:1]):
            scene.wait(seconds)

    return fault


@contextmanager
def stopped(scene: Scene, processes: Sequence[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    scene.struck()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # Serve kills a replica that does not answer
                process.resume()


def broker_frozen(scene: Scene) -> None:
    with stopped(scene, [scene.broker()]):
        scene.wait(AWAY_S)


def broker_restarted(scene: Scene) -> None:
    scene.stop_broker(signal.SIGTERM)
    scene.struck()
    scene.wait(AWAY_S)
    scene.start_broker()


def broker_killed(scene: Scene) -> None:
    scene.stop_broker(signal.SIGKILL)
    scene.struck()
    scene.start_broker()


def broker_of_three_killed(scene: Scene) -> None:
    scene.stop_broker(signal.SIGKILL, "broker-2")
    scene.struck()
    scene.wait(NODE_AWAY_S)
    scene.start_broker("broker-2")


def node_killed(scene: Scene) -> None:
    """With every replica that runs there. The head has room for all of them."""
    assert scene.cluster is not None
    scene.cluster.kill_node()
    scene.struck()
    scene.wait(NODE_AWAY_S)


def database_away(scene: Scene) -> None:
    scene.sinks.database.stop()
    scene.struck()
    scene.wait(SINK_AWAY_S)
    scene.sinks.database.start()


def hashes_away(scene: Scene) -> None:
    scene.sinks.hashes.stop()
    scene.struck()
    scene.wait(SINK_AWAY_S)
    scene.sinks.hashes.start()


def webhook_away(scene: Scene) -> None:
    scene.sinks.webhook.stop()
    scene.struck()
    scene.wait(SINK_AWAY_S)
    scene.sinks.webhook.start()


def webhook_answers(status: int | None) -> Fault:
    def fault(scene: Scene) -> None:
        scene.sinks.webhook.status = status
        scene.struck()
        try:
            scene.wait(SINK_AWAY_S)
        finally:
            scene.sinks.webhook.status = 200

    return fault


def model_slow(scene: Scene) -> None:
    """Ten times the budget of 100 ms, which is as long as a worker waits for an answer."""
    scene.deploy("FraudScorer", user_config={"delay_s": MODEL_TIMEOUT_S})
    scene.struck()
    scene.wait(SLOW_S)
    scene.deploy("FraudScorer", user_config={"delay_s": 0.0})


def workers_scaled(scene: Scene) -> None:
    scene.struck()
    for replicas in (1, 2):
        scene.deploy("StreamWorker", num_replicas=replicas)
        scene.wait(SLOW_S)


def checkpoint_torn(scene: Scene) -> None:
    """All workers die, and find their newest checkpoints cut in half."""
    workers = scene.replicas("StreamWorker")
    with stopped(scene, workers):
        for partition in checkpoint_folders(scene):
            newest = max(partition.glob("*.safetensors"))
            os.truncate(newest, newest.stat().st_size // 2)
        kill(scene, workers)


def checkpoints_unwritable(scene: Scene) -> None:
    """A file is in the place of the folder: not even root can write there."""
    aside = scene.checkpoints.with_name("checkpoints-aside")
    scene.checkpoints.rename(aside)
    scene.checkpoints.touch()
    scene.struck()
    try:
        scene.wait(SLOW_S)
    finally:
        scene.checkpoints.unlink()
        aside.rename(scene.checkpoints)


def checkpoint_folders(scene: Scene) -> list[Path]:
    return [folder for folder in scene.checkpoints.glob("fraud/*") if any(folder.glob("*.safetensors"))]


class Setting(NamedTuple):
    """How many brokers and Ray nodes the faults need; all faults of a setting strike one application in turn."""

    faults: Mapping[str, Fault]
    brokers: int = 1
    nodes: int = 1


SETTINGS = (
    Setting(
        {
            "nothing": nothing,
            "stream-worker-killed": killed("StreamWorker"),
            "stream-worker-frozen": frozen("StreamWorker", FROZEN_S),
            "stream-worker-frozen-briefly": frozen("StreamWorker", FROZEN_BRIEFLY_S),
            "model-killed": killed("FraudScorer"),
            "action-worker-killed": killed("ActionWorker"),
            "action-worker-frozen": frozen("ActionWorker", FROZEN_S),
            "action-worker-frozen-briefly": frozen("ActionWorker", FROZEN_BRIEFLY_S),
            "coordinator-killed": killed("Coordinator"),
            "ingress-killed": killed("Ingress"),
            "controller-killed": controller_killed,
            "broker-frozen": broker_frozen,
            "broker-restarted": broker_restarted,
            "broker-killed": broker_killed,
            "database-away": database_away,
            "hashes-away": hashes_away,
            "webhook-away": webhook_away,
            "webhook-answers-500": webhook_answers(500),
            "webhook-hangs": webhook_answers(None),
            "model-slow": model_slow,
            "workers-scaled": workers_scaled,
            "checkpoint-torn": checkpoint_torn,
            "checkpoints-unwritable": checkpoints_unwritable,
        }
    ),
    Setting({"broker-of-three-killed": broker_of_three_killed}, brokers=3),
    Setting({"node-killed": node_killed}, nodes=2),
)
FAULTS: Mapping[str, Fault] = {name: fault for setting in SETTINGS for name, fault in setting.faults.items()}

"""A pipeline that takes two milliseconds an event, so that a worker gets through 500 a second and soon has a lag."""

import time
from collections.abc import Iterator

from app.actions.action import Action
from app.event import Event
from app.features import Features, count
from app.pipeline import Pipeline

EVENT_S = 0.002


class Reading(Event, frozen=True):
    machine: str


class MachineHistory(Features, of=Reading, by="machine"):
    readings = count(last="1h")


def decide(reading: Reading) -> Iterator[Action]:
    time.sleep(EVENT_S)
    return iter(())


readings = Pipeline(source=Reading, features=[MachineHistory], decide=decide)

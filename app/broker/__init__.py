"""The development broker: Kafka's protocol in one process on loopback. Not for production."""

from app.broker.broker import Broker
from app.broker.faults import Cut, Delay, Faults, Refuse, Stall
from app.broker.service import serve_forever

__all__ = ["Broker", "Cut", "Delay", "Faults", "Refuse", "Stall", "serve_forever"]

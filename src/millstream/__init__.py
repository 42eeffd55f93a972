"""Millstream: stream processing in Python, exactly once, on Kafka or on nothing at all."""

from millstream.agents import Agent, Dlq, Event, Retry, Stream, Topic, current_event
from millstream.app import App, Settings
from millstream.errors import MillstreamError
from millstream.tables import SetTable, Table

__all__ = [
    "Agent",
    "App",
    "Dlq",
    "Event",
    "MillstreamError",
    "Retry",
    "SetTable",
    "Settings",
    "Stream",
    "Table",
    "Topic",
    "current_event",
]

__version__ = "0.1.0"

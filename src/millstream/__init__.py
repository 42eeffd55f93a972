"""Millstream: stream processing in Python, exactly once, on Kafka or on nothing at all."""

import importlib
from typing import TYPE_CHECKING, Any

from millstream.agents import Agent, Dlq, Event, Retry, Stream, Topic, current_event
from millstream.app import App, Settings
from millstream.errors import MillstreamError
from millstream.streams import (
    DerivedTable,
    Suppress,
    Table,
    VersionedTable,
    Windowed,
    WindowedTable,
)
from millstream.tables import SetTable
from millstream.windows import Window

if TYPE_CHECKING:
    from millstream import client, errors, testing

__all__ = [
    "Agent",
    "App",
    "DerivedTable",
    "Dlq",
    "Event",
    "MillstreamError",
    "Retry",
    "SetTable",
    "Settings",
    "Stream",
    "Suppress",
    "Table",
    "Topic",
    "VersionedTable",
    "Window",
    "Windowed",
    "WindowedTable",
    "client",
    "current_event",
    "errors",
    "testing",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load ``millstream.testing`` and ``millstream.client`` when they are first used."""
    if name in ("client", "errors", "testing"):
        return importlib.import_module(f"millstream.{name}")
    raise AttributeError(f"module 'millstream' has no attribute {name!r}")

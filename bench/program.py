"""The workloads, as programs a user would write."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec

import millstream as ms

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KEYS", "WORKLOADS", "Event", "make_app", "make_events"]

KEYS = 10_000
START_MS = 1_700_000_000_000


class Event(msgspec.Struct, gc=False):
    """About 119 bytes of JSON."""

    id: int
    key: str
    amount: float
    ts: int
    note: str
    big: bool = False


def make_events(count: int, keys: int = KEYS) -> Iterator[Event]:
    """Events one millisecond apart, their keys drawn at random, always the same ones."""
    choose = random.Random(1)
    for number in range(count):
        yield Event(
            number,
            f"key-{choose.randrange(keys)}",
            round(choose.random() * 100, 2),
            START_MS + number,
            "x" * 20,
        )


def make_app(
    workload: str, *, id: str = "bench", topic: str = "events", **settings: Any
) -> tuple[ms.App, Any, Any]:
    """The app of a workload, with its input topic and its table or output topic."""
    app = ms.App(id, **settings)
    events = app.topic(topic, value=Event, key_from="key", timestamp=None)
    if workload == "filter-map":
        large = app.topic(f"{id}-large", value=Event, key_from="key")

        @app.agent(events)
        async def mark(stream: ms.Stream[Event]) -> None:
            async for event in stream:
                if event.amount >= 50:
                    event.big = True
                    await large.send(event)

        return app, events, large
    table = app.table(workload, key=str, value=int, default=0)
    if workload == "tumbling":
        table = table.tumbling("10s")
    elif workload == "hopping":
        table = table.hopping("60s", "10s")

    @app.agent(events)
    async def count(stream: ms.Stream[Event]) -> None:
        async for event in stream:
            table[event.key] += 1

    return app, events, table


WORKLOADS = {"filter-map": 3.0, "count": 2.5, "tumbling": 4.0, "hopping": 12.0}
"""Workloads, and what they may cost at most: times the floor's CPU per event."""

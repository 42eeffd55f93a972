"""Departures and their mean delay at each airport, hour by hour."""

import millstream as ms
from app import app
from app.flights import Flight
from app.topics import flights
from tables.hours import hours

__all__ = ["busy"]

departed = app.stream(flights).filter(lambda event: event.kind == "departed")


@app.agent(departed.group_by("origin"))
async def busy(stream: ms.Stream[Flight]) -> None:
    """Count each departure in the six windows that it falls into."""
    async for event in stream:
        for _, hour in hours[event.origin].event_windows():
            hour.add(event.delay)

"""Each departure with its plane and the weather of the hour."""

from collections.abc import AsyncIterator

import millstream as ms
from app import app
from app.facts import HOUR_MS
from app.flights import Flight
from app.topics import Departure, departures, flights
from tables.facts import planes, weather

__all__ = ["enrich"]


@app.agent(flights, sink=[departures])
async def enrich(stream: ms.Stream[Flight]) -> AsyncIterator[Departure]:
    """Look up the plane and the weather; one that is not known is left out, not the departure."""
    async for event in stream:
        if event.kind == "departed":
            hour = event.at - event.at % HOUR_MS
            plane = planes.get(event.tailnum)
            yield Departure(event, plane, weather.get((event.origin, hour)))

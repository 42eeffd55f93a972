"""Totals per airline."""

import millstream as ms
from app import app
from app.flights import Flight
from app.topics import flights
from tables.carriers import carriers

__all__ = ["total"]

settled = app.stream(flights).filter(lambda event: event.kind != "scheduled")


@app.agent(settled.group_by("carrier"))
async def total(stream: ms.Stream[Flight]) -> None:
    """Count what became of each airline's flights, and add up how late they arrived."""
    async for event in stream:
        totals = carriers[event.carrier]
        match event.kind:
            case "departed":
                totals.departed += 1
            case "cancelled":
                totals.cancelled += 1
            case "landed":
                totals.landed += 1
                totals.arrival_delay_sum += event.delay

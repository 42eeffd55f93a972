"""Which planes are in the air."""

import millstream as ms
from app import app
from app.flights import Flight
from app.topics import flights
from tables.airborne import Airborne, airborne

__all__ = ["follow"]


@app.agent(flights)
async def follow(stream: ms.Stream[Flight]) -> None:
    """Put a plane into the table when it departs, and take it out when that flight lands."""
    async for event in stream:
        if event.kind == "departed":
            airborne[event.tailnum] = Airborne(event.flight, event.origin, event.dest, event.at)
        elif event.kind == "landed":
            flying = airborne.get(event.tailnum)
            # A few planes of the data depart again before they have landed.
            if flying is not None and flying.flight == event.flight:
                del airborne[event.tailnum]

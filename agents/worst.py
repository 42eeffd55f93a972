"""The worst delays of the day."""

import millstream as ms
from app import app
from app.flights import Flight
from app.topics import flights
from tables.worst import LEAST, NEW_YORK, TOP, Delay, worst

__all__ = ["rank"]

late = app.stream(flights).filter(lambda event: event.kind == "departed" and event.delay >= LEAST)


@app.agent(late.group_by(lambda event: NEW_YORK, name="worst-delays"))
async def rank(stream: ms.Stream[Flight]) -> None:
    """Keep the ten worst departures of each day, the worst one first."""
    async for event in stream:
        delay = Delay(event.delay, event.flight, event.origin, event.dest)
        for _, day in worst[NEW_YORK].event_windows():
            day.append(delay)
            day.sort(reverse=True)
            del day[TOP:]

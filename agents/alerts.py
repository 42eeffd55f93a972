"""Says which flights are very late."""

from collections.abc import AsyncIterator

import millstream as ms
from app import app
from app.flights import Flight
from app.topics import Alert, alerts, flights

__all__ = ["LIMIT", "watch"]

LIMIT = 180


@app.agent(flights, sink=[alerts])
async def watch(stream: ms.Stream[Flight]) -> AsyncIterator[Alert]:
    """Send an alert for every departure and landing that is more than three hours late."""
    async for event in stream:
        if event.delay > LIMIT:
            yield Alert(event.flight, event.kind, event.delay)

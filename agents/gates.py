"""Asks another service for the gate of every flight that departs."""

import asyncio
from collections.abc import AsyncIterator
from zlib import crc32

import millstream as ms
from app import app
from app.flights import Flight
from app.topics import Gate, flights, gates

__all__ = ["ANSWER_S", "expect", "gate_of"]

ANSWER_S = 0.05


@app.agent(flights, concurrency=200, ordered_by="tailnum", sink=[gates])
async def expect(stream: ms.Stream[Flight]) -> AsyncIterator[Gate]:
    """Wait for 200 answers at a time in each shard, and for one at a time for each plane."""
    async for event in stream:
        if event.kind == "departed":
            yield Gate(event.tailnum, event.flight, await gate_of(event))


async def gate_of(event: Flight) -> str:
    """Stand in for a service on the network: the gate, after 50 ms of waiting and next to no work."""
    await asyncio.sleep(ANSWER_S)
    return f"{event.dest}-{crc32(event.flight.encode()) % 40 + 1}"

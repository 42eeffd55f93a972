"""Where Kafka Streams loses final results, and Millstream does not: windows before a silence.

Counts events in windows of 60 s with 10 s of grace, and sends each window's final count. The events come in bursts, as
they do on a quiet topic. What Kafka Streams answers comes from ``compat="kafka-streams"``, which gives its recorded
answers in all cases of ``tests/conformance``. ``python -m examples.lost_windows`` prints both.
"""

# ruff: noqa: T201

from __future__ import annotations

import asyncio
import random

import millstream as ms
from millstream.testing import TestApp

__all__ = ["events", "finals"]


def events(count: int = 400, seed: int = 7) -> list[int]:
    """Moments of events, in seconds: a few close together, then a gap of up to three minutes."""
    dice = random.Random(seed)
    moments: list[int] = []
    at = 0
    while len(moments) < count:
        for _ in range(dice.randint(1, 5)):
            at += dice.randint(0, 10)
            moments.append(at)
        at += dice.randint(20, 180)
    return moments[:count]


async def finals(moments: list[int], compat: str | None = None) -> list[int]:
    """Starts of the windows that came out, in seconds."""
    app = ms.App("bursts", partitions=1, compat=compat)
    clicks, out = app.topic("clicks", value=str), app.topic("out", value=int)
    windows = app.stream(clicks).group_by().tumbling("60s", grace="10s")
    windows.count(name="per-minute", emit="final").to(out)
    async with TestApp(app, start=0) as t:
        for moment in moments:
            await t.send(clicks, "click", key="all", timestamp=moment * 1_000)
            await t.advance(wall="1s")
        await t.send(clicks, "the last", key="all", timestamp=(moments[-1] + 3_600) * 1_000)
        return [
            int(dict(record.headers)["ms-window-start"] or b"") // 1_000
            for record in t.records(out)
        ]


def main() -> None:
    """Print what came out of both."""
    moments = events()
    there = {moment // 60 * 60 for moment in moments}
    ours = asyncio.run(finals(moments))
    theirs = asyncio.run(finals(moments, "kafka-streams"))
    print(f"{len(moments)} events are in {len(there)} windows")
    print(f"Millstream sends {len(ours)} final results")
    lost = len(there) - len(theirs)
    print(f"Kafka Streams sends {len(theirs)}: {lost / len(there):.0%} are lost")


if __name__ == "__main__":
    main()

"""Workers on a real broker, of which one is killed: another takes over long before the session time-out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.brokers import Program, Record, unique

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers import Kafka

KEYS = [f"key-{number}" for number in range(40)]
SESSION_S = 60
DEADLINE_S = 45.0


async def test_killed_workers_are_replaced_at_once(kafka: Kafka, tmp_path: Path) -> None:
    """Three within seconds, by those whom they were connected to; nothing is lost, and nothing is counted twice."""
    app, topic = unique("counting"), kafka.topic("words", partitions=6)
    totals = f"{app}-totals"

    def worker(name: str) -> Program:
        return Program(
            "tests.integration.counting",
            kafka.url,
            app,
            topic,
            str(tmp_path / name),
            f"{SESSION_S}s",
            log=tmp_path / f"{name}.log",
        )

    async def write() -> None:
        words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS * 5]
        await asyncio.to_thread(kafka.write, topic, words, partitioner="murmur2")

    async def counted(times: int) -> None:
        """Every key was counted from 1 to so many, in order."""
        patience = time.monotonic() + DEADLINE_S
        while True:
            found = await asyncio.to_thread(kafka.read, totals)
            if len(found) >= times * len(KEYS):
                break
            assert time.monotonic() < patience, f"{len(found)} of {times * len(KEYS)}"
            await asyncio.sleep(0.1)
        seen = Counter[str]()
        for record in found:
            key = (record.key or b"").decode()
            seen[key] += 1
            assert record.value == str(seen[key]).encode(), (record, seen[key])
        assert set(seen.values()) == {times}

    workers = {name: worker(name) for name in "abcd"}
    try:
        for each in workers.values():
            await asyncio.to_thread(each.start)
        await write()
        await counted(5)
        # each has its share, and so those that are killed have shards too
        while not await workers["d"].hear("gained"):
            pass
        for times, victim in enumerate("dcb", 2):
            workers[victim].kill()
            began = time.monotonic()
            await write()
            await counted(5 * times)
            took = time.monotonic() - began
            print(f"{victim} is replaced: caught up after {took:.1f} s")  # noqa: T201  the figure, with -s
            assert took < SESSION_S / 4
    finally:
        for each in workers.values():
            each.kill()

"""A worker of the recovery benchmark: counts, and sends for each event which shard and which process has taken it.

Arguments: the broker's url, the app's id, the folder for state, the number of standbys, the session time-out. It ends with
SIGTERM as `millstream worker` does, and says in lines of JSON how its recovery went.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import millstream as ms
from millstream.worker import tune_garbage_collector
from tests.brokers import say

__all__ = ["EVENTS", "PARTITIONS", "TAKEN", "changelog_of", "main"]

PARTITIONS = 12
EVENTS, TAKEN = "events", "taken"


def changelog_of(app_id: str) -> str:
    """The topic that holds the counts."""
    return f"{app_id}-counts-changelog"


def _build(url: str, app_id: str, folder: str, standbys: str, session: str) -> ms.App:
    app = ms.App(
        app_id,
        broker=url,
        state_dir=folder,
        standby_replicas=int(standbys),
        session_timeout=session,
        partitions=PARTITIONS,
    )
    events = app.topic(f"{app_id}-{EVENTS}", key=str, value=int, partitions=PARTITIONS)
    taken = app.topic(f"{app_id}-{TAKEN}", key=str, value=list[int], partitions=PARTITIONS)
    counts = app.table("counts", key=str, value=int, default=0)
    me = os.getpid()

    @app.agent(events)
    async def count(stream: ms.Stream[int]) -> None:
        async for event in stream.events():
            counts[event.key] += 1
            await taken.send([event.partition, me, event.value], key=event.key)

    return app


async def main(*arguments: str) -> None:
    """Work until told to stop."""
    app = _build(*arguments)
    tune_garbage_collector()  # as `millstream worker` does
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with app.running(worker=True, web=True):
        assert app.runtime is not None
        worker = app.runtime.worker
        assert worker is not None
        say(joined=True)
        while worker.assignment is None:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.001)
        wall, cpu = time.perf_counter(), time.process_time()
        await worker.ready.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        progress = worker.options.progress
        say(recovered={"records": progress.records_done, "wall_s": wall, "cpu_s": cpu})
        told: object = None
        while not stopping.is_set():
            copies = worker.copies.by_shard.values()
            shares = {
                "owned": sorted(number for _, number in worker.shards),
                "ready": worker.ready.is_set(),
                "copies": len(copies),
                "warm": all(copy.warm and not copy.warming for copy in copies),
            }
            if shares != told:
                told = shares
                say(shares=shares)
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

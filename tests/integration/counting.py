"""A worker on Kafka that counts, and may be killed: it says when it is ready, and which shards it has.

Arguments: the broker's url, the app's id, the topic, the folder for state, the session time-out; and, where they are
given, the guarantee, and a point of `millstream.hooks` where it kills itself when it is there for the third time.
Asked by a line of input, it reports how it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import millstream as ms
from millstream.hooks import observe
from tests.brokers import Program, say
from tests.crash.program import die_at


def build(
    url: str, app_id: str, topic: str, folder: str, session: str, guarantee: Any = "exactly_once"
) -> ms.App:
    """The app, and its table ``counts``."""
    app = ms.App(
        app_id,
        broker=url,
        state_dir=folder,
        session_timeout=session,
        commit_interval="5ms",
        processing_guarantee=guarantee,
    )
    words = app.topic(topic, key=str, value=str)
    counts = app.table("counts", key=str, value=int, default=0)
    totals = app.topic(f"{app_id}-totals", key=str, value=int)

    @app.agent(words)
    async def count(stream: ms.Stream[str]) -> None:
        async for word in stream:
            counts[word] += 1
            await totals.send(counts[word], key=word)

    @app.on_shards()
    async def told(shards: list[tuple[int, int]]) -> None:
        say(gained=shards)

    return app


async def gained(worker: Program, shards: int) -> None:
    """Wait until a worker has been given so many shards; with tables, they come when its copies are warm."""
    told = 0
    while told < shards:
        told += len(await worker.hear("gained"))
    assert told == shards


def report(app: ms.App) -> dict[str, object]:
    """What the worker has, and what it had to read for it."""
    runtime = app.runtime
    assert runtime is not None
    worker = runtime.worker
    assert worker is not None
    copies = worker.copies
    return {
        "owned": sorted(number for _, number in worker.shards),
        "ready": worker.ready.is_set(),
        "copied": sorted(number for _, number in copies.by_shard),
        "warming": sorted(n for (_, n), copy in copies.by_shard.items() if copy.warming),
        "lag": sum(copy.lag for copy in copies.by_shard.values()),
        "replayed": worker.options.progress.records_done,
        "followed": copies.progress.records_done,
        "rebuilt": dict(worker.options.progress.rebuilt),
        "generation": worker.committer.generation,
        "url": runtime.web_url,
    }


async def main(*arguments: str) -> None:
    """Work until killed."""
    *arguments_of_app, point = arguments if len(arguments) > 6 else (*arguments, "")
    app = build(*arguments_of_app)
    dying = observe(die_at(f"{app.settings.state_dir}", point, 3)) if point else None
    with dying or contextlib.nullcontext():
        async with app.running(web=True):
            say(ready=True)
            while await asyncio.to_thread(sys.stdin.readline):
                say(report=report(app))
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

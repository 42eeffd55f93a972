"""A worker on Kafka with a table of its own disk, that kills itself in the middle of a replay, and else says what it replayed.

Arguments: the broker's url, the app's id, the folder for state, after how many pieces it kills itself (0: never).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import millstream as ms
from millstream import hooks
from millstream.worker import _recovery
from tests.brokers import say

PARTITIONS = 2


def build(url: str, app_id: str, folder: str) -> ms.App:
    """The app, with its table ``texts`` and small buffers: what is written reaches the disk soon."""
    app = ms.App(
        app_id,
        broker=url,
        state_dir=folder,
        slot="one",
        web=False,
        partitions=PARTITIONS,
        state_write_buffer_bytes=1 << 20,
    )
    source = app.topic(f"{app_id}-source", key=str, value=str)
    texts = app.table("texts", key=str, value=str)

    @app.agent(source)
    async def store(stream: ms.Stream[str]) -> None:
        async for key, text in stream.items():
            texts[key] = text

    return app


async def main(url: str, app_id: str, folder: str, pieces: str) -> None:
    """Recover, and tell."""
    _recovery.FETCH_BYTES_MAX = 256 << 10
    left = int(pieces)

    def watch(point: str, _: dict[str, Any]) -> None:
        nonlocal left
        if point == "recovery.slice":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    app = build(url, app_id, folder)
    with hooks.observe(watch):
        async with app.running(worker=True, web=False):
            assert app.runtime is not None
            worker = app.runtime.worker
            assert worker is not None
            say(ready=True)
            await worker.ready.wait()
            say(
                replayed=worker.options.progress.records_done,
                rebuilt=dict(worker.options.progress.rebuilt),
                entries=[
                    sum(1 for key in shard.store.table("texts").keys() if key[:1] != b"\x00")  # noqa: SIM118
                    for _, shard in sorted(worker.shards.items())
                ],
            )
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

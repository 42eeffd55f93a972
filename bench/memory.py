"""How much memory a keyed count takes, over many events and many keys: feed and worker are processes of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from bench.core import FEED_AT_ONCE, run
from bench.program import make_app, make_events
from millstream.worker import tune_garbage_collector

__all__ = ["feed", "main", "work"]


def _broker(directory: str) -> str:
    return f"local://{Path(directory) / 'bench.db'}"


def feed(directory: str, count: int, keys: int) -> None:
    """Fill the input topic."""
    app, topic, _ = make_app("count", broker=_broker(directory), web=False)

    async def fill() -> None:
        source = make_events(count, keys)
        async with app.running(worker=False):
            while batch := list(islice(source, FEED_AT_ONCE)):
                await topic.send_many(batch)

    asyncio.run(fill())


def work(directory: str, count: int) -> None:
    """Process it, and print the rate and the highest resident size of this process."""
    app, _, _ = make_app("count", broker=_broker(directory), web=False)
    tune_garbage_collector()
    measured = asyncio.run(run(app, "count", count))
    print(f"{measured.events_per_s:,.0f} events/s, {_peak_mb():,.0f} MB at most", flush=True)


def _peak_mb() -> float:
    if os.name == "nt":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main(count: int, keys: int) -> int:
    """Feed, then work."""
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as directory:
        began = time.monotonic()
        for phase in ("feed", "work"):
            command = [sys.executable, "-m", "bench", "memory", "--phase", phase]
            command += ["--events", str(count), "--keys", str(keys), "--directory", directory]
            subprocess.run(command, check=True)
        print(
            f"{count:,} events over {keys:,} keys in {time.monotonic() - began:.0f} s, feed included"
        )
    return 0

"""The engine on the embedded log, against a bare loop over the same batches.

The *floor* fetches, decodes with msgspec and counts in a dict, and does nothing else. Everything is measured in one
process and one run, on the CPU clock of the whole process; what counts is the ratio. Changelogs, RocksDB and
exactly-once epochs are on.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.program import KEYS, WORKLOADS, Event, make_app, make_events
from millstream.records import TopicPartition
from millstream.transports.batch import iterate_batches
from millstream.worker import tune_garbage_collector

if TYPE_CHECKING:
    import millstream as ms
    from millstream.worker import Worker

__all__ = ["main"]

FEED_AT_ONCE = 20_000


@dataclass
class Measured:
    """CPU is in us per event, of the whole process."""

    name: str
    events: int
    events_per_s: float
    cpu_us: float
    ratio: float | None = None
    allowed: float | None = None


async def feed(app: ms.App, topic: Any, count: int) -> None:
    """Fill the input topic."""
    source = make_events(count)
    async with app.running(worker=False):
        while batch := list(islice(source, FEED_AT_ONCE)):
            await topic.send_many(batch)


async def floor(app: ms.App, count: int) -> Measured:
    """The least that reading the events can cost."""
    decode = msgspec.json.Decoder(Event).decode
    counts: dict[str, int] = {}
    async with app.running(worker=False):
        assert app.runtime is not None
        reader = app.runtime.transport.reader()
        positions = {TopicPartition("events", number): 0 for number in range(4)}
        seen, wall, cpu = 0, time.perf_counter(), time.process_time()
        while seen < count:
            for fetched in await reader.fetch(positions, max_bytes=2 << 20, max_wait_s=1):
                for batch in iterate_batches(fetched.data, where="floor", checked=fetched.checked):
                    for record in batch:
                        key = decode(record.value).key
                        counts[key] = counts.get(key, 0) + 1
                        seen += 1
                positions[fetched.tp] = fetched.next_offset
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        await reader.close()
    return Measured("floor", count, count / wall, cpu / count * 1e6)


async def run(app: ms.App, workload: str, count: int, *, topic: str = "events") -> Measured:
    """Process all that is in the topic, until it is committed."""
    async with app.running():
        assert app.runtime is not None
        worker = app.runtime.worker
        assert worker is not None
        await worker.ready.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        committed = asyncio.Event()
        worker.committer.listeners.append(lambda cut: committed.set())
        while _processed(worker, topic) < count:
            committed.clear()
            await committed.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(workload, count, count / wall, cpu / count * 1e6)


def _processed(worker: Worker, topic: str) -> int:
    return sum(
        offset
        for shard in worker.shards.values()
        for tp, offset in shard.committed.items()
        if tp.topic == topic
    )


async def recovery(app: ms.App) -> Measured:
    """Replay a changelog of one record for each of many keys into an empty RocksDB."""
    async with app.running():
        assert app.runtime is not None
        worker = app.runtime.worker
        assert worker is not None
        progress = worker.options.progress
        wall, cpu = time.perf_counter(), time.process_time()
        await worker.ready.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = progress.records_done
    return Measured("recovery", done, done / wall, cpu / max(done, 1) * 1e6)


async def latency(app: ms.App, topic: Any, rate: int, seconds: float) -> tuple[float, float]:
    """From `send` to the committed table, p50 and p99 in ms."""
    delays = []
    async with app.running():
        assert app.runtime is not None
        worker = app.runtime.worker
        assert worker is not None
        await worker.ready.wait()
        seen = asyncio.Event()
        worker.committer.listeners.append(lambda cut: seen.set())
        for event in make_events(int(rate * seconds)):
            began = time.perf_counter()
            position = await topic.send(event)
            tp = position.tp
            shard = worker.shards[4, tp.partition]
            while shard.committed.get(tp, 0) <= position.offset:
                seen.clear()
                await seen.wait()
            delays.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(max(0.0, 1 / rate - (time.perf_counter() - began)))
    delays.sort()
    return statistics.median(delays), delays[int(len(delays) * 0.99)]


def _in(directory: Path, workload: str) -> tuple[ms.App, Any, Any]:
    directory.mkdir(exist_ok=True)
    return make_app(workload, broker=f"local://{directory / 'bench.db'}", web=False)


def main(count: int, workloads: list[str], output: str | None, *, seconds: float = 5.0) -> int:
    """Measure, print a table, and write JSON."""
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as name:
        for workload in workloads:
            directory = Path(name) / workload
            app, topic, _ = _in(directory, workload)
            asyncio.run(feed(app, topic, count))
            tune_garbage_collector()  # as `millstream worker` does
            low = asyncio.run(floor(app, count))
            measured = asyncio.run(run(app, workload, count))
            measured.ratio = measured.cpu_us / low.cpu_us
            measured.allowed = WORKLOADS[workload]
            found += [low, measured]
            _print(low)
            _print(measured)
        directory = Path(name) / "keys"
        app, topic, _ = _in(directory, "count")
        source = make_events(count, keys=max(count, KEYS))

        async def fill() -> None:
            async with app.running(worker=False):
                while batch := list(islice(source, FEED_AT_ONCE)):
                    await topic.send_many(batch)

        asyncio.run(fill())
        asyncio.run(run(app, "count", count))
        _remove(directory / ".millstream")
        measured = asyncio.run(recovery(app))
        found.append(measured)
        _print(measured)
        directory = Path(name) / "latency"
        app, topic, _ = _in(directory, "count")
        p50, p99 = asyncio.run(latency(app, topic, 100, seconds))
        print(f"send to visible: p50 {p50:.1f} ms, p99 {p99:.1f} ms, at 100 events a second")
    if output:
        result = {
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "measured": [asdict(one) for one in found],
            "latency_ms": {"p50": p50, "p99": p99},
        }
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    over = [m for m in found if m.ratio and m.allowed and m.ratio > m.allowed]
    for one in over:
        print(f"over: {one.name} costs {one.ratio:.2f} times the floor, allowed are {one.allowed}")
    return 0


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _print(one: Measured) -> None:
    ratio = f"{one.ratio:5.2f} x floor (at most {one.allowed:g})" if one.ratio else ""
    print(
        f"{one.name:12} {one.events_per_s:10,.0f} events/s {one.cpu_us:7.2f} us CPU/event  {ratio}",
        flush=True,
    )

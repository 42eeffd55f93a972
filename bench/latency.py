"""How long a record takes through a worker on Kafka: from the producer's send to a consumer with ``read_committed``.

The worker is a process of its own, with default settings and exactly-once: it counts by key in a table, and sends each
event on. The producer (librdkafka, which sends at once) writes at a steady rate, whatever comes back. *bare* is the
time from that producer to such a consumer with nothing in between.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import millstream as ms
from bench.broker import broker, own_topics
from millstream.worker import tune_garbage_collector

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main", "work"]

KEYS = 10_000
PAUSE_S = 0.001
LATE_S_MAX = 30.0
EXPECTED_MS = {"p50": 25.0, "p99": 80.0}


class Event(msgspec.Struct, gc=False):
    """``sent`` is when the producer was called, in ns since the epoch; ``run`` tells one measurement from the others."""

    key: str
    sent: int
    run: str


@dataclass
class Measured:
    """In ms."""

    rate: int
    what: str
    records: int
    p50: float
    p99: float
    longest: float


def work(url: str, name: str, directory: str) -> None:
    """The worker: until it is killed."""
    app = ms.App(name, broker=url, state_dir=directory, web=False)
    events = app.topic(f"{name}-in", value=Event, key_from="key")
    out = app.topic(f"{name}-out", value=Event, key_from="key")
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(events)
    async def count(stream: ms.Stream[Event]) -> None:
        async for event in stream:
            counts[event.key] += 1
            await out.send(event)

    async def run() -> None:
        async with app.running():
            assert app.runtime is not None
            assert app.runtime.worker is not None
            await app.runtime.worker.ready.wait()
            print("ready", flush=True)
            await asyncio.Event().wait()

    tune_garbage_collector()
    asyncio.run(run())


def main(
    url: str | None, rates: list[int], seconds: float, output: str | None, *, warm_s: float = 3.0
) -> int:
    """Measure, print a table, and write JSON.

    Args:
        warm_s: what is sent in the first seconds is not counted.
    """
    found: list[Measured] = []
    with (
        broker(url) as address,
        own_topics(address) as name,
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder,
    ):
        command = [sys.executable, "-m", "bench", "latency", "--work", address, name, folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            try:
                assert worker.stdout is not None
                if worker.stdout.readline().strip() != "ready":
                    raise RuntimeError("the worker did not get ready")
                print(f"{'':>14} {'rate':>7} {'p50 ms':>8} {'p99 ms':>8} {'longest':>8}")
                for rate in rates:
                    for what, topic in (("bare", f"{name}-in"), ("millstream", f"{name}-out")):
                        one = _measure(address, f"{name}-in", topic, what, rate, seconds, warm_s)
                        found.append(one)
                        print(
                            f"{what:>14} {rate:7,} {one.p50:8.1f} {one.p99:8.1f} {one.longest:8.1f}",
                            flush=True,
                        )
            finally:
                worker.kill()
    if output:
        result = {"expected_ms": EXPECTED_MS, "measured": [asdict(one) for one in found]}
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    for one in found:
        for cut, value in (("p50", one.p50), ("p99", one.p99)):
            if one.what == "millstream" and value > EXPECTED_MS[cut]:
                print(
                    f"over: {cut} at {one.rate:,} events/s is {value:.1f} ms, expected are"
                    f" {EXPECTED_MS[cut]:g}"
                )
    return 0


def _measure(
    url: str, source: str, target: str, what: str, rate: int, seconds: float, warm_s: float
) -> Measured:
    from confluent_kafka import Consumer, Producer, TopicPartition

    servers = {"bootstrap.servers": url.removeprefix("kafka://")}
    consumer = Consumer(
        {
            **servers,
            "group.id": f"{target}-{uuid.uuid4().hex[:8]}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    partitions = consumer.list_topics(target, timeout=LATE_S_MAX).topics[target].partitions
    places = [TopicPartition(target, number) for number in partitions]
    for place in places:
        place.offset = consumer.get_watermark_offsets(place, timeout=LATE_S_MAX)[1]
    consumer.assign(places)
    # as the Java client places keys, which is what the app expects of its input
    producer = Producer({**servers, "linger.ms": 0, "partitioner": "murmur2_random"})
    began = time.perf_counter()
    due = _events(rate, seconds + warm_s)
    following = next(due, None)
    this_run = uuid.uuid4().hex[:8]
    decode = msgspec.json.Decoder(Event).decode
    delays: list[float] = []
    sent = received = 0
    while following is not None or received < sent:
        elapsed = time.perf_counter() - began
        if elapsed > seconds + warm_s + LATE_S_MAX:
            raise RuntimeError(f"{sent - received:,} of {sent:,} records did not come")
        while following is not None and following[0] <= elapsed:
            key = following[1]
            value = msgspec.json.encode(Event(key, time.time_ns(), this_run))
            producer.produce(source, key=key, value=value)
            sent += 1
            following = next(due, None)
        producer.poll(0)
        some = consumer.consume(1_000, timeout=PAUSE_S)
        now = time.time_ns()
        for message in some:
            event = None if message.error() else decode(message.value() or b"")
            if event is not None and event.run == this_run:
                received += 1
                delays.append((now - event.sent) / 1e6)
    consumer.close()
    producer.flush(LATE_S_MAX)
    del delays[: int(rate * warm_s)]
    cuts = statistics.quantiles(delays, n=100)
    return Measured(rate, what, len(delays), cuts[49], cuts[98], max(delays))


def _events(rate: int, seconds: float) -> Iterator[tuple[float, str]]:
    """When each is due, in seconds, and its key."""
    choose = random.Random(1)
    for number in range(int(rate * seconds)):
        yield number / rate, f"key-{choose.randrange(KEYS)}"

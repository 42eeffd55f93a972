"""The workloads on a Kafka broker, exactly-once, against a bare client that reads the same topic in the same run.

The *bare* client fetches raw batches with aiokafka's connections, checks and decodes them with msgspec, counts in a dict and
does nothing else. The broker runs beside it, so that only ratios of one run mean something: of events per second, and of this
process's CPU per event.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.broker import broker, own_topics
from bench.core import Measured, feed, run
from bench.program import Event, make_app
from millstream.worker import tune_garbage_collector

if TYPE_CHECKING:
    import millstream as ms

__all__ = ["main"]

PARTITIONS = 4
FETCH_BYTES = 1 << 20
TRIED = {"count": 400 / 789, "tumbling": 225 / 789, "hopping": 80 / 789}
"""Events a second as a share of the bare client's, as the throwaway had it (design, section 7)."""
LEAST = 2 / 3
"""How much of that is expected with everything on."""
_FRONT = struct.Struct(">qi")
_LAST_DELTA_AT = 23


@dataclass
class Share:
    """A workload against the bare client: events a second of it, and CPU per event as a multiple of its."""

    name: str
    events: int
    events_per_s: float
    cpu_us: float
    bare_events_per_s: float
    bare_cpu_us: float
    share: float
    cpu_ratio: float
    expected_share: float | None


async def bare(url: str, topic: str, count: int) -> Measured:
    """The least that reading the events from a broker can cost."""
    from aiokafka.client import AIOKafkaClient
    from aiokafka.protocol.fetch import FetchRequest
    from aiokafka.record._crecords.memory_records import MemoryRecords
    from aiokafka.structs import TopicPartition

    decode = msgspec.json.Decoder(Event).decode
    counts: dict[str, int] = {}
    client = AIOKafkaClient(bootstrap_servers=url.removeprefix("kafka://"))
    await client.bootstrap()
    try:
        metadata = await client.fetch_all_metadata()
        node = metadata.leader_for_partition(TopicPartition(topic, 0))
        await client.ready(node)
        positions = [0] * PARTITIONS
        seen, wall, cpu = 0, time.perf_counter(), time.process_time()
        while seen < count:
            wanted = [(number, at, FETCH_BYTES) for number, at in enumerate(positions)]
            request = FetchRequest(100, 1, PARTITIONS * FETCH_BYTES, 1, [(topic, wanted)])
            answer = await client.send(node, request)
            for _, parts in answer.topics:
                for part in parts:
                    data: bytes = part[-1] or b""
                    positions[part[0]] = _position_after(data, positions[part[0]])
                    records = MemoryRecords(data)
                    while records.has_next():
                        batch: Any = records.next_batch()
                        assert batch.validate_crc()
                        if batch.is_control_batch:
                            continue
                        for record in batch:
                            key = decode(record.value).key
                            counts[key] = counts.get(key, 0) + 1
                            seen += 1
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        await client.close()
    assert seen == sum(counts.values()) == count
    return Measured("bare", count, count / wall, cpu / count * 1e6)


def _position_after(data: bytes, position: int) -> int:
    at = 0
    while at + _LAST_DELTA_AT + 4 <= len(data):
        base, length = _FRONT.unpack_from(data, at)
        if at + _FRONT.size + length > len(data):
            break
        position = base + int.from_bytes(data[at + _LAST_DELTA_AT : at + _LAST_DELTA_AT + 4]) + 1
        at += _FRONT.size + length
    return position


def main(url: str | None, count: int, workloads: list[str], output: str | None) -> int:
    """Measure, print a table, and write JSON."""
    found: list[Share] = []
    with (
        broker(url) as address,
        own_topics(address) as name,
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder,
    ):
        topic = f"{name}-events"
        tune_garbage_collector()  # as `millstream worker` does
        print(f"{'':12} {'events/s':>10} {'CPU us':>8} {'of bare':>8} {'expected':>9} {'CPU':>7}")
        for workload in workloads:
            app, events = _app(workload, address, name, Path(folder))
            if not found:
                asyncio.run(feed(app, events, count))
            low = asyncio.run(bare(address, topic, count))
            measured = asyncio.run(run(app, workload, count, topic=topic))
            tried = TRIED.get(workload)
            one = Share(
                name=workload,
                events=count,
                events_per_s=measured.events_per_s,
                cpu_us=measured.cpu_us,
                bare_events_per_s=low.events_per_s,
                bare_cpu_us=low.cpu_us,
                share=measured.events_per_s / low.events_per_s,
                cpu_ratio=measured.cpu_us / low.cpu_us,
                expected_share=None if tried is None else tried * LEAST,
            )
            found.append(one)
            _print(one)
    if output:
        result = {
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "measured": [asdict(one) for one in found],
        }
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    for one in found:
        if one.expected_share is not None and one.share < one.expected_share:
            print(
                f"under: {one.name} has {one.share:.0%} of the bare client's events a second, expected"
                f" are {one.expected_share:.0%}"
            )
    return 0


def _app(workload: str, url: str, name: str, folder: Path) -> tuple[ms.App, Any]:
    app, events, _ = make_app(
        workload,
        topic=f"{name}-events",
        id=f"{name}-{workload}",
        broker=url,
        partitions=PARTITIONS,
        state_dir=folder / workload,
        web=False,
    )
    return app, events


def _print(one: Share) -> None:
    expected = "" if one.expected_share is None else f"{one.expected_share:.0%}"
    print(f"{'bare':12} {one.bare_events_per_s:10,.0f} {one.bare_cpu_us:8.2f}")
    print(
        f"{one.name:12} {one.events_per_s:10,.0f} {one.cpu_us:8.2f} {one.share:8.0%}"
        f" {expected:>9} {one.cpu_ratio:6.2f}x",
        flush=True,
    )

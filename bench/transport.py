"""The Kafka transport alone: what a commit, an append and a fetched record cost.

Topics of its own are made on the broker, and removed afterwards. Wall time and CPU of this process; the broker runs
beside it, so that only ratios of one run mean something.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from typing import TYPE_CHECKING

from bench.broker import broker
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import Epoch, OffsetAndMetadata, TopicSpec
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.transports.base import Transport
    from millstream.transports.kafka import KafkaTransport

__all__ = ["main"]

PARTITIONS = 4
EPOCH_RECORDS = 200
PAUSE_S = 0.02
"""Between two commits: those of a worker under light load."""
VALUE = b"x" * 150


def main(url: str | None, commits: int, records: int) -> int:
    """Measure, and print a line for each."""
    with broker(url) as address:
        asyncio.run(_main(address, commits, records))
    return 0


async def _main(url: str, commits: int, records: int) -> None:
    from millstream.transports.kafka import KafkaTransport

    name = f"bench-{uuid.uuid4().hex[:8]}"
    inputs = [TopicPartition(f"{name}-in", number) for number in range(PARTITIONS)]
    outputs = [TopicPartition(f"{name}-out", number) for number in range(PARTITIONS)]
    async with KafkaTransport(url, client_id=name) as transport:
        await transport.create_topics(
            [TopicSpec(name=f"{name}-{end}", partitions=PARTITIONS) for end in ("in", "out")]
        )
        try:
            await _commits(transport, name, inputs, outputs, commits)
            some = [OutgoingRecord(1_000, b"%d" % n, VALUE, []) for n in range(1_000)]
            batch = some * max(1, records // PARTITIONS // 1_000)
            await _appends(transport, dict.fromkeys(inputs, batch))
            for max_bytes in (2 << 20, 8 << 20):
                await _fetches(transport, inputs, len(batch) * PARTITIONS, max_bytes, decode=False)
            await _fetches(transport, inputs, len(batch) * PARTITIONS, 2 << 20, decode=True)
        finally:
            await transport.delete_topics([inputs[0].topic, outputs[0].topic])


async def _commits(
    transport: KafkaTransport,
    group: str,
    inputs: Sequence[TopicPartition],
    outputs: Sequence[TopicPartition],
    count: int,
) -> None:
    membership = await transport.join(
        group,
        metadata=b"",
        assign=lambda members: dict.fromkeys(members, b""),
        session_timeout_s=30,
    )
    assignment = await membership.next_assignment()
    made = [OutgoingRecord(1_000, b"%d" % n, VALUE, []) for n in range(EPOCH_RECORDS // PARTITIONS)]
    took: list[float] = []
    cpu = time.process_time()
    for number in range(count):
        membership.alive()
        epoch = Epoch(
            group=group,
            member_id=assignment.member_id,
            generation=assignment.generation,
            offsets={tp: OffsetAndMetadata(number, "{}") for tp in inputs},
            records=dict.fromkeys(outputs, made),
        )
        began = time.perf_counter()
        await transport.commit(epoch)
        took.append((time.perf_counter() - began) * 1_000)
        await asyncio.sleep(PAUSE_S)
    cpu = time.process_time() - cpu
    await membership.leave()
    cuts = statistics.quantiles(took, n=100)
    print(
        f"commit of {EPOCH_RECORDS} records and {PARTITIONS} positions: p50 {cuts[49]:.1f} ms,"
        f" p90 {cuts[89]:.1f}, p99 {cuts[98]:.1f}; CPU {cpu / count * 1_000:.2f} ms"
    )


async def _appends(
    transport: Transport, records: Mapping[TopicPartition, Sequence[OutgoingRecord]]
) -> None:
    count = sum(map(len, records.values()))
    wall, cpu = time.perf_counter(), time.process_time()
    await transport.append(records)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"append of {count:,} records in one transaction: {wall / count * 1e6:.2f} us a record,"
        f" CPU {cpu / count * 1e6:.2f}"
    )


async def _fetches(
    transport: Transport, tps: Sequence[TopicPartition], count: int, max_bytes: int, *, decode: bool
) -> None:
    ends = await transport.end_offsets(tps)
    positions = dict.fromkeys(tps, 0)
    size = 0
    wall, cpu = time.perf_counter(), time.process_time()
    reader = transport.reader()
    while positions:
        for fetched in await reader.fetch(positions, max_bytes=max_bytes, max_wait_s=1.0):
            size += len(fetched.data)
            if decode:
                for _ in iterate_records(fetched.data, where=str(fetched.tp)):
                    pass
            positions[fetched.tp] = fetched.next_offset
            if fetched.next_offset >= ends[fetched.tp]:
                del positions[fetched.tp]
    await reader.close()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    what = "fetched, checked and taken apart" if decode else "fetched and checked"
    print(
        f"{count:,} records {what}, {max_bytes >> 20} MB at once: {wall / count * 1e6:.2f} us a record,"
        f" CPU {cpu / count * 1e6:.2f}; {size / wall / 1e6:,.0f} MB/s"
    )

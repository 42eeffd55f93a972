"""Running a conformance case on the embedded log and RocksDB, with real time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from millstream.app._runtime import Runtime
from millstream.records import TopicPartition
from millstream.tables import POSITION_KEY, decode_position
from tests.conformance.programs import build
from tests.conformance.run import Output, outputs

if TYPE_CHECKING:
    from pathlib import Path

    from millstream.worker import Shard, Worker

__all__ = ["run_on_disk"]

WAIT_S = 30.0


async def run_on_disk(
    case: dict[str, Any], folder: Path, *, crash_every: int = 0, moves: bool = False
) -> Output:
    """What the program of a case puts out after each input.

    Args:
        folder: where log and state lie.
        crash_every: after so many inputs the worker ends as by a kill, and another one goes on.
        moves: whether the shard moves in the middle, to a second worker with a disk of its own, which has joined
            the first one.
    """
    results: Output = []
    inputs = list(case["in"])
    size = (len(inputs) + 1) // 2 if moves else crash_every or len(inputs)
    number, at = 0, 0
    async with AsyncExitStack() as workers:
        before: AsyncExitStack | None = None
        while inputs:
            taken = inputs[:size]
            del inputs[:size]
            disk = folder / str(number if moves else 0)
            number += 1
            program = build(case, None, broker=f"local://{folder / 'case.db'}", state_dir=disk)
            mine = await workers.enter_async_context(AsyncExitStack())
            runtime = await mine.enter_async_context(Runtime(program.app).running())
            worker = runtime.worker
            assert worker is not None
            if before is not None:
                await before.aclose()
            for topic, key, value, timestamp in taken:
                await program.inputs[topic].send(value, key=key, timestamp=timestamp)
                await _committed(worker, runtime)
                found, at = await outputs(runtime.transport, program, at)
                results.append(found)
            before = mine if moves else None
            if not moves:
                if inputs:
                    worker.abandon()
                await mine.aclose()
    return results


async def _committed(worker: Worker, runtime: Runtime) -> None:
    """Wait until everything that is in the log is processed and committed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_S
    while not await _at_the_end(worker, runtime):
        if runtime.failed() or loop.time() > deadline:
            raise AssertionError("the worker has stopped, or does not come to the end of its input")
        await asyncio.sleep(0.001)


async def _at_the_end(worker: Worker, runtime: Runtime) -> bool:
    if not worker.ready.is_set() or not worker.shards:
        return False
    shards: list[Shard] = list(worker.shards.values())
    inputs = [tp for shard in shards for tp in shard.inputs()]
    ends = await runtime.transport.end_offsets(inputs)
    for shard in shards:
        if any(shard.committed.get(tp, 0) < ends[tp] for tp in shard.inputs()):
            return False
        if shard.is_closing or shard.has_work():
            return False
    if not await _global_tables_at_the_end(worker, runtime):
        return False
    # what a shard has committed since may be for another one
    return await runtime.transport.end_offsets(inputs) == ends


async def _global_tables_at_the_end(worker: Worker, runtime: Runtime) -> bool:
    """They follow their topics by themselves, and shards do not wait for them."""
    for name, part in worker.options.everywhere.items():
        topic = runtime.app.tables[name].topic
        assert topic is not None
        tps = [TopicPartition(topic.name, n) for n in range(runtime.partitions[topic.name])]
        for tp, end in (await runtime.transport.end_offsets(tps)).items():
            position = decode_position(part.store.get(POSITION_KEY + b"/%d" % tp.partition))
            if (0 if position is None else position.offset) < end:
                return False
    return True

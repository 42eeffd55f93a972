"""Workers that write at least once: nothing is lost, and nothing is repeated where everybody behaves (invariant 17)."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from millstream.worker import _worker, assign_shards
from tests.brokers import Program, Record, unique
from tests.crash.pair import Pair
from tests.crash.program import Violation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.brokers import Cluster, Kafka

KEYS = [f"key-{number}" for number in range(30)]
SESSION_S = 1.5
DEADLINE_S = 60.0


@asynccontextmanager
async def a_pair(kafka: Kafka) -> AsyncIterator[Pair]:
    """Workers to come that write at least once; they end with the block."""
    pair = await asyncio.to_thread(Pair, kafka, processing_guarantee="at_least_once")
    try:
        yield pair
    finally:
        await pair.close()


async def a_shard_is_handed_over(pair: Pair) -> None:
    """Its owner has not heard of it, has a commit refused, and then hears of it, with more in hand."""
    one, two = pair.side("one"), pair.side("two")
    await one.start()
    await pair.write()
    await one.processed(1)
    await one.commit()
    await pair.write()
    await one.processed(2)
    one.awake.clear()
    await two.start()
    # it makes a copy first, and tells when that is warm
    await two.until(lambda: two.generation >= one.generation + 2)
    if two.worker.shards:
        raise Violation(f"{two.worker.shards} began while another worker had them")
    await one.commit()
    assert one.worker.committer.refused == 1
    await pair.write()
    await one.processed(3)
    one.awake.set()
    await two.until(lambda: len(two.shards()) == 1)
    await one.until(lambda: len(one.shards()) == 1)
    assert one.numbers() != two.numbers()
    await pair.write()
    for side in (one, two):
        await side.processed(4)
        await side.commit()
    await pair.check()


async def test_a_planned_move_repeats_nothing(own_kafka: Cluster) -> None:
    """The owner stops, commits, lets go; then the next one begins."""
    async with a_pair(own_kafka) as pair:
        await a_shard_is_handed_over(pair)


async def test_a_move_in_one_round_is_seen(
    own_kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the second round two workers have one shard."""
    monkeypatch.setattr(_worker, "assign_in_two_rounds", assign_shards)
    async with a_pair(own_kafka) as pair:
        with pytest.raises(Violation, match="began while another worker had them"):
            await a_shard_is_handed_over(pair)


async def test_nothing_is_repeated_while_workers_come_and_go(own_kafka: Cluster) -> None:
    """Several times, with words all the time; each worker commits by itself."""
    async with a_pair(own_kafka) as pair:
        one = pair.side("one", commits=True)
        await one.start()
        for number in range(3):
            await pair.write()
            two = pair.side(f"two-{number}", commits=True)
            await two.start()
            await pair.write()
            await two.until(lambda two=two: len(two.shards()) == 1)  # type: ignore[misc]
            await pair.write()
            await two.stop()
            await one.until(lambda: len(one.shards()) == 2)
        await pair.check()


@pytest.mark.parametrize(
    "point", [pytest.param("commit.writing", marks=pytest.mark.slow), "commit.appended"]
)
async def test_a_killed_worker_loses_nothing(kafka: Kafka, tmp_path: Path, point: str) -> None:
    """Wherever it is in its commit; what it had written without a position is written again."""
    app, topic = unique("counting"), kafka.topic("words", partitions=4)
    guarantee = "at_least_once"

    def worker(name: str, *more: str) -> Program:
        arguments = [kafka.url, app, topic, str(tmp_path / name), f"{SESSION_S}s", guarantee]
        return Program(
            "tests.integration.counting", *arguments, *more, log=tmp_path / f"{name}.log"
        )

    def write() -> None:
        words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS]
        kafka.write(topic, words, partitioner="murmur2")

    async def counted(times: int) -> dict[str, list[int]]:
        patience = time.monotonic() + DEADLINE_S
        while True:
            found: dict[str, list[int]] = {}
            for record in await asyncio.to_thread(kafka.read, f"{app}-totals"):
                key = (record.key or b"").decode()
                found.setdefault(key, []).append(int(record.value or b""))
            short = [key for key in KEYS if max(found.get(key, [0])) < times]
            if not short:
                return found
            assert time.monotonic() < patience, (short, found)
            await asyncio.sleep(0.1)

    doomed, other = worker("doomed", point), worker("other")
    try:
        await asyncio.to_thread(doomed.start)
        writing = 0
        while doomed.alive:
            await asyncio.to_thread(write)
            writing += 1
            assert writing < 100
            await asyncio.sleep(0.02)
        await asyncio.to_thread(other.start)
        await asyncio.to_thread(write)
        found = await counted(writing + 1)
    finally:
        doomed.kill()
        other.kill()
    repeated = any(len(values) > writing + 1 for values in found.values())
    assert repeated == (point == "commit.appended")

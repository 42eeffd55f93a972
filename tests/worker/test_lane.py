"""An agent that reads several partitions of its shard: whose turn it is, and who waits for whom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

import millstream as ms
from millstream.testing import TestApp

if TYPE_CHECKING:
    from pathlib import Path


class Tick(msgspec.Struct):
    source: str
    at: int
    more: str = ""


def reading(
    *waits: str, concurrency: int = 1, broker: str | None = None
) -> tuple[ms.App, list[ms.Topic[Tick]], list[tuple[str, int]]]:
    """An agent over the topics a, b, …, each with its ``max_wait``; notes what it reads."""
    app = ms.App("ticks", broker=broker, partitions=1)
    topics = [
        app.topic(name, value=Tick, timestamp="at", max_wait=wait)
        for name, wait in zip("abc", waits, strict=False)
    ]
    seen: list[tuple[str, int]] = []

    @app.agent(*topics, concurrency=concurrency)
    async def read(stream: ms.Stream[Tick]) -> None:
        async for tick in stream:
            seen.append((tick.source, tick.at))  # noqa: PERF401 - a stream is no list

    return app, topics, seen


async def test_oldest_first() -> None:
    """Of what is there, the oldest comes first, whichever topic it is in."""
    app, (a, b), seen = reading("0s", "0s")
    async with TestApp(app) as t:
        await a.send_many([Tick("a", at) for at in (1, 4, 5)])
        await b.send_many([Tick("b", at) for at in (2, 3, 6)])
        await t.settle()
        assert [at for _, at in seen] == [1, 2, 3, 4, 5, 6]


async def test_one_moment_in_two_topics() -> None:
    """Topics take their turns by name then, so that a worker which begins in the middle goes on as the one before."""
    whole: list[tuple[str, int]] = []
    for begun in (0, 1, 2, 3):
        app, (a, b), seen = reading("0s", "0s")
        async with TestApp(app) as t:
            ticks = [(b, Tick("b", 1)), (b, Tick("b", 2)), (b, Tick("b", 3)), (a, Tick("a", 2))]
            for topic, tick in ticks[:begun]:
                await t.send(topic, tick)
            await t.crash()
            for topic in (a, b):
                rest = [tick for name, tick in ticks[begun:] if name is topic]
                if rest:
                    await topic.send_many(rest)
            await t.settle()
            whole = whole or seen
            if begun < 2:  # from then on, b's second one came before anybody knew of a's
                assert seen == [("b", 1), ("a", 2), ("b", 2), ("b", 3)] == whole


async def test_large_records_that_wait_already(tmp_path: Path) -> None:
    """What a first fetch has no room for is waited for all the same."""
    url, waits = f"local://{tmp_path / 'log.db'}", ("0s", "0s", "0s")
    app, topics, seen = reading(*waits, broker=url)
    async with app.running(worker=False, web=False):
        for at, topic in zip((3, 2, 1), topics, strict=True):
            await topic.send(Tick(topic.name, at, "x" * 900_000))
    app, topics, seen = reading(*waits, broker=url)
    async with app.running(web=False), asyncio.timeout(30):
        while len(seen) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert seen == [("c", 1), ("b", 2), ("a", 3)]


async def test_an_empty_partition_does_not_block() -> None:
    """Without ``max_wait`` a partition that is caught up is not waited for."""
    app, (a, b), seen = reading("0s", "0s")
    async with TestApp(app) as t:
        await t.send(a, Tick("a", 10))
        await t.send(b, Tick("b", 5))
        assert seen == [("a", 10), ("b", 5)]


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_max_wait_keeps_the_order(concurrency: int) -> None:
    """With it, the records of others wait for the topic, and come in order when it has some."""
    app, (a, b), seen = reading("0s", "2s", concurrency=concurrency)
    async with TestApp(app) as t:
        await t.send(a, Tick("a", 10))
        assert seen == []
        await t.advance("1s")
        assert seen == []
        await t.send(b, Tick("b", 5))
        assert seen == [("b", 5)]  # and now b is empty again: 10 waits
        await t.advance("1999ms")
        assert seen == [("b", 5)]
        await t.send(b, Tick("b", 20))
        assert seen == [("b", 5), ("a", 10), ("b", 20)]  # nobody waits for a


async def test_max_wait_is_over() -> None:
    """After the wait the others go on, for as long as they have records."""
    app, (a, b), seen = reading("0s", "2s")
    async with TestApp(app) as t:
        await t.send(a, Tick("a", 10))
        await t.advance("2s")
        assert seen == [("a", 10)]
        await t.send(b, Tick("b", 3))
        assert seen == [("a", 10), ("b", 3)]
        await t.send(a, Tick("a", 11))
        await t.crash()  # what waited is read again
        assert seen[2:] == []
        await t.advance("2s")
        assert seen[2:] == [("a", 11)]


async def test_the_longest_wait_counts() -> None:
    """Of several empty topics, the one with the longest wait decides."""
    app, (_a, b, c), seen = reading("1s", "0s", "3s")
    async with TestApp(app) as t:
        await t.send(b, Tick("b", 1))
        await t.advance("2999ms")
        assert seen == []
        await t.advance("1ms")
        assert seen == [("b", 1)]
        await t.send(c, Tick("c", 2))
        await t.advance("999ms")
        assert seen == [("b", 1)]
        await t.advance("1ms")
        assert seen == [("b", 1), ("c", 2)]


async def test_a_single_topic_waits_for_nobody() -> None:
    """An agent over one topic has nobody to wait for."""
    app, (a,), seen = reading("1h")
    async with TestApp(app) as t:
        await t.send(a, Tick("a", 1))
        assert seen == [("a", 1)]

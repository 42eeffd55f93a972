"""Tables with history: what a value was is found, and at what cost, however many versions a key has."""

from __future__ import annotations

import random
from typing import Any

import pytest

import millstream as ms
from millstream.streams import _versioned
from millstream.streams._versioned import VersionedPart
from millstream.testing import TestApp
from tests.streams.running import Disturbance, disturb, feed

HISTORY_MS = 40_000


def program(*, concurrency: int = 1) -> tuple[ms.App, Any, Any, list[Any]]:
    """A table that an agent writes, and one that answers what a value was."""
    app = ms.App("history", partitions=1)
    prices, questions = app.topic("prices", value=int), app.topic("questions", value=int)
    table = app.table("t", key=str, value=int, versioned=f"{HISTORY_MS}ms")
    answers: list[Any] = []

    @app.agent(prices, concurrency=concurrency)
    async def keep(stream: ms.Stream[int]) -> None:
        async for key, value in stream.items():
            if value >= 0:
                table[key] = value
            elif key in table:
                del table[key]

    @app.agent(questions)
    async def ask(stream: ms.Stream[int]) -> None:
        async for key, moment in stream.items():
            answers.append(table.as_of(key, moment))

    return app, prices, questions, answers


def was(updates: list[tuple[str, int, int]], key: str, moment: int) -> int | None:
    """The value of a key at a moment, told from all updates in their order."""
    of_key = [(time, number) for number, (one, _, time) in enumerate(updates) if one == key]
    known = [pair for pair in of_key if pair[0] <= moment]
    value = updates[max(known)[1]][1] if known else -1
    return None if value < 0 else value


@pytest.mark.parametrize("how", ["", "crash", "lose", "rebalance"])
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_every_moment_is_found(
    monkeypatch: pytest.MonkeyPatch, how: Disturbance, concurrency: int
) -> None:
    """Whatever comes when: versions in one segment, or so many that their bucket is divided again and again."""
    monkeypatch.setattr(_versioned, "SEGMENT_BYTES", 80)
    monkeypatch.setattr(_versioned, "BUCKETS", 4)
    choose = random.Random(5)
    app, prices, questions, answers = program(concurrency=concurrency)
    updates: list[tuple[str, int, int]] = []
    asked: list[tuple[str, int]] = []
    async with TestApp(app) as t:
        for number in range(12):
            first = choose.choice([0, 9_000, 9_990, 20_000])
            some: list[tuple[str, int, int]] = []
            for row in range(40):
                key = choose.choice(["hot", "hot", "hot", "warm"])
                time = first + choose.randrange(choose.choice([20, 300, 10_000]))
                latest = max(
                    [(one[2], at) for at, one in enumerate(updates + some) if one[0] == key],
                    default=(HISTORY_MS, -1),
                )
                gone = (
                    choose.random() < 0.3
                    and time >= latest[0]
                    and (updates + some)[latest[1]][1] >= 0
                )
                some.append((key, -1 if gone else number * 100 + row, time))
            updates += some
            await feed(t, prices, some)
            if number % 3 == 1:
                await disturb(t, how)
        moments = [time + shift for *_, time in updates for shift in (-1, 0, 1) if time]
        asked = [(key, moment) for key in ("hot", "warm") for moment in moments]
        await feed(t, questions, [(key, moment, 30_000) for key, moment in asked])
        await t.settle()
    assert answers == [was(updates, key, moment) for key, moment in asked]


async def test_many_versions_cost_as_much_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update, a late one and a look at the past read a few segments, each of them small."""
    app, prices, questions, answers = program()
    sizes: list[int] = []

    def read(part: VersionedPart, entry: Any, scope: Any) -> bytes | None:
        found = bytes_of(part, entry, scope)
        sizes.append(len(found or b""))
        return found

    bytes_of = VersionedPart._bytes
    monkeypatch.setattr(VersionedPart, "_bytes", read)
    monkeypatch.setattr(_versioned, "BUCKETS", 1)
    async with TestApp(app) as t:
        await feed(t, prices, [("hot", number, number * 4) for number in range(5_000)])
        for topic, value, time in [
            (prices, 0, 20_000),
            (prices, 0, 10_002),
            (questions, 1, 20_000),
            (questions, 10_003, 20_000),
            (questions, 19_998, 20_000),
        ]:
            sizes.clear()
            await feed(t, topic, [("hot", value, time)])
            assert len(sizes) < 20
            assert max(sizes) <= _versioned.SEGMENT_BYTES + 30
    assert answers == [0, 0, 4_999]


async def test_large_values_have_segments_of_their_own() -> None:
    """What is put together stays below the bound of a record."""
    app = ms.App("history", partitions=1, record_bytes_max=3_000)
    texts, questions = app.topic("texts", value=str), app.topic("questions", value=int)
    table: Any = app.table("t", topic=texts, versioned="1h")
    answers: list[str] = []

    @app.agent(questions)
    async def ask(stream: ms.Stream[int]) -> None:
        async for key, moment in stream.items():
            answers.append(table.as_of(key, moment))

    written = [
        (f"{number}" * size, number) for number, size in enumerate([1_900, 2_500, 10, 2_900, 1])
    ]
    async with TestApp(app) as t:
        await feed(t, texts, [("a", text, moment) for text, moment in written])
        await feed(t, texts, [("a", "x" * 2_900, 1)])
        await feed(t, questions, [("a", moment, 5) for _, moment in written])
        await t.settle()
    assert answers == [written[0][0], "x" * 2_900, *(text for text, _ in written[2:])]

"""Rows that a join keeps, in as many segments as a busy key needs."""

from __future__ import annotations

import random
from typing import Any

import pytest

import millstream as ms
from millstream.streams import _join_rows
from millstream.streams._join_rows import BufferPart
from millstream.testing import TestApp
from tests.streams.running import Disturbance, disturb, feed, read


@pytest.mark.parametrize("how", ["", "crash", "lose", "rebalance"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
async def test_a_busy_key_meets_every_row(
    monkeypatch: pytest.MonkeyPatch, on_error: Any, how: Disturbance
) -> None:
    """Also where the event that began a segment was undone, and others go on from there."""
    monkeypatch.setattr(_join_rows, "SEGMENT_BYTES", 60)
    choose = random.Random(3)
    app = ms.App("shop", partitions=1, on_error=on_error)
    left, right = app.topic("left", value=int), app.topic("right", value=int)
    out = app.topic("out", value=str)

    def pair(one: int, other: int) -> str:
        if other < 0:
            raise ValueError(other)
        return f"{one}/{other}"

    app.stream(left).join(app.stream(right), pair, within="1h", name="rows", value=str).to(out)
    async with TestApp(app) as t:
        good: dict[str, list[int]] = {"a": [], "b": []}
        wanted = []
        await feed(t, left, [("a", 1, 0), ("b", 1, 0)])
        for number in range(8):
            some = []
            for row in range(25):
                key = choose.choice("aaab")
                bad = on_error == "skip" and choose.random() < 0.3
                value = -1 if bad else number * 100 + row
                some.append((key, value, choose.randrange(1_000)))
                if not bad:
                    good[key].append(value)
                    wanted.append((key, f"1/{value}"))
            await feed(t, right, some)
            if number % 2:
                await disturb(t, how)
        assert sorted((one.key, one.value) for one in read(t, out)) == sorted(wanted)
        for key, values in good.items():
            await feed(t, left, [(key, 2, 999)])
            found = [one.value for one in read(t, out) if one.key == key and one.value[0] == "2"]
            assert sorted(found) == sorted(f"2/{value}" for value in values)


async def test_a_busy_key_costs_as_much_as_a_quiet_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is put behind the last one without a walk over those before it."""
    monkeypatch.setattr(_join_rows, "SEGMENT_BYTES", 100)
    app = ms.App("shop", partitions=1)
    left, right = app.topic("left", value=int), app.topic("right", value=int)
    app.stream(left).join(app.stream(right), max, within="1h", name="rows", value=int).foreach(str)
    looked_at: list[Any] = []

    def segment(part: BufferPart, entry: Any, scope: Any) -> bytes:
        looked_at.append(entry)
        return segment_of(part, entry, scope)

    segment_of = BufferPart.segment
    monkeypatch.setattr(BufferPart, "segment", segment)
    async with TestApp(app) as t:
        await feed(t, right, [("hot", number, number) for number in range(1_000)])
        before = len(looked_at)
        await feed(t, right, [("hot", number, number) for number in range(1_000, 1_200)])
        assert len(looked_at) - before < 4 * 200
        assert max(entry[-1] for entry in looked_at) > 100

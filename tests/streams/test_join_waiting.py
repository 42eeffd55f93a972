"""Rows that wait in vain, more of them than are kept in memory: each comes out once, in order of time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import millstream as ms
from millstream.streams import _join_filter, _join_waiting
from millstream.streams._join_filter import KeyFilters
from millstream.testing import TestApp
from tests.streams.running import NOTHING, Disturbance, disturb, feed, read

HOLD_MS = 100
ROUNDS, ROWS = 12, 30


def rows_that_come_out(how: Disturbance, waits: Any) -> tuple[list[Any], list[Any], list[int]]:
    """What came out, what should have, and how many rows were known in memory after each round."""
    choose = random.Random(7)

    async def run() -> tuple[list[Any], list[Any], list[int]]:
        app = ms.App("shop", partitions=1)
        left, right = app.topic("left", value=int), app.topic("right", value=int)
        out = app.topic("out", value=int)
        app.stream(left).join(
            app.stream(right),
            lambda one, other: one if one is not None else other,
            how=waits,
            within=HOLD_MS / 1_000,
            name="rows",
        ).to(out)
        # before there are many: one that is let out while memory knows of all that wait
        fed, known = [("first", 0, 0), ("second", 0, 2 * HOLD_MS)], []
        async with TestApp(app) as t:
            for row in fed:
                await feed(t, left, [row])
            for number in range(ROUNDS):
                # most are not due before the next rounds; many are of one moment, in any order
                begin = 2 * HOLD_MS + number * 20
                some = [
                    (f"k{number}-{row}", row, begin + choose.randrange(20)) for row in range(ROWS)
                ]
                fed += some
                side = right if waits == "outer" and number % 2 else left
                await feed(t, side, some)
                if number % 4 == 2:
                    await disturb(t, how)
                (shard,) = t.worker.shards.values()
                orders: Any = shard.parts["rows-unmatched"]._orders
                known.append(sum(len(o._lately) + len(o._ahead) for o in orders.values()))
            await feed(t, left, [("end", 0, 10_000)])
            await t.settle()
            found = [(record.key, record.timestamp) for record in read(t, out)]
        wanted = [(key, timestamp) for key, _, timestamp in sorted(fed, key=lambda row: row[2])]
        return found, wanted, known

    return asyncio.run(run())


@pytest.mark.parametrize("waits", ["left", "outer"])
@pytest.mark.parametrize("how", [NOTHING, "crash", "lose", "rebalance"])
@pytest.mark.parametrize("memory", [4, 50, 8_192])
def test_each_row_comes_out_once_in_order(
    monkeypatch: pytest.MonkeyPatch, memory: int, how: Disturbance, waits: str
) -> None:
    """However many of them memory has room for, and whatever happens to the worker."""
    monkeypatch.setattr(_join_waiting, "LATE_MAX", memory)
    monkeypatch.setattr(_join_waiting, "AHEAD_KEYS", 7)
    monkeypatch.setattr(_join_waiting, "STEP_MS_MIN", 10)
    found, wanted, _ = rows_that_come_out(how, waits)
    assert sorted(found) == sorted(wanted)
    assert [moment for _, moment in found] == [moment for _, moment in wanted]


def test_memory_has_few_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than a hundred that wait, the nearest are known; of the others the store tells."""
    monkeypatch.setattr(_join_waiting, "LATE_MAX", 10)
    monkeypatch.setattr(_join_waiting, "STEP_MS_MIN", 5)
    monkeypatch.setattr(_join_waiting, "AHEAD_KEYS", 7)
    found, wanted, known = rows_that_come_out(NOTHING, "left")
    assert len(found) == len(wanted) == 2 + ROUNDS * ROWS
    assert max(known) <= 30


class Counted:
    """A key that counts how often keys are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return self is other

    __hash__ = object.__hash__


def test_rows_of_one_moment_go_without_a_search() -> None:
    """A row that meets its partner is found at once among many that wait since the same moment."""
    order = _join_waiting._Order(True, HOLD_MS, lambda entry: b"")
    entries = [(True, 5, Counted(), 0) for _ in range(500)]
    for entry in entries:
        order.put(entry)
    for entry in reversed(entries[1:]):
        order.drop(entry)
    assert Counted.compared < len(entries)
    assert order._lately == {5: {entries[0]: None}}


@pytest.mark.parametrize("how", [NOTHING, "crash", "rebalance"])
async def test_late_rows_meet_their_partners(
    monkeypatch: pytest.MonkeyPatch, how: Disturbance
) -> None:
    """Also in stretches of which memory does not know the keys any more; the other rows wait in vain, each once."""
    monkeypatch.setattr(_join_filter, "BUCKETS_MAX", 2)
    monkeypatch.setattr(_join_waiting, "STRETCH_MS", 20)
    choose = random.Random(2)
    app = ms.App("shop", partitions=1)
    left, right = app.topic("left", value=int), app.topic("right", value=int)
    out = app.topic("out", value=str)
    app.stream(left).join(
        app.stream(right), "{}/{}".format, how="left", within="500ms", name="rows"
    ).to(out)
    sides: dict[str, list[tuple[str, int, int]]] = {"left": [], "right": []}
    async with TestApp(app) as t:
        for number in range(200):
            name = choose.choice(list(sides))
            row = (f"{choose.randrange(60)}", number, choose.randrange(500))
            sides[name].append(row)
            await feed(t, app.topics[name], [row], settle=number % 20 == 0)
            if number % 60 == 50:
                await t.settle()
                await disturb(t, how)
        await feed(t, left, [("end", 0, 100_000)])
        await feed(t, left, [("end", 0, 200_000)])
        found = sorted(one.value for one in read(t, out) if one.key != "end")
    wanted = []
    for key, value, _ in sides["left"]:
        partners: list[int | None] = [other for one, other, _ in sides["right"] if one == key]
        wanted += [f"{value}/{other}" for other in partners or [None]]
    assert found == sorted(wanted)


def test_the_keys_of_few_stretches_are_known() -> None:
    """Of the others it is said that they may have any key, of the known ones what they have."""
    filters = KeyFilters()
    for bucket in [*range(100), 3, 96, 250, 240]:
        filters.add(bucket, f"{bucket}")
        assert f"{bucket}" in filters[bucket]
        assert len(filters) <= _join_filter.BUCKETS_MAX
    assert all("other" in filters[bucket] for bucket in range(90))
    assert "other" not in filters[96]
    assert "96" in filters[96]
    assert "240" in filters[240]
    assert "240" not in filters[239]


def test_many_keys_of_a_stretch_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no more bits beyond a bound, and none of the keys is denied."""
    for name, bound in {"KEYS_MAX": 100, "BITS_MIN": 1 << 10, "BITS_MAX": 1 << 12}.items():
        monkeypatch.setattr(_join_filter, name, bound)
    filters = KeyFilters()
    for number in range(2_000):
        filters.add(0, f"{number}")
    known: Any = filters[0]
    assert all(f"{number}" in known for number in range(2_000))
    assert sum(len(bits) for bits, _ in known.layers) <= (1 << 10) // 8 + (1 << 12) // 8
    assert any(f"x{number}" not in known for number in range(2_000))

"""Declared streams: filter, map, group_by and through on the way to an agent."""

# ruff: noqa: PERF102, PERF401  # a stream is no list, and an app ends with its block

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.errors import TopologyError
from millstream.testing import TestApp
from tests.kit import Order, append


def shop(**settings: Any) -> tuple[ms.App, ms.Topic[Order]]:
    app = ms.App("shop", **settings)
    return app, app.topic("orders", value=Order)


async def test_filter_and_map() -> None:
    """Steps before an agent are taken in their order, and change nothing of the stream before."""
    app, orders = shop(partitions=1)
    seen: list[float] = []
    every = app.stream(orders)
    large = every.filter(lambda order: order.amount > 1).map(lambda order: order.amount * 10)

    @app.agent(large)
    async def note(stream: ms.Stream[float]) -> None:
        async for amount in stream:
            seen.append(amount)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", 1.0), Order("b", 2.0)])
    assert seen == [20.0]


async def test_group_by_a_field() -> None:
    """Values are keyed anew by way of a topic of their own, so that tables may be used by the new key."""
    app, orders = shop()
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(app.stream(orders).group_by("account"))
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += order.amount

    async with TestApp(app) as t:
        await t.send_many(orders, [Order(f"a{i % 5}", 1.0) for i in range(50)])
        assert t.table(totals) == {f"a{i}": 10.0 for i in range(5)}
        await t.crash(lose_state=True)
        assert t.table(totals) == {f"a{i}": 10.0 for i in range(5)}
    assert "shop-orders-by-account-repartition" in app.topology.topics


async def test_group_by_a_function() -> None:
    """A function needs a name, for the topic behind it is named after it; None drops the value."""
    app, orders = shop()
    counts = app.table("counts", key=str, value=int, default=0)
    stream = app.stream(orders)

    def parity(order: Order) -> str | None:
        return None if order.amount < 0 else "odd" if order.amount % 2 else "even"

    with pytest.raises(TopologyError, match=r"give it a name, for example group_by\(\.\.\., name="):
        stream.group_by(parity)

    @app.agent(stream.filter(lambda order: order.amount != 3).group_by(parity, name="parity"))
    async def count(stream: ms.Stream[Order]) -> None:
        async for key, _ in stream.items():
            counts[key] += 1

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("x", float(i)) for i in range(-2, 10)])
        assert t.table(counts) == {"odd": 4, "even": 5}


async def test_group_by_keeps_time_and_headers() -> None:
    """A regrouped record has the timestamp and the headers of its original."""
    app, orders = shop()
    seen: list[Any] = []

    @app.agent(app.stream(orders).group_by("account"))
    async def note(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            seen.append((event.key, event.timestamp, list(event.headers)))

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0), timestamp=5, headers={"trace": "7"})
    assert seen == [("ada", 5, [("trace", b"7")])]


async def test_group_by_twice() -> None:
    """Two groupings by one field share a topic; two functions under one name are refused, with a proposal."""
    app, orders = shop()
    app.stream(orders).group_by("account")
    app.stream(orders).group_by("account")
    assert [name for name in app.topology.topics if "repartition" in name] == [
        "shop-orders-by-account-repartition"
    ]
    app.stream(orders).group_by(lambda order: order.account, name="mine")
    with pytest.raises(TopologyError, match=r"name='mine-2'"):
        app.stream(orders).group_by(lambda order: order.account[:1], name="mine")


async def test_through() -> None:
    """``through`` leads by way of a topic, with its key and partitions."""
    app, orders = shop(partitions=2)
    middle = app.topic("middle", value=Order, key_from="account", partitions=3)
    totals = app.table("totals", key=str, value=float, default=0.0, like=middle)

    @app.agent(app.stream(orders).through(middle))
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += order.amount

    async with TestApp(app) as t:
        await t.send_many(orders, [Order(f"a{i % 3}", 1.0) for i in range(9)])
        assert t.table(totals) == {"a0": 3.0, "a1": 3.0, "a2": 3.0}
        assert len(t.sent(middle)) == 9


async def test_through_keeps_the_key() -> None:
    """Where the topic derives no key, a record keeps its own."""
    app = ms.App("keep", partitions=2)
    numbers, middle = app.topic("numbers", value=int), app.topic("middle", value=int)
    seen: list[Any] = []

    @app.agent(app.stream(numbers).through(middle))
    async def note(stream: ms.Stream[int]) -> None:
        async for item in stream.items():
            seen.append(item)

    async with TestApp(app) as t:
        await t.send(numbers, 1, key="k")
    assert seen == [("k", 1)]


async def test_several_topics() -> None:
    """A declared stream may have several topics."""
    app = ms.App("merge", partitions=1)
    one, two = app.topic("one", value=int), app.topic("two", value=int)
    seen: list[int] = []

    @app.agent(app.stream(one, two).filter(lambda n: n > 0))
    async def note(stream: ms.Stream[int]) -> None:
        async for number in stream:
            seen.append(number)

    async with TestApp(app) as t:
        await t.send(one, 1)
        await t.send(two, 2)
        await t.send(two, -2)
    assert sorted(seen) == [1, 2]


async def test_tombstones_go_past_the_steps() -> None:
    """A record without a value does not stop a stream whose steps look into values."""
    app, orders = shop(partitions=1, on_error="skip")
    seen: list[Order] = []

    @app.agent(app.stream(orders).filter(lambda order: order.amount > 0))
    async def note(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order)

    async with TestApp(app) as t:
        await append(t, "orders", None, b'{"account":"a","amount":1}', key=b"a")
    assert seen == [Order("a", 1.0)]

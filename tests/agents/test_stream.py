"""What an agent iterates over: values, events, pairs, batches, and the steps before them."""

# ruff: noqa: PERF401  # a stream is no list, and an app ends with its block

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.errors import AgentError, ConfigurationError
from millstream.testing import TestApp
from tests.kit import Order, append

AT = 1_700_000_000_000


def one_partition(**settings: Any) -> tuple[ms.App, ms.Topic[Order]]:
    app = ms.App("shop", partitions=1, **settings)
    return app, app.topic("orders", value=Order, key_from="account")


async def test_steps() -> None:
    """filter, map and enumerate come in the order in which they are written."""
    app, orders = one_partition()
    seen: list[tuple[int, float]] = []

    @app.agent(orders)
    async def steps(stream: ms.Stream[Order]) -> None:
        amounts = stream.filter(lambda order: order.amount > 1).map(lambda order: order.amount)
        async for pair in amounts.filter(lambda amount: amount < 9).enumerate(start=1):
            seen.append(pair)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", x) for x in (1.0, 2.0, 9.0, 3.0)])
        assert seen == [(1, 2.0), (2, 3.0)]


async def test_values_that_are_filtered_out_are_finished() -> None:
    """What a filter leaves out does not come back after a crash."""
    app, orders = one_partition()
    asked: list[float] = []

    def nothing(order: Order) -> bool:
        asked.append(order.amount)
        return False

    @app.agent(orders)
    async def none(stream: ms.Stream[Order]) -> None:
        async for _ in stream.filter(nothing):
            raise AssertionError

    async with TestApp(app) as t:
        await t.send(orders, Order("a", 1.0))
        await t.crash()
        assert asked == [1.0]


async def test_events() -> None:
    """An event has key, value, timestamp, offset, partition, topic, headers, and an id for ever."""
    app, orders = one_partition()
    seen: list[ms.Event[Order]] = []

    @app.agent(orders)
    async def note(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            assert ms.current_event() == event
            seen.append(event)

    assert ms.current_event() is None
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0), timestamp=AT, headers={"trace": "7"})
        await t.send(orders, Order("ada", 2.0), key="other")
    assert seen[0] == ms.Event(
        key="ada",
        value=Order("ada", 1.0),
        timestamp=AT,
        offset=0,
        partition=0,
        topic="orders",
        headers=[("trace", b"7")] if isinstance(seen[0].headers, list) else (("trace", b"7"),),
    )
    assert [event.id for event in seen] == ["orders/0@0", "orders/0@1"]
    assert seen[1].key == "other"


async def test_items() -> None:
    """Pairs have the key in its declared type."""
    app = ms.App("shop", partitions=1)
    counts = app.topic("counts", key=int, value=str)
    seen: list[tuple[int, str]] = []

    @app.agent(counts)
    async def note(stream: ms.Stream[str, int]) -> None:
        async for key, value in stream.items():
            seen.append((key, value))

    async with TestApp(app) as t:
        await t.send(counts, "seven", key=7)
    assert seen == [(7, "seven")]


async def test_tombstones_and_null_keys() -> None:
    """A record without a value comes as None, one without a key has None as its key."""
    app, orders = one_partition()
    seen: list[tuple[Any, Any]] = []

    @app.agent(orders)
    async def note(stream: ms.Stream[Order]) -> None:
        async for key, value in stream.items():
            seen.append((key, value))

    async with TestApp(app) as t:
        await append(t, "orders", None, key=b"ada")
        await append(t, "orders", b'{"account":"ada","amount":1}', key=None)
        await t.send(orders, None, key="bob")
    assert seen == [("ada", None), (None, Order("ada", 1.0)), ("bob", None)]


async def test_timestamp_of_a_value() -> None:
    """A topic's ``timestamp`` gives the event time of records that others have written, too."""
    app = ms.App("shop", partitions=1)
    orders = app.topic("orders", value=Order, timestamp=lambda order: order.amount)
    seen: list[int] = []

    @app.agent(orders)
    async def note(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            seen.append(event.timestamp)

    async with TestApp(app) as t:
        await append(t, "orders", b'{"account":"ada","amount":5000}', timestamp=1)
        await t.send(orders, Order("ada", 6000.0))
    assert seen == [5000, 6000]


async def test_take() -> None:
    """Batches have the size that was asked for, or what has come within the time."""
    app, orders = one_partition()
    sizes: list[int] = []

    @app.agent(orders)
    async def batches(stream: ms.Stream[Order]) -> None:
        async for batch in stream.take(3, within="10s"):
            sizes.append(len(batch))

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", float(i)) for i in range(7)])
        assert sizes == [3, 3]
        await t.advance("9s")
        assert sizes == [3, 3]
        await t.advance("1s")
        assert sizes == [3, 3, 1]


async def test_take_after_steps() -> None:
    """Steps are taken for each value of a batch; a batch of which nothing is left does not come."""
    app, orders = one_partition()
    seen: list[list[float]] = []

    @app.agent(orders)
    async def batches(stream: ms.Stream[Order]) -> None:
        large = stream.filter(lambda order: order.amount >= 3).map(lambda order: order.amount)
        async for batch in large.take(2):
            seen.append(batch)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", float(i)) for i in range(6)])
    assert seen == [[3.0], [4.0, 5.0]]


async def test_a_batch_that_waits_is_not_lost() -> None:
    """Records that wait in a batch are not committed, and come again after a crash."""
    app, orders = one_partition()
    table = app.table("sizes", key=str, value=list[float], default=list)

    @app.agent(orders)
    async def batches(stream: ms.Stream[Order]) -> None:
        async for batch in stream.take(3):
            table["a"].append(sum(order.amount for order in batch))

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", 1.0), Order("a", 2.0)])
        await t.crash()
        await t.send(orders, Order("a", 3.0))
        assert t.table(table) == {"a": [6.0]}
        await t.crash()
        assert t.table(table) == {"a": [6.0]}


@pytest.mark.parametrize("size", [3, 5])
async def test_a_batch_is_tried_again_as_a_whole(size: int) -> None:
    """A retry brings all records of the failed batch once more, whichever fetch they came from."""
    app, orders = one_partition(on_error=ms.Retry(times=1, backoff="1s"))
    table = app.table("seen", key=str, value=list[float], default=list)
    tries: list[list[float]] = []

    @app.agent(orders)
    async def batches(stream: ms.Stream[Order]) -> None:
        async for batch in stream.take(size, within="10s"):
            tries.append([order.amount for order in batch])
            table["a"] += tries[-1]
            if len(tries) == 1:
                raise ValueError("once")

    async with TestApp(app) as t:
        for amount in (1.0, 2.0):
            await t.send(orders, Order("a", amount))
        await t.send_many(orders, [Order("a", float(x)) for x in range(3, 10)])
        await t.advance("11s")
        assert tries[0] == tries[1]
        assert t.table(table) == {"a": [float(x) for x in range(1, 10)]}


async def test_a_batch_is_set_aside_as_a_whole() -> None:
    """With ``dlq`` every record of the failed batch becomes a dead letter, with its own position."""
    app, orders = one_partition(on_error="dlq")

    @app.agent(orders)
    async def batches(stream: ms.Stream[Order]) -> None:
        async for batch in stream.take(2):
            if batch[0].amount == 1.0:
                raise ValueError("first")

    dead = app.topic("shop-dlq", value=Order, partitions=1)
    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", float(x)) for x in range(1, 5)])
        assert [order.amount for order in t.sent(dead)] == [1.0, 2.0]


@pytest.mark.parametrize("count", [0, -1])
async def test_take_of_nothing(count: int) -> None:
    """A batch has at least one value."""
    app, orders = one_partition()

    @app.agent(orders)
    async def batches(stream: ms.Stream[Order]) -> None:
        async for _ in stream.take(count):
            pass

    with pytest.raises(AgentError, match="has to be at least 1"):
        async with TestApp(app):
            pass


async def test_take_with_concurrency() -> None:
    """Batches and a concurrency exclude each other."""
    app, orders = one_partition()

    @app.agent(orders, concurrency=2)
    async def batches(stream: ms.Stream[Order]) -> None:
        async for _ in stream.take(2):
            pass

    with pytest.raises(AgentError, match="Use one of the two") as raised:
        async with TestApp(app):
            pass
    assert isinstance(raised.value.__cause__, ConfigurationError)


async def test_anext() -> None:
    """A stream can be asked for one value at a time."""
    app, orders = one_partition()
    seen: list[float] = []

    @app.agent(orders)
    async def pairs(stream: ms.Stream[Order]) -> None:
        while True:
            first = await anext(stream)
            second = await anext(stream)
            seen.append(first.amount + second.amount)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", float(x)) for x in range(4)])
    assert seen == [1.0, 5.0]

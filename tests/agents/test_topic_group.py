"""Several topics that are read as one, by their names."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.errors import (
    AgentError,
    ConfigurationError,
    PartitionCountError,
    ProgramError,
    TopologyError,
)
from millstream.testing import TestApp
from tests.kit import Order


async def test_read_as_one() -> None:
    """An agent over several names reads all of them, typed alike, and knows which is which."""
    app = ms.App("shop")
    orders = app.topic("orders-eu", "orders-us", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    seen: list[str] = []

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            totals[event.value.account] += event.value.amount
            seen.append(event.topic)

    async with TestApp(app) as t:
        await t.send(orders.named("orders-eu"), Order("ada", 1.0))
        await t.send(orders.named("orders-us"), Order("ada", 2.0))
        assert t.table(totals) == {"ada": 3.0}
        assert seen == ["orders-eu", "orders-us"]
        assert t.sent(orders) == [Order("ada", 1.0), Order("ada", 2.0)]
        assert t.sent(orders.named("orders-us")) == [Order("ada", 2.0)]
        await t.crash(lose_state=True)
        await t.send(orders.named("orders-eu"), Order("ada", 4.0))
        assert t.table(totals) == {"ada": 7.0}


@pytest.mark.parametrize("send", ["send", "send_many", "in an event", "cast"])
async def test_sending_is_an_error(send: str) -> None:
    """Nobody can send to several topics at once; the message says how to send to one of them."""
    app = ms.App("shop", partitions=1)
    both = app.topic("a", "b", value=str)

    @app.agent(both)
    async def echo(stream: ms.Stream[str]) -> None:
        async for value in stream:
            await both.send(value)

    said = r"topic 'a, b' stands for several topics.*topic\.named\('a'\)\.send"
    if send == "in an event":
        with pytest.raises(AgentError, match=said):
            async with TestApp(app) as t:
                await t.send(both.named("a"), "x")
        return
    async with TestApp(app):
        if send == "cast":
            with pytest.raises(ProgramError, match="reads several topics"):
                await echo.cast("x")
        elif send == "send":
            with pytest.raises(ProgramError, match=said):
                await both.send("x")
        else:
            with pytest.raises(ProgramError, match=said):
                await both.send_many(["x"])


async def test_co_partitioned() -> None:
    """Topics that are read as one have one number of partitions; others are an error before the first event."""
    app = ms.App("shop", partitions=3)
    both = app.topic("a", "b", value=str)

    @app.agent(both)
    async def read(stream: ms.Stream[str]) -> None:
        async for _ in stream:
            pass

    test = TestApp(app)
    async with test as t:
        assert t.worker.plan.counts == [3]
    other = ms.App("shop", partitions=3)
    other.topic("b", value=str, partitions=2)
    grown = other.topic("a", "b", value=str)
    other.agent(grown)(read.function)
    with pytest.raises(PartitionCountError, match="not co-partitioned: a has 3, b has 2"):
        async with TestApp(other):
            pass


async def test_declared_alone_as_well() -> None:
    """A topic may be declared by itself, for sending, and be read with others under another description."""
    app = ms.App("shop")
    both = app.topic("a", "b", value=str)
    alone = app.topic("a", value=str, key_from=lambda value: value[0])
    seen: list[str] = []

    @app.agent(both)
    async def read(stream: ms.Stream[str]) -> None:
        async for value in stream:
            seen.append(value)  # noqa: PERF401 - a stream is no list

    async with TestApp(app) as t:
        await t.send(alone, "xyz")
        await t.send(both.named("b"), "uvw")
        assert seen == ["xyz", "uvw"]
        assert t.records(alone) == [("x", "xyz")]
    with pytest.raises(TopologyError, match="topic 'a' is declared twice"):
        app.topic("a", value=str)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ((), {}, "neither"),
        (("a",), {"pattern": "b"}, "not both"),
        (("a", "a"), {}, "'a' is there twice"),
        (("a", "b/c"), {}, "'b/c': a name has"),
        ((), {"pattern": "("}, "is not a regular expression"),
        ((), {"pattern": "x", "retention": "1d"}, "are there already"),
        (("a",), {"max_wait": "-1s"}, "may not be below 0"),
        (("a",), {"idle_timeout": 0}, "has to be above"),
        (("a",), {"idle_timeout": "soon"}, "is not a duration"),
    ],
)
def test_wrong_declarations(names: tuple[str, ...], options: Any, said: str) -> None:
    """What contradicts itself is an error where it is declared."""
    app = ms.App("shop")
    with pytest.raises(ConfigurationError, match=said):
        app.topic(*names, **options)


def test_where_several_make_no_sense() -> None:
    """A table is read from one topic, and results go to one."""
    app = ms.App("shop")
    both = app.topic("a", "b", value=str)
    with pytest.raises(TopologyError, match="a table is read from one"):
        app.table("t", topic=both)
    with pytest.raises(TopologyError, match="sink 'a, b' stands for several topics"):

        @app.agent(sink=[both])
        async def send(stream: ms.Stream[str]) -> None:
            async for _ in stream:
                pass

    with pytest.raises(ConfigurationError, match="'a, b' does not include 'c'"):
        both.named("c")
    assert app.topic("alone").named("alone") is app.topics["alone"]


async def test_like() -> None:
    """A table may have the partitions of topics that are read as one."""
    app = ms.App("shop")
    both = app.topic("a", "b", value=str, partitions=2)
    other = app.topic("c", value=str, partitions=5)
    counts = app.table("counts", key=str, value=int, default=0, like=both)

    @app.agent(both)
    async def count(stream: ms.Stream[str]) -> None:
        async for event in stream.events():
            counts[event.key] += 1

    @app.agent(other)
    async def ignore(stream: ms.Stream[str]) -> None:
        async for _ in stream:
            pass

    async with TestApp(app) as t:
        await t.send(both.named("b"), "x", key="k")
        assert t.table(counts) == {"k": 1}


async def test_steps_over_several() -> None:
    """Declared streams filter and regroup several topics as if they were one."""
    app = ms.App("shop")
    orders = app.topic("eu", "us", value=Order, key_from="account")
    large = app.table("large", key=str, value=int, default=0)

    @app.agent(app.stream(orders).filter(lambda order: order.amount > 1).group_by("account"))
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            large[order.account] += 1

    async with TestApp(app) as t:
        await t.send(orders.named("eu"), Order("ada", 1.0))
        await t.send(orders.named("us"), Order("ada", 2.0))
        assert t.table(large) == {"ada": 1}


async def test_streams_over_a_pattern() -> None:
    """Operators take what a pattern matches, also later; what they keep has a name of its own."""
    app = ms.App("shop", partitions=2)
    orders = app.topic(pattern="orders-.*", value=Order, key_from="account")
    app.stream(orders).group_by().sum("amount", name="sums")
    totals = app.stream(orders).group_by("account", name="by-account").sum("amount", name="totals")
    seen = app.table("seen", key=str, value=int, default=0)

    @app.agent(app.stream(orders).filter(lambda order: order.amount > 1))
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen[order.account] += 1

    async with TestApp(app) as t:
        for region in ("eu", "us"):
            await t.create_topic(f"orders-{region}")
            await t.advance("5s")
            await t.send(orders.named(f"orders-{region}"), Order("ada", 1.0))
            await t.send(orders.named(f"orders-{region}"), Order("ada", 2.0))
        assert t.table(totals) == {"ada": 6.0}
        assert t.table(app.tables["sums"].table) == {"ada": 6.0}
        assert t.table(seen) == {"ada": 2}


def test_streams_to_several() -> None:
    """A stream goes to one topic, and what it keeps has a name."""
    app = ms.App("shop")
    orders = app.topic(pattern="orders-.*", value=Order)
    with pytest.raises(TopologyError, match=r"comes from a pattern.*group_by\(\.\.\., name="):
        app.stream(orders).group_by("account")
    both = app.topic("a", "b", value=str)
    with pytest.raises(TopologyError, match="'c' is to go to 'a, b'"):
        app.stream(app.topic("c", value=str)).to(both)

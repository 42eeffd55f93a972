"""Agents: what they read, what they send, and the calls that reach them."""

# ruff: noqa: PERF401  # a stream is no list, and an app ends with its block

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator  # noqa: TC003  # agents' annotations are read at run time
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import AskError, ConfigurationError, ProgramError, TopologyError
from millstream.testing import TestApp
from tests.kit import Order, counting

if TYPE_CHECKING:
    from collections.abc import Awaitable


def doubling(**settings: Any) -> tuple[ms.App, ms.Agent[int, int]]:
    app = ms.App("maths", **settings)

    @app.agent
    async def double(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number < 0:
                raise ValueError("negative")
            yield number * 2

    return app, double


async def while_running(t: TestApp, call: Awaitable[Any]) -> Any:
    """What ``call`` gives, with the app at work."""
    task = asyncio.ensure_future(call)
    for _ in range(100):
        if task.done():
            break
        await t.settle()
    return await task


async def test_totals() -> None:
    """An agent updates a table for each record, and what it wrote is committed."""
    app, orders, totals = counting()
    async with TestApp(app) as t:
        await t.send_many(orders, [Order("ada", 5.0), Order("bob", 1.0), Order("ada", 2.0)])
        assert t.table(totals) == {"ada": 7.0, "bob": 1.0}


async def test_crash_and_rebalance() -> None:
    """Totals survive a crash, the loss of the disk, and a rebalance, each record counted once."""
    app, orders, totals = counting()
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 5.0))
        await t.crash()
        await t.send(orders, Order("ada", 1.0))
        await t.crash(lose_state=True)
        await t.rebalance()
        await t.send(orders, Order("ada", 2.0))
        assert t.table(totals) == {"ada": 8.0}


async def test_two_agents_on_one_topic() -> None:
    """Two agents on one topic each get every record, as objects of their own."""
    app = ms.App("two")
    orders = app.topic("orders", value=Order, key_from="account")
    seen: list[tuple[str, Order]] = []

    @app.agent(orders)
    async def first(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen.append(("first", order))
            order.amount = -1.0

    @app.agent(orders)
    async def second(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen.append(("second", order))

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 5.0))
    assert sorted((name, order.amount) for name, order in seen) == [
        ("first", -1.0),
        ("second", 5.0),
    ]


async def test_several_sources() -> None:
    """An agent over two topics takes the record whose partition's head is oldest first."""
    app = ms.App("both", partitions=1)
    left = app.topic("left", value=str)
    right = app.topic("right", value=str)
    seen: list[str] = []

    @app.agent(left, right)
    async def merge(stream: ms.Stream[str]) -> None:
        async for value in stream:
            seen.append(value)

    async with TestApp(app) as t:
        for topic, value, at in [(left, "a", 1), (left, "d", 4), (right, "b", 2), (right, "c", 3)]:
            await topic.send(value, timestamp=at)
        await t.settle()
        assert seen == ["a", "b", "c", "d"]


async def test_own_topic() -> None:
    """An agent without sources has a topic of its own, typed by its annotation, for `cast`."""
    app = ms.App("own")
    seen: list[Order] = []

    @app.agent
    async def note(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order)

    async with TestApp(app) as t:
        position = await note.cast(Order("ada", 1.0), key="ada")
        await t.settle()
        assert position is not None
        assert position.topic == "own-note"
        assert seen == [Order("ada", 1.0)]


async def test_cast_joins_the_event() -> None:
    """A cast inside an event is part of that event: undone with it."""
    app = ms.App("cast", on_error="skip")
    orders = app.topic("orders", value=Order, key_from="account")
    seen: list[float] = []

    @app.agent
    async def note(stream: ms.Stream[float]) -> None:
        async for amount in stream:
            seen.append(amount)

    @app.agent(orders)
    async def forward(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            assert await note.cast(order.amount) is None
            if order.amount < 0:
                raise ValueError("negative")

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("ada", x) for x in (1.0, -2.0, 3.0)])
        assert sorted(seen) == [1.0, 3.0]


async def test_concurrency() -> None:
    """With a concurrency events of different keys are in progress at once, those of one key in order."""
    app = ms.App("many", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    done: list[float] = []

    @app.agent(orders, concurrency=10)
    async def slow(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += order.amount
            await app.clock.sleep(1)
            done.append(order.amount)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("ada", 1.0), Order("ada", 2.0), Order("bob", 3.0)])
        assert done == []
        assert t.table(totals) == {}
        await t.advance("1s")
        assert done == [1.0, 3.0]
        assert t.table(totals) == {"ada": 1.0}  # bob's is behind an open one
        await t.advance("1s")
        assert done == [1.0, 3.0, 2.0]
        assert t.table(totals) == {"ada": 3.0, "bob": 3.0}


async def test_unfinished_events_are_repeated_after_a_crash() -> None:
    """A crash in the middle of an event repeats that event, and no other one."""
    app = ms.App("middle", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders, concurrency=2)
    async def slow(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += order.amount
            if order.account == "slow":
                await app.clock.sleep(10)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("quick", 1.0), Order("slow", 1.0), Order("quick", 1.0)])
        await t.crash()
        assert t.table(totals).get("slow") is None
        await t.advance("10s")
        assert t.table(totals) == {"quick": 2.0, "slow": 1.0}


async def test_ordered_by() -> None:
    """``ordered_by`` takes the place of the key: never two events with one of it at once."""
    app = ms.App("ordered", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    running: list[str] = []
    most = 0

    @app.agent(orders, concurrency=10, ordered_by=lambda order: order.amount)
    async def slow(stream: ms.Stream[Order]) -> None:
        nonlocal most
        async for order in stream:
            running.append(order.account)
            most = max(most, len(running))
            await app.clock.sleep(1)
            running.remove(order.account)

    async with TestApp(app) as t:
        await t.send_many(orders, [Order(name, 1.0) for name in "abc"])
        assert running == ["a"]
        await t.advance("3s")
    assert most == 1


async def test_ordered_by_a_field() -> None:
    """``ordered_by`` may name a field of the value."""
    app = ms.App("ordered", partitions=1)
    orders = app.topic("orders", value=Order)
    order_of: list[str] = []

    @app.agent(orders, concurrency=3, ordered_by="account")
    async def slow(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            await app.clock.sleep(10 - order.amount)
            order_of.append(f"{order.account}{order.amount:g}")

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("a", 1), Order("a", 5), Order("b", 8)])
        await t.advance("15s")
    assert order_of == ["b8", "a1", "a5"]


@pytest.mark.parametrize("concurrency", [0, -1])
def test_concurrency_below_one(concurrency: int) -> None:
    """A concurrency below 1 is refused at the declaration."""
    app = ms.App("none")

    async def nothing(stream: ms.Stream[int]) -> None:
        pass

    with pytest.raises(ConfigurationError, match=r"'nothing': concurrency is -?\d, and has to be"):
        app.agent(concurrency=concurrency)(nothing)


async def test_sinks() -> None:
    """What a generator yields goes to topics, agents, and functions of both kinds."""
    app = ms.App("sinks")
    orders = app.topic("orders", value=Order, key_from="account")
    amounts = app.topic("amounts", value=float)
    seen: list[tuple[str, float]] = []

    @app.agent
    async def note(stream: ms.Stream[float]) -> None:
        async for amount in stream:
            seen.append(("agent", amount))

    async def later(amount: float) -> None:
        seen.append(("async", amount))

    def now(amount: float) -> None:
        seen.append(("plain", amount))

    @app.agent(orders, sink=[amounts, note, later, now])
    async def split(stream: ms.Stream[Order]) -> AsyncIterator[float]:
        async for order in stream:
            yield order.amount
            yield -order.amount

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 2.0))
        assert sorted(t.sent(amounts)) == [-2.0, 2.0]
        assert sorted(seen) == [
            (kind, amount) for kind in ("agent", "async", "plain") for amount in (-2.0, 2.0)
        ]


async def test_sink_alone_and_added() -> None:
    """A single sink needs no list, and `add_sink` adds another one."""
    app = ms.App("sinks")
    one = app.topic("one", value=int)
    two = app.topic("two", value=int)

    @app.agent(sink=one)
    async def count(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield number

    count.add_sink(two)
    async with TestApp(app) as t:
        await count.cast(1)
        await t.settle()
        assert (t.sent(one), t.sent(two)) == ([1], [1])


async def test_ask() -> None:
    """Asking gives what the agent yields for the value."""
    app, double = doubling()
    async with TestApp(app) as t:
        assert await while_running(t, double.ask(21, key="k")) == 42


async def test_ask_many() -> None:
    """`map` gives results as they come, `join` in the order of the values."""
    app, double = doubling()

    async def mapped() -> list[int]:
        return [result async for result in double.map([1, 2, 3])]

    async with TestApp(app) as t:
        assert sorted(await while_running(t, mapped())) == [2, 4, 6]
        assert await while_running(t, double.join([3, 1, 2])) == [6, 2, 4]


@pytest.mark.parametrize("on_error", ["skip", "dlq"])
async def test_ask_that_fails(on_error: str) -> None:
    """Whoever asks hears of the agent's failure at once, and the others get their answers."""
    app, double = doubling(on_error=on_error)

    async def both() -> list[Any]:
        return list(await asyncio.gather(double.ask(-1), double.ask(1), return_exceptions=True))

    async def mapped() -> list[int]:
        return [result async for result in double.map([1, -1])]

    async with TestApp(app) as t:
        failed, answered = await while_running(t, both())
        assert isinstance(failed, AskError)
        assert str(failed) == "the agent failed: ValueError: negative"
        assert answered == 2
        for call in (mapped(), double.join([-1, 1])):
            with pytest.raises(AskError, match="negative"):
                await while_running(t, call)


async def test_ask_without_an_answer() -> None:
    """Without an answer in time asking fails, and says what to look for."""
    app = ms.App("silent", reply_timeout="7s")

    @app.agent
    async def silent(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number < 0:
                yield number

    async with TestApp(app) as t:
        asked = asyncio.ensure_future(silent.ask(1))
        hurried = asyncio.ensure_future(silent.ask(1, timeout="2s"))
        await t.settle()
        await t.advance("3s")
        with pytest.raises(
            AskError, match=r"no reply through 'silent-silent' within 2 s: is a worker"
        ):
            await hurried
        assert not asked.done()
        await t.advance("5s")
        with pytest.raises(AskError, match="within 7 s"):
            await asked


async def test_ask_of_a_plain_function() -> None:
    """Asking an agent that yields nothing is an error at once."""
    app = ms.App("plain")

    @app.agent
    async def plain(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            pass

    async with TestApp(app):
        with pytest.raises(ProgramError, match="agent 'plain' yields nothing"):
            await plain.ask(1)


async def test_ask_inside_an_event() -> None:
    """An agent may ask another one; after a write of the same event that is an error."""
    app, double = doubling(on_error="skip")
    totals = app.table("totals", key=str, value=int, default=0)
    orders = app.topic("orders", value=Order, key_from="account")
    errors: list[str] = []

    @app.agent(orders)
    async def order(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            if order.account == "eve":
                totals[order.account] += 1
            try:
                answer = await double.ask(int(order.amount))
            except AskError as exc:
                errors.append(str(exc))
                raise
            totals[order.account] += answer

    async with TestApp(app) as t:
        for account in ("ada", "eve"):
            await orders.send(Order(account, 4.0))
            for _ in range(20):
                await t.settle()
        assert t.table(totals) == {"ada": 8}
    (error,) = errors
    assert error.startswith(
        "agent 'double' is asked after a table write or a send in the same event"
    )


async def test_ask_of_an_agent_over_several_topics() -> None:
    """An agent that reads several topics has no topic to send to, and says so."""
    app = ms.App("both")
    one, two = app.topic("one", value=int), app.topic("two", value=int)

    @app.agent(one, two)
    async def both(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            pass

    with pytest.raises(ProgramError, match="send to one of its topics"):
        await both.cast(1)


async def test_calling_the_agent() -> None:
    """The agent object can be called like its function, to drive it by hand."""
    _, double = doubling()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert [result async for result in double(numbers())] == [2, 4]
    assert (double.name, repr(double)) == ("double", "<Agent 'double'>")


async def test_agent_that_returns() -> None:
    """An agent that returns after an event starts again with the next one."""
    app = ms.App("again", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    starts = 0

    @app.agent(orders)
    async def one(stream: ms.Stream[Order]) -> None:
        nonlocal starts
        starts += 1
        async for order in stream:
            totals[order.account] += order.amount
            break

    async with TestApp(app) as t:
        await t.send_many(orders, [Order("ada", 1.0)] * 3)
        assert t.table(totals) == {"ada": 3.0}
    assert starts == 4


def test_names() -> None:
    """Two agents of one name are refused, and ``name=`` is the way out."""
    app = ms.App("names")
    topic = app.topic("topic", value=int)

    async def count(stream: ms.Stream[int]) -> None:
        pass

    app.agent(topic)(count)
    with pytest.raises(TopologyError, match="two agents are named 'count': give one of them name="):
        app.agent(topic)(count)
    assert app.agent(topic, name="count-2")(count).name == "count-2"


async def test_sends_of_an_event_are_encoded_at_the_call() -> None:
    """What is sent is what the object was at the call, whatever happens to it later."""
    app = ms.App("early", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    out = app.topic("out", value=Order, key_from="account")

    @app.agent(orders)
    async def forward(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            await out.send(order)
            order.amount = 99.0

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        assert t.sent(out) == [Order("ada", 1.0)]

"""The test kit: the real engine in memory, with a clock that is moved by hand."""

# ruff: noqa: PT012  # a stream is no list, and an app ends with its block

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator  # noqa: TC003 - agents' annotations are read at run time
from typing import TYPE_CHECKING, Any, Literal

import pytest

import millstream as ms
from millstream.clock import SystemClock
from millstream.errors import AgentError, AskError, ConfigurationError, ProgramError
from millstream.records import Position
from millstream.testing import TestApp
from tests.kit import Order, counting

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_fixture(millstream_test: Callable[..., TestApp]) -> None:
    """The fixture of the plug-in makes a `TestApp`."""
    app, orders, totals = counting()
    async with millstream_test(app) as t:
        assert isinstance(t, TestApp)
        assert t is not None
        position = await t.send(orders, Order("ada", 5.0), timestamp=5, headers={"a": "b"})
        assert isinstance(position, Position)
        assert t.table(totals)["ada"] == 5.0


async def test_send_returns_when_all_is_done() -> None:
    """When `send` returns, what follows from the record is processed and committed, over several agents."""
    app, orders, _ = counting()
    middle, out = app.topic("middle", value=Order), app.topic("out", value=Order)

    @app.agent(orders, sink=middle)
    async def first(stream: ms.Stream[Order]) -> Any:
        async for order in stream:
            yield order

    @app.agent(middle, sink=out)
    async def second(stream: ms.Stream[Order]) -> Any:
        async for order in stream:
            yield order

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 5.0))
        assert t.sent(out) == [Order("ada", 5.0)]
        await t.crash()
        assert t.sent(out) == [Order("ada", 5.0)]


async def test_no_place_on_disk() -> None:
    """A test needs none, whatever the app's log is, even one without a path."""
    app = ms.App("shop", broker="local://", partitions=1)
    numbers = app.topic("numbers", value=int)
    async with TestApp(app) as t:
        assert (await t.send(numbers, 1)).offset == 0


async def test_time_stands_still() -> None:
    """The app's clock is the test's, starts where it is told, and is given back."""
    app, _, _ = counting()
    async with TestApp(app, start=1_000_000) as t:
        assert app.clock is t.clock
        await asyncio.sleep(0)
        assert t.clock.now() == 1_000_000
        await t.advance("5s")
        assert t.clock.now() == 1_005_000
        await t.advance(stream="1h")
        assert t.clock.now() == 1_005_000
    assert isinstance(app.clock, SystemClock)


async def test_advance_stops_at_each_moment() -> None:
    """Whoever sleeps sees the time for which it waited, one after the other."""
    app, _, _ = counting()
    seen: list[int] = []

    @app.task
    async def sleeper() -> None:
        for _ in range(3):
            await app.clock.sleep(10)
            seen.append((app.clock.now() - start) // 1_000)

    async with TestApp(app) as t:
        start = t.clock.now()
        await t.advance("1m")
    assert seen == [10, 20, 30]


async def test_committed_table() -> None:
    """A committed table can be looked at like a mapping, over all shards."""
    app, orders, totals = counting()
    async with TestApp(app) as t:
        table = t.table(totals)
        assert (len(table), list(table), repr(table)) == (0, [], "{}")
        await t.send_many(orders, [Order(name, 1.0) for name in "abc"])
        assert sorted(table) == ["a", "b", "c"]
        assert table == dict.fromkeys("abc", 1.0)
        assert table != {"a": 1.0}
        assert "a" in table
        assert "z" not in table
        assert (table.get("z"), table.get("z", 5)) == (None, 5)
        assert sorted(table.items()) == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
        with pytest.raises(KeyError, match="z"):
            table["z"]


async def test_sent() -> None:
    """What is in a topic: values, or pairs with their keys."""
    app = ms.App("sent", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        await t.send(orders, None, key="bob")
        assert t.sent(orders) == [Order("ada", 1.0), None]
        assert t.records(orders) == [("ada", Order("ada", 1.0)), ("bob", None)]


async def test_records() -> None:
    """A record equals the pair of its key and value, and has the rest of it as attributes."""
    app = ms.App("sent", partitions=2)
    orders = app.topic("orders", value=Order, key_from="account")
    async with TestApp(app) as t:
        sent = await t.send(orders, Order("ada", 1.0), timestamp=5, headers={"a": "b"})
        (record,) = t.records(orders)
        key, value = record
        assert (record.key, record.value) == (key, value) == ("ada", Order("ada", 1.0))
        assert record.headers == [("a", b"b")]
        assert record.timestamp == 5
        assert Position(record.topic, record.partition, record.offset) == sent
        assert t.records(orders) == [("ada", Order("ada", 1.0))]
        unknown = ms.App("other").topic("elsewhere")
        with pytest.raises(ConfigurationError, match="no topic 'elsewhere' in the log"):
            t.records(unknown)


async def test_ask() -> None:
    """A question is answered without further ado, and what follows from it is committed by then."""
    app = ms.App("ask", partitions=1)
    out = app.topic("out", value=int)
    asked = app.table("asked", key=str, value=int, default=0)

    @app.agent(sink=out)
    async def double(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for key, number in stream.items():
            asked[key] += 1
            yield number * 2

    @app.agent
    async def outer(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield await double.ask(number, key="inner") + 1

    async with TestApp(app) as t:
        assert await double.ask(21, key="a") == 42
        assert t.sent(out) == [42]
        assert t.table(asked) == {"a": 1}
        assert await double.join([1, 2, 3], key="b") == [2, 4, 6]
        assert sorted([result async for result in double.map([4, 5], key="c")]) == [8, 10]
        assert await outer.ask(10, key="d") == 21
        await t.crash()
        assert await double.ask(1, key="a") == 2
        assert t.table(asked)["a"] == 2


async def test_ask_and_move_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that sleeps answers when the clock has been moved, and a question is given up when its time is over."""
    monkeypatch.setattr("millstream.worker._worker.STOP_TIMEOUT_S", 0.01)  # the last one stays open
    app = ms.App("ask", partitions=1)

    @app.agent
    async def slow(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            await app.clock.sleep(number)
            yield number

    async with TestApp(app) as t:
        asking = asyncio.create_task(slow.ask(10, key="a"))
        await t.advance("9s")
        assert not asking.done()
        await t.advance("1s")
        assert await asking == 10
        asking = asyncio.create_task(slow.ask(10, key="a", timeout="5s"))
        await t.advance("6s")
        with pytest.raises(AskError, match=r"no reply through 'ask-slow' within 5 s"):
            await asking


async def test_ask_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no answer can come a question says so, and does not wait for ever."""
    monkeypatch.setattr("millstream.testing._test_app.REAL_WAIT_S", 0.05)
    app = ms.App("ask", partitions=1, on_error="skip")

    @app.agent
    async def picky(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number < 0:
                raise ValueError("below zero")
            if number:
                yield number

    async with TestApp(app):
        with pytest.raises(AskError, match="none will come while the clock stands still"):
            await picky.ask(0, key="a")
        with pytest.raises(AskError, match="ValueError: below zero"):
            await picky.ask(-1, key="a")
        assert await picky.ask(1, key="a") == 1


async def test_ask_that_stops_the_worker() -> None:
    """What stops the worker comes out of the question, and out of every use after it."""
    app = ms.App("ask", partitions=1)

    @app.agent
    async def wrong(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            yield 1 // number

    with pytest.raises(AgentError, match="ZeroDivisionError"):
        async with TestApp(app) as t:
            with pytest.raises(AgentError, match="ZeroDivisionError"):
                await wrong.ask(0, key="a")
            await t.settle()


async def test_not_entered() -> None:
    """Outside of its block nothing works, and the message says what to do."""
    app, orders, _ = counting()
    with pytest.raises(ProgramError, match="use it inside `async with TestApp"):
        TestApp(app).sent(orders)


async def test_stopped_worker() -> None:
    """What stops the worker comes out of the call that met it, and of the block."""
    app, orders, _ = counting()
    after: list[str] = []
    with pytest.raises(AgentError, match="negative"):
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", -1.0))
            after.append("not reached")
    assert after == []


@pytest.mark.parametrize("scope", ["shard", "worker", "leader"])
@pytest.mark.parametrize("timers", [1, 2])
async def test_failing_timers(scope: Literal["shard", "worker", "leader"], timers: int) -> None:
    """They come out of the call that moved the clock, as the error of one timer, also where several fail at once."""
    app, _, _ = counting()
    for number in range(timers):

        @app.timer(60, name=f"wrong-{number}", scope=scope)
        async def wrong() -> None:
            raise ValueError("at once")

    async with TestApp(app) as t:
        with pytest.raises(AgentError, match="at once"):
            await t.advance("2m")


async def test_error_at_the_start() -> None:
    """What stops the worker before the first event comes out of the block's beginning, with the clock given back."""
    app = ms.App("early")
    topic = app.topic("t", value=int)

    @app.agent(topic)
    async def wrong(stream: ms.Stream[int]) -> None:
        raise ValueError("at once")

    with pytest.raises(AgentError, match="at once"):
        async with TestApp(app):
            raise AssertionError
    assert isinstance(app.clock, SystemClock)
    assert app.runtime is None


async def test_failed_assertion_with_an_event_in_progress() -> None:
    """A test that fails while an event waits ends, and shows its own error."""
    app = ms.App("waits")
    topic = app.topic("t", value=int)

    @app.agent(topic)
    async def wait(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            await app.clock.sleep(1_000_000)

    with pytest.raises(ZeroDivisionError):
        async with TestApp(app) as t:
            await t.send(topic, 1)
            raise ZeroDivisionError


async def test_crash_loses_what_is_not_committed() -> None:
    """A crash loses memory and keeps log and state; with ``lose_state`` it loses the state as well."""
    app = ms.App("crash", partitions=1)
    topic = app.topic("t", value=int)
    sums = app.table("sums", key=str, value=int, default=0)
    starts: list[str] = []

    @app.agent(topic)
    async def add(stream: ms.Stream[int]) -> None:
        starts.append("start")
        async for number in stream:
            sums["all"] += number

    async with TestApp(app) as t:
        await t.send(topic, 1)
        await t.crash()
        await t.crash(lose_state=True)
        await t.send(topic, 2)
        assert t.table(sums) == {"all": 3}
    assert starts == ["start"] * 3


async def test_send_inside_an_agent() -> None:
    """The kit's `send` is for tests."""
    app = ms.App("inside", on_error="skip")
    topic = app.topic("t", value=int)
    errors: list[Exception] = []

    @app.agent(topic)
    async def wrong(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            try:
                await t.send(topic, 1)
            except ProgramError as exc:
                errors.append(exc)
                raise

    async with TestApp(app) as t:
        await t.send(topic, 1)
    assert "is for tests, not for agents" in str(errors[0])


async def test_waits_for_threads() -> None:
    """An event that waits for a thread is waited for, also when another one waits for the clock."""
    app = ms.App("thread")
    topic, slow = app.topic("t", value=int), app.topic("slow", value=int)
    done: list[int] = []

    @app.agent(slow)
    async def sleep(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            await app.clock.sleep(20)

    @app.agent(topic)
    async def work(stream: ms.Stream[int]) -> None:
        async for number in stream:
            held = threading.Event()
            threading.Timer(0.7, held.set).start()
            await asyncio.to_thread(held.wait)
            done.append(number)

    async with TestApp(app) as t:
        await t.send(slow, 1)
        await t.send(topic, 21)
        assert done == [21]
        await t.advance("20s")

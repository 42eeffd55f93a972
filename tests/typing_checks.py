"""Read by type checkers, not run: what a user's editor infers. See `tests/test_typing.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator  # noqa: TC003  # agents' annotations are read at run time
from datetime import datetime
from typing import Any, assert_type
from uuid import UUID

import msgspec

import millstream as ms
from millstream.records import Position
from millstream.tables import View

app = ms.App("shop")


class Order(msgspec.Struct, tag=True):
    account: str
    amount: float
    at: datetime


class Refund(msgspec.Struct, tag=True):
    account: str


# topics: the value's type, and str keys unless they are declared
orders = app.topic("orders", value=Order, key_from="account", timestamp="at")
refunds = app.topic("refunds", value=Refund, key=UUID)
maybe = app.topic("maybe", value=Order | None)
either = app.topic("either", value=Order | Refund)
lists = app.topic("lists", value=list[int])
anything = app.topic("anything", key=bytes)
assert_type(orders, ms.Topic[Order])
assert_type(orders, ms.Topic[Order, str])
assert_type(refunds, ms.Topic[Refund, UUID])
assert_type(maybe, ms.Topic[Order | None])
assert_type(either, ms.Topic[Order | Refund])
assert_type(lists, ms.Topic[list[int]])
assert_type(anything, ms.Topic[Any, bytes])
assert_type(app.topic("untyped"), ms.Topic[Any])
several = app.topic("several-a", "several-b", value=Order, max_wait="1s")
assert_type(several, ms.Topic[Order])
assert_type(several.named("several-a"), ms.Topic[Order])
matching = app.topic(pattern="matching-.*", key=int, value=Order | None, idle_timeout="1m")
assert_type(matching, ms.Topic[Order | None, int])
assert_type(app.topic("several-c", "several-d"), ms.Topic[Any])

# tables
totals = app.table("totals", key=str, value=float, default=0.0)
assert_type(totals, ms.Table[str, float])
assert_type(app.table("counts", key=str, value=int, default=0), ms.Table[str, int])
assert_type(app.table("recent", key=str, value=list[int], default=list), ms.Table[str, list[int]])
assert_type(app.table("pairs", key=tuple[str, int], value=Order), ms.Table[tuple[str, int], Order])
assert_type(app.table("last", value=Order | None), ms.Table[str, Order | None])
assert_type(app.table("by-id", topic=refunds), ms.Table[UUID, Refund])
assert_type(app.table("plain"), ms.Table[str, Any])
assert_type(app.global_table("rates", key=str, value=float), ms.Table[str, float])
assert_type(app.global_table("refund-table", topic=refunds), ms.Table[UUID, Refund])
assert_type(app.set_table("tags", key=int, value=str), ms.SetTable[int, str])
assert_type(app.set_table("words"), ms.SetTable[str, str])
assert_type(app.table("made", value=dict[str, int], default=dict), ms.Table[str, dict[str, int]])
assert_type(app.table("lazy", value=list[str], default=lambda: []), ms.Table[str, list[str]])
assert_type(app.table("none", value=int | None, default=None), ms.Table[str, int | None])
assert_type(app.table("from", topic=maybe), ms.Table[str, Order | None])
hourly = app.table("hourly", value=int, default=0).tumbling("1h", idle_timeout="1m")
assert_type(hourly, ms.WindowedTable[str, int])
visits = app.table("visits", key=UUID, value=list[str], default=list).session("5m")
assert_type(visits, ms.WindowedTable[UUID, list[str]])


@hourly.on_close
async def closed(key: str, window: ms.Window, value: int) -> None:
    assert_type(window.start, int)


@app.on_state
def note_state(state: str) -> None:
    pass


assert_type(note_state("running"), None)


# agents: functions, generators, and their streams
@app.agent(orders)
async def count(stream: ms.Stream[Order]) -> None:
    assert_type(stream, ms.Stream[Order])
    async for order in stream:
        assert_type(order, Order)
        totals[order.account] += order.amount
        assert_type(totals[order.account], float)
        assert_type(totals.get(order.account), float | None)
        assert_type(totals.get(order.account, 0.0), float)
        assert_type(totals.get(order.account, "none"), float | str)
        assert_type(next(totals.items(prefix="a", reverse=True)), tuple[str, float])
        assert_type(next(reversed(totals)), str)
        hourly[order.account] += 1
        assert_type(hourly[order.account].current(), int)
        assert_type(next(hourly[order.account].windows()), tuple[ms.Window, int])
        assert_type(next(hourly.items()), tuple[tuple[str, ms.Window], int])
    async for event in stream.events():
        assert_type(event.value, Order)
        assert_type(event.timestamp, int)
    async for key, order in stream.items():
        assert_type(key, Any)
        assert_type(order, Order)
    async for batch in stream.take(10, within="1s"):
        assert_type(batch, list[Order])
    async for number, amount in stream.map(lambda order: order.amount).enumerate():
        assert_type(number, int)
        assert_type(amount, float)


@app.agent(refunds)
async def keyed(stream: ms.Stream[Refund, UUID]) -> None:
    async for key, refund in stream.filter(bool).items():
        assert_type(key, UUID)
        assert_type(refund, Refund)


@app.agent(orders, sink=[refunds], name="refunder", concurrency=3)
async def refund_all(stream: ms.Stream[Order]) -> AsyncIterator[Refund]:
    async for order in stream:
        yield Refund(order.account)


@app.agent(orders, refunds)
async def both(stream: ms.Stream[Order | Refund]) -> None:
    async for value in stream:
        assert_type(value, Order | Refund)


class A(msgspec.Struct, tag=True):
    pass


class B(msgspec.Struct, tag=True):
    pass


class C(msgspec.Struct, tag=True):
    pass


a, b = app.topic("a", value=A), app.topic("b", value=B)
c, d = app.topic("c", value=C | None), app.topic("d", value=Order)
e = app.topic("e", value=Refund)


@app.agent(several)
async def over_several(stream: ms.Stream[Order]) -> None:
    async for order in stream:
        assert_type(order, Order)


@app.agent(matching)
async def over_matching(stream: ms.Stream[Order | None, int]) -> None:
    async for key, order in stream.items():
        assert_type(key, int)
        assert_type(order, Order | None)


@app.agent(a, b, c)
async def three(stream: ms.Stream[A | B | C | None]) -> None:
    async for value in stream:
        assert_type(value, A | B | C | None)


@app.agent(a, b, c, d, name="quartet")
async def four(stream: ms.Stream[A | B | C | Order | None]) -> AsyncIterator[Order | None]:
    async for value in stream:
        assert_type(value, A | B | C | Order | None)
        yield value if isinstance(value, Order) else None


@app.agent(a, app.stream(b).filter(bool), c, d, e)
async def five(stream: ms.Stream[A | B | C | Order | Refund | None]) -> None:
    async for value in stream:
        assert_type(value, A | B | C | Order | Refund | None)


@app.agent(a, b, c, d, e, orders)
async def six(stream: ms.Stream[Any]) -> None:
    async for value in stream:
        assert_type(value, Any)


@app.agent
async def find(stream: ms.Stream[str]) -> AsyncIterator[Order | None]:
    async for _ in stream:
        yield None


@app.agent
async def many(stream: ms.Stream[list[int]]) -> AsyncIterator[dict[str, list[int]]]:
    async for numbers in stream:
        yield {"numbers": numbers}


@app.agent
async def double(stream: ms.Stream[int]) -> AsyncIterator[int]:
    async for number in stream:
        yield number * 2


@app.agent(name="halved")
async def half(stream: ms.Stream[int]) -> AsyncIterator[float]:
    async for number in stream:
        yield number / 2


@app.agent(app.stream(orders).filter(lambda order: order.amount > 0).group_by("account"))
async def grouped(stream: ms.Stream[Order]) -> None:
    async for order in stream:
        assert_type(order, Order)


@app.agent(app.stream(orders).map(lambda order: order.amount))
async def amounts(stream: ms.Stream[float]) -> None:
    async for amount in stream:
        assert_type(amount, float)


assert_type(count, ms.Agent[Order, None])
assert_type(refund_all, ms.Agent[Order, Refund])
assert_type(double, ms.Agent[int, int])
assert_type(half, ms.Agent[int, float])
assert_type(four, ms.Agent[A | B | C | Order | None, Order | None])
assert_type(three, ms.Agent[A | B | C | None, None])


async def asks() -> None:
    assert_type(await double.ask(21), int)
    assert_type(await half.ask(21), float)
    assert_type(await double.join([1, 2]), list[int])
    async for result in half.map([1, 2]):
        assert_type(result, float)
    assert_type(await find.ask("ada"), Order | None)
    assert_type(await many.ask([1]), dict[str, list[int]])
    assert_type(await count.ask(Order("ada", 1.0, datetime.now())), None)
    assert_type(await several.named("several-a").send(None, key="ada"), Position | None)
    await orders.send(Order("ada", 1.0, datetime.now()), key="ada")


async def views() -> None:
    view = totals.view(stale="5s")
    assert_type(view, View[str, float])
    assert_type(await view.get("ada"), float | None)
    assert_type(await view.get("ada", 0.0), float)
    async for key, amount in view.items(prefix="a", reverse=True):
        assert_type(key, str)
        assert_type(amount, float)
    async for change in view.changes("ada"):
        assert_type(change.value, float | None)
    async for window, number in hourly.view().windows("ada"):
        assert_type(window, ms.Window)
        assert_type(number, int)


# what has to be an error: each comment is checked to be needed
async def wrong() -> None:
    await orders.send("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await orders.send(  # a key of another type
        Order("ada", 1.0, datetime.now()),
        key=5,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )
    await double.cast("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    totals[5] = 1.0  # type: ignore[index]  # pyright: ignore[reportArgumentType]
    app.topic("x", partition=4)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await several.send("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await find.ask(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@app.agent(orders)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
async def takes_refunds(stream: ms.Stream[Refund]) -> None:
    pass

"""Bad input, bad settings and bad programs: what is said, and what is kept.

Each test looks at the message, and then starts another program over the log that was left, to see that what
was committed before is there and that nothing behind the fault is.
"""

# ruff: noqa: PERF102, PERF401, PT012  # a stream is no list, and an app ends with its block

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

import millstream as ms
from millstream.errors import (
    AgentError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    MillstreamError,
    OutsideEventError,
    PartitionCountError,
    ProgramError,
    RecordTooLargeError,
    TopologyError,
    WrongShardError,
)
from millstream.testing import TestApp
from tests.kit import Order, append, continued, counting

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD = b'{"account":"ada","amount":1}'


async def kept(before: TestApp, expected: dict[str, float], *, lost: bool = False) -> None:
    """What the table holds for a program that comes after, and goes past what went wrong."""
    app, _, totals = counting(on_error="skip", partitions=1)
    async with continued(app, before) as t:
        if lost:
            await t.crash(lose_state=True)
        assert t.table(totals) == expected


# values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"nonsense", "JSON is malformed"),  # no JSON at all
        (b'{"account":"ada","amount":"x"}', r"Expected `float`, got `str` - at `\$\.amount`"),
        (b'{"account":"ada"}', "missing required field `amount`"),
        (b'{"account":7,"amount":1}', r"Expected `str`, got `int` - at `\$\.account`"),
        (b"", "truncated"),  # empty
        (b"[1,2]", "Expected `object`, got `array`"),
        (b'{"account":"\xff","amount":1}', "(utf|UTF)-8"),  # older and newer releases of msgspec
    ],
)
async def test_undecodable_value(value: bytes, reason: str) -> None:
    """A value that does not decode names topic, partition, offset and field, and stops the worker there."""
    app, orders, _ = counting(partitions=1)
    t = TestApp(app)
    with pytest.raises(
        AgentError, match=rf"orders/0@1: the value is not Order: .*{reason}"
    ) as raised:
        async with t:
            await t.send(orders, Order("ada", 1.0))
            await append(t, "orders", value, GOOD, key=b"ada")
    assert raised.value.record == "orders/0@1"
    assert isinstance(raised.value.__cause__, DecodeError)
    assert "millstream skip orders/0@1" in str(raised.value)
    assert str(raised.value).count("raised") == 1
    await kept(t, {"ada": 2.0})


@pytest.mark.parametrize("on_error", ["skip", "dlq"])
async def test_undecodable_value_that_is_let_pass(on_error: str) -> None:
    """With another policy the stream goes on; a dead letter has the original bytes."""
    app, _, totals = counting(partitions=1, on_error=on_error)
    dead = app.topic("shop-dlq", value=bytes, codec="raw", partitions=1)
    async with TestApp(app) as t:
        await append(t, "orders", b"nonsense", GOOD, key=b"ada")
        assert t.table(totals) == {"ada": 1.0}
        assert t.sent(dead) == ([b"nonsense"] if on_error == "dlq" else [])


async def test_undecodable_key() -> None:
    """A key that does not decode is an error of the event that looks at it."""
    app = ms.App("keys", partitions=1)
    numbers = app.topic("numbers", key=int, value=int)

    @app.agent(numbers)
    async def read(stream: ms.Stream[int, int]) -> None:
        async for _ in stream.items():
            pass

    with pytest.raises(AgentError, match="numbers/0@0"):
        async with TestApp(app) as t:
            await append(t, "numbers", b"1", key=b"seven")


async def test_null_key() -> None:
    """A record without a key reaches an agent, cannot be a table's key, and is dropped by what groups."""
    app, _, totals = counting(partitions=1, on_error="skip")
    seen: list[Any] = []

    @app.agent(app.stream(app.topics["orders"]).group_by(lambda o: o.account or None, name="named"))
    async def grouped(stream: ms.Stream[Order]) -> None:
        async for key, _ in stream.items():
            seen.append(key)

    keyless = app.topic("keyless", value=int)
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(keyless)
    async def by_key(stream: ms.Stream[int]) -> None:
        async for key, _ in stream.items():
            counts[key] += 1

    async with TestApp(app) as t:
        await append(t, "orders", GOOD, b'{"account":"","amount":1}', key=None)
        await t.send(keyless, 1)
        await t.send(keyless, 1, key="k")
        assert t.table(totals) == {"ada": 1.0, "": 1.0}
        assert t.table(counts) == {"k": 1}
    assert seen == ["ada"]


async def test_negative_timestamps() -> None:
    """A derived time below 0 follows the policy; one that is given to `send` is an error there."""

    class Reading(msgspec.Struct):
        at: float

    app = ms.App("times", partitions=1)
    readings = app.topic("readings", value=Reading, timestamp="at")
    seen: list[float] = []

    @app.agent(readings)
    async def read(stream: ms.Stream[Reading]) -> None:
        async for reading in stream:
            seen.append(reading.at)

    with pytest.raises(AgentError, match=r"topic 'readings': the timestamp -5 is negative .*@1"):
        async with TestApp(app) as t:
            for wrong in (-5, float("nan"), float("inf")):
                with pytest.raises(ProgramError, match=r"negative|is not a time"):
                    await readings.send(Reading(wrong))
            with pytest.raises(ProgramError, match="the timestamp -1 is negative"):
                await readings.send(Reading(1), timestamp=-1)
            with pytest.raises(ConfigurationError, match="is not a time"):
                await readings.send(Reading(1), timestamp=float("nan"))
            await append(t, "readings", b'{"at":5}', b'{"at":-5}')
    assert seen == [5.0]


# sizes -------------------------------------------------------------------------------------------


async def test_record_too_large() -> None:
    """A record above the bound is an error of the `send`, with size, bound and setting; nothing is sent."""
    app = ms.App("large", record_bytes_max=1_000, partitions=1)
    texts = app.topic("texts", value=str)
    async with TestApp(app) as t:
        with pytest.raises(
            RecordTooLargeError,
            match=r"topic 'texts', key 'k': 1,203 bytes, more than the 1,000 that record_bytes_max allows",
        ):
            await texts.send("x" * 1_200, key="k")
        with pytest.raises(RecordTooLargeError):
            await texts.send_many(["small", "x" * 1_200])
        await texts.send("x" * 900, key="k")
        assert [len(text) for text in t.sent(texts)] == [900]


async def test_record_too_large_inside_an_event() -> None:
    """Inside an event it is that event which fails, and not the commit."""
    app = ms.App("large", record_bytes_max=1_000, partitions=1, on_error="skip")
    texts, out = app.topic("texts", value=int), app.topic("out", value=str)

    @app.agent(texts)
    async def blow_up(stream: ms.Stream[int]) -> None:
        async for size in stream:
            await out.send("before")
            await out.send("x" * size)

    async with TestApp(app) as t:
        await t.send_many(texts, [10, 5_000, 20])
        assert t.sent(out) == ["before", "x" * 10, "before", "x" * 20]


async def test_table_value_too_large() -> None:
    """A table's value above the bound is an error that names table and key, before the commit."""
    app = ms.App("large", record_bytes_max=1_000, partitions=1)
    go = app.topic("go", value=int)
    texts = app.table("texts", key=str, value=str)

    @app.agent(go)
    async def blow_up(stream: ms.Stream[int]) -> None:
        async for size in stream:
            texts["x"] = "x" * size

    with pytest.raises(MillstreamError, match=r"table 'texts'.*record_bytes_max"):
        async with TestApp(app) as t:
            await t.send(go, 5_000)


async def test_event_above_its_bound_of_output() -> None:
    """One event whose output is above the hard limit is an error that names it."""
    app = ms.App("flood", epoch_bytes_max=10_000, partitions=1)
    go, out = app.topic("go", value=int), app.topic("out", value=str)

    @app.agent(go)
    async def flood(stream: ms.Stream[int]) -> None:
        async for count in stream:
            for _ in range(count):
                await out.send("x" * 1_000)

    with pytest.raises(AgentError, match=r"epoch_bytes_max.*go/0@0"):
        async with TestApp(app) as t:
            await t.send(go, 1_000)


async def test_event_above_the_bound_of_an_epoch() -> None:
    """What one event sends may be more than an epoch takes: nothing is held up inside of it, and all of it arrives."""
    app = ms.App("flood", epoch_bytes_max=10_000, partitions=1)
    go, out = app.topic("go", value=int), app.topic("out", value=str)

    @app.agent(go)
    async def flood(stream: ms.Stream[int]) -> None:
        async for count in stream:
            for _ in range(count):
                await out.send("x" * 1_000)

    async with TestApp(app) as t:
        await t.send_many(go, [35, 35, 35])
        assert len(t.sent(out)) == 105


async def test_values_that_cannot_be_encoded() -> None:
    """A value or key that its codec cannot write is an error that names the topic and the type."""
    app = ms.App("enc")
    orders = app.topic("orders", value=Order)
    async with TestApp(app) as t:
        with pytest.raises(
            EncodeError, match=r"topic 'orders': a value of type object cannot be encoded"
        ):
            await orders.send(object())  # type: ignore[arg-type]
        with pytest.raises(
            EncodeError, match=r"topic 'orders', key: a value of type int cannot be"
        ):
            await orders.send(Order("a", 1.0), key=5)  # type: ignore[arg-type]
        assert t.sent(orders) == []


async def test_table_value_that_cannot_be_encoded() -> None:
    """A value that a table cannot write stops the worker with table and key, and is not committed."""
    app = ms.App("shop", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float)

    @app.agent(orders)
    async def wrong(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] = order.amount if order.amount < 5 else object()  # type: ignore[assignment]

    t = TestApp(app)
    with pytest.raises(
        AgentError,
        match=r"table 'totals', key 'ada': a value of type object .* on record orders/0@1 \(key ada\)",
    ) as raised:
        async with t:
            await t.send(orders, Order("ada", 1.0))
            await t.send_many(orders, [Order("ada", 9.0), Order("bob", 2.0)])
    assert "millstream skip orders/0@1" in str(raised.value)
    after = ms.App("shop", partitions=1)
    table = after.table("totals", key=str, value=float)
    async with continued(after, t) as t:
        assert t.table(table) == {"ada": 1.0}


# partitions and topologies -----------------------------------------------------------------------


async def test_unresolved_partitions() -> None:
    """A table whose partition count cannot be told: an error before the first event, and no topic made for it."""
    app = ms.App("unresolved")
    one = app.topic("one", value=int, partitions=1)
    two = app.topic("two", value=int, partitions=2)
    app.table("t", key=str, value=int)
    ran: list[int] = []

    @app.agent(one)
    async def first(stream: ms.Stream[int]) -> None:
        ran.append(1)

    @app.agent(two)
    async def second(stream: ms.Stream[int]) -> None:
        ran.append(2)

    t = TestApp(app)
    with pytest.raises(
        PartitionCountError, match=r"\(one 1, two 2\)\. .*like=topic, or partitions=n"
    ):
        async with t:
            pass
    assert ran == []


async def test_other_partitions_than_the_log() -> None:
    """A topic or a changelog of another count: an error before the first event, and everything is kept."""
    app, orders, _ = counting(partitions=3)
    first = TestApp(app)
    async with first as t:
        await t.send(orders, Order("ada", 1.0))
    declared = ms.App("shop")
    declared.topic("orders", value=Order, partitions=4)
    with pytest.raises(
        PartitionCountError, match="'orders' has 3 partitions, and the program declares 4"
    ):
        async with continued(declared, first):
            pass
    moved = ms.App("shop")
    moved.table("totals", key=str, value=float, partitions=5)
    with pytest.raises(
        PartitionCountError, match=r"'totals' would have 5 .*'shop-totals-changelog' has 3"
    ):
        async with continued(moved, first):
            pass
    again, _, totals = counting(partitions=3)
    async with continued(again, first) as t:
        assert t.table(totals) == {"ada": 1.0}


async def test_not_co_partitioned() -> None:
    """An agent over topics of different counts is an error before the first event."""
    app = ms.App("apart")
    one = app.topic("one", value=int, partitions=1)
    two = app.topic("two", value=int, partitions=2)

    @app.agent(one, two)
    async def both(stream: ms.Stream[int]) -> None:
        pass

    with pytest.raises(
        PartitionCountError, match="'both' reads topics that are not co-partitioned"
    ):
        async with TestApp(app):
            pass


async def test_key_of_another_shard() -> None:
    """A key of another shard stops the worker at its record; what came before is kept."""
    app = ms.App("shards", partitions=4)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += 1
            if order.amount < 0:
                for name in "abcdefgh":
                    totals[name] += 1

    t = TestApp(app)
    with pytest.raises(
        AgentError, match=r"belongs to shard \d of 4, and the event at hand is in shard \d"
    ):
        async with t:
            await t.send(orders, Order("ada", 1.0))
            await t.send(orders, Order("ada", -1.0))
    after = ms.App("shards", partitions=4)
    after.topic("orders", value=Order)
    table = after.table("totals", key=str, value=float, default=0.0)
    async with continued(after, t) as again:
        assert again.table(table) == {"ada": 1.0}


# keys of tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [5, None, 1.5, ("ada",), b"ada", True])
async def test_keys_of_a_wrong_type(key: Any) -> None:
    """A key of another type is a TypeError that names table and key, and is not committed."""
    app = ms.App("types", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders)
    async def wrong(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += 1
            totals[key] += 1

    with pytest.raises(
        AgentError, match=r"TypeError: table 'totals': .* cannot be a key of it"
    ) as raised:
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", 1.0))
    assert isinstance(raised.value.__cause__, TypeError)


async def test_unhashable_keys() -> None:
    """A list is no key, as with a dict."""
    app = ms.App("types", partitions=1)
    orders = app.topic("orders", value=Order)
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders)
    async def wrong(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            totals[["ada"]] += 1  # type: ignore[index]

    with pytest.raises(AgentError, match="unhashable type: 'list'"):
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", 1.0))


@pytest.mark.parametrize("kind", [list, dict, set, object, complex, Order, tuple])
def test_types_that_cannot_be_keys(kind: Any) -> None:
    """A type that cannot be a key is refused at the declaration, with those that can."""
    with pytest.raises(ConfigurationError, match=r"a key cannot be of type .*; it may be str, int"):
        ms.App("types").table("t", key=kind, value=int)


# events ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_task_that_outlives_its_event(journaled: bool) -> None:
    """A task that an event has started may neither write nor send once that event is finished."""
    app, orders, totals = counting(partitions=1)
    go = asyncio.Event()
    errors: list[Exception] = []
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await go.wait()
        try:
            totals["ada"] = 99.0
        except OutsideEventError as exc:
            errors.append(exc)
        try:
            await orders.send(Order("ada", 99.0))
        except OutsideEventError as exc:
            errors.append(exc)

    @app.agent(orders)
    async def start(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            if not tasks:
                tasks.append(asyncio.ensure_future(later()))

    async with TestApp(app) as t:
        if not journaled:
            await t.send_many(orders, [Order("bob", 0.0)] * 5_000)
            tasks.clear()
        await t.send(orders, Order("ada", 1.0))
        go.set()
        await asyncio.gather(*tasks)
        await t.settle()
        assert t.table(totals).get("ada") == 1.0
    assert len(errors) >= 2
    assert "table 'totals': no event is in progress here" in str(errors[0])
    assert "only until that event is finished: await it in the agent" in str(errors[1])


@pytest.mark.parametrize("grandchild", [False, True])
@pytest.mark.parametrize("journaled", [True, False])
async def test_a_task_that_outlives_its_event_into_the_next_one(
    journaled: bool, grandchild: bool
) -> None:
    """Nor may it, or a task that it starts, write or send while a later event is in progress."""
    app, orders, totals = counting(partitions=1)
    go, gone = asyncio.Event(), asyncio.Event()
    errors: list[Exception] = []
    tasks: list[asyncio.Task[None]] = []

    async def write() -> None:
        for attempt in (lambda: totals.update(ada=99.0), lambda: totals["ada"]):
            try:
                attempt()
            except OutsideEventError as exc:
                errors.append(exc)
        try:
            await orders.send(Order("ada", 99.0))
        except OutsideEventError as exc:
            errors.append(exc)

    async def later() -> None:
        await go.wait()
        await (asyncio.ensure_future(write()) if grandchild else write())
        gone.set()

    @app.agent(orders)
    async def start(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            if order.account == "start":
                tasks.append(asyncio.ensure_future(later()))
            if order.account == "next":
                go.set()
                await gone.wait()

    async with TestApp(app) as t:
        if not journaled:
            await t.send_many(orders, [Order("bob", 0.0)] * 5_000)
            assert not t.worker.shards[1, 0].journaled
        await t.send(orders, Order("start", 1.0))
        await t.send(orders, Order("next", 1.0))
        await asyncio.gather(*tasks)
        assert "ada" not in t.table(totals)
    assert len(errors) == 3


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_task_from_before_the_first_event(journaled: bool) -> None:
    """A task that an agent starts outside of its events has no event to write in, whatever goes on."""
    app, orders, totals = counting(partitions=1)
    go, gone = asyncio.Event(), asyncio.Event()
    errors: list[Exception] = []

    async def beside() -> None:
        await go.wait()
        try:
            totals["ada"] = 99.0
        except OutsideEventError as exc:
            errors.append(exc)
        gone.set()

    @app.agent(orders)
    async def start(stream: ms.Stream[Order]) -> None:
        task = asyncio.ensure_future(beside())
        async for order in stream:
            if order.account == "next":
                go.set()
                await gone.wait()
                await task

    async with TestApp(app) as t:
        if not journaled:
            await t.send_many(orders, [Order("bob", 0.0)] * 5_000)
            assert not t.worker.shards[1, 0].journaled
        await t.send(orders, Order("next", 1.0))
        assert "ada" not in t.table(totals)
    assert len(errors) == 1


async def test_a_task_of_an_event_that_was_dropped() -> None:
    """When a shard starts over, what tasks of its dropped events send is refused, and not committed."""
    app, orders, _ = counting(partitions=1)
    out = app.topic("out", value=int)
    errors: list[Exception] = []
    tasks: list[asyncio.Task[None]] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def later() -> None:
        begun.set()
        await go.wait()
        try:
            await out.send(99)
        except OutsideEventError as exc:
            errors.append(exc)

    @app.agent(orders)
    async def start(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            if not tasks:
                tasks.append(asyncio.ensure_future(later()))
                await asyncio.Event().wait()
            await out.send(1)

    async with TestApp(app) as t:
        await orders.send(Order("ada", 1.0))
        await begun.wait()
        t.worker.shards[1, 0].rewind()
        await t.settle()
        go.set()
        await asyncio.gather(*tasks)
        await t.settle()
        assert t.sent(out) == [1]
    assert len(errors) == 1


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_task_inside_its_event(journaled: bool) -> None:
    """Tasks that the event waits for may use tables and send."""
    app, orders, _ = counting(partitions=1)
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(orders)
    async def fan_out(stream: ms.Stream[Order]) -> None:
        async def one() -> None:
            await asyncio.sleep(0)
            counts["all"] += 1

        async for order in stream:
            if order.account == "ada":
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(3):
                        tasks.create_task(one())

    async with TestApp(app) as t:
        if not journaled:
            await t.send_many(orders, [Order("bob", 0.0)] * 5_000)
            assert not t.worker.shards[1, 0].journaled
        await t.send(orders, Order("ada", 1.0))
        assert t.table(counts) == {"all": 3}


async def test_a_factory_of_the_programs_own() -> None:
    """A loop's own task factory goes on making the tasks, and is there again in the end."""
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def factory(loop: Any, work: Any, **options: Any) -> Any:
        made.append(work.__name__)
        return asyncio.Task(work, loop=loop, **options)

    app, orders, totals = counting(partitions=1)

    async def inside() -> None:
        totals["inside"] = 1.0

    @app.agent(orders)
    async def start(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            await asyncio.ensure_future(inside())

    loop.set_task_factory(factory)
    try:
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", 1.0))
            assert t.table(totals)["inside"] == 1.0
            assert "inside" in made
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(None)


def test_write_outside_an_event() -> None:
    """A write where nothing runs says where tables are used, and how to read elsewhere."""
    _, _, totals = counting()
    with pytest.raises(
        OutsideEventError,
        match=r"table 'totals': no event is in progress here\. Tables are used inside agents, and inside"
        r" timers with scope='shard'\. Elsewhere read with table\.view\(\)",
    ):
        totals["ada"] = 1.0


# agents ------------------------------------------------------------------------------------------


async def test_exception_in_an_agent() -> None:
    """What an agent raises names record, key and line, and what came before it is kept."""
    app, orders, _ = counting(partitions=1)
    t = TestApp(app)
    with pytest.raises(
        AgentError, match=r"ValueError: negative on record orders/0@2 \(key ada\) at .*kit"
    ):
        async with t:
            await t.send_many(orders, [Order("ada", 1.0), Order("ada", 2.0)])
            await t.send_many(orders, [Order("ada", -1.0), Order("ada", 4.0)])
    await kept(t, {"ada": 7.0})
    await kept(t, {"ada": 7.0}, lost=True)


async def test_exception_in_a_page() -> None:
    """What a page raises is answered with 500, without its words; a write says how to do it; nobody else notices."""
    app, orders, totals = counting(partitions=1)

    @app.page("/broken")
    async def broken(request: object) -> None:
        raise ValueError("the password is 12345")

    @app.page("/write")
    async def write(request: object) -> None:
        totals["ada"] = 99.0

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        # the server logs what the application raises after it has answered
        transport = httpx.ASGITransport(app.asgi, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get("/broken")
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"] == "The answer failed; the worker's log says how."
            html = await http.get("/broken", headers={"Accept": "text/html"})
            assert html.status_code == 500
            assert "the worker&#x27;s log says how" in html.text
            assert "12345" not in answer.text + html.text
            refused = await http.get("/write")
            assert refused.status_code == 500
            assert (
                "Elsewhere read with table.view(), and send to a topic" in refused.json()["detail"]
            )
            assert (await http.get("/tables/totals/keys/ada")).json()["value"] == 1.0
        await t.send(orders, Order("ada", 1.0))
    await kept(t, {"ada": 2.0})


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_exception_outside_of_an_event(concurrency: int) -> None:
    """An agent that fails before its first value stops the worker, with its line."""
    app = ms.App("early", on_error="skip")
    topic = app.topic("t", value=int)

    @app.agent(topic, concurrency=concurrency)
    async def early(stream: ms.Stream[int]) -> None:
        raise ValueError("too early")

    with pytest.raises(
        AgentError, match=r"agent 'early' raised ValueError: too early at .*test_bad_input"
    ):
        async with TestApp(app):
            pass


def test_agents_that_are_not_async() -> None:
    """An agent is an async function, or an async generator."""
    app = ms.App("plain")
    topic = app.topic("t", value=int)

    def plain(stream: Any) -> None:
        pass

    def generator(stream: Any) -> Any:
        yield 1

    for function in (plain, generator, print):
        with pytest.raises(
            ConfigurationError, match=r"is not an async function: write `async def "
        ):
            app.agent(topic, name="a")(function)  # type: ignore[arg-type]
    assert app.agents == {}


async def test_agent_that_returns_at_once() -> None:
    """An agent that returns without reading would start for ever: it is an error."""
    app = ms.App("returns")
    topic = app.topic("t", value=int)

    @app.agent(topic)
    async def nothing(stream: ms.Stream[int]) -> None:
        return

    with pytest.raises(
        ProgramError, match="agent 'nothing' returned without reading its stream: write"
    ):
        async with TestApp(app):
            pass


async def test_agent_that_never_reads() -> None:
    """An agent that never reads holds up nobody else, and its records stay for later."""
    app, orders, totals = counting(partitions=1)

    @app.agent(orders)
    async def never(stream: ms.Stream[Order]) -> None:
        await asyncio.Event().wait()

    t = TestApp(app)
    async with t:
        await orders.send(Order("ada", 1.0))
        for _ in range(5):
            await t.settle()
        assert t.table(totals) == {"ada": 1.0}
        lane = t.worker.shards[1, 0].lanes["never"]
        ((tp, inbox),) = lane.inboxes.items()
        assert (lane.position(tp), inbox.end) == (0, 1)
    later, orders, totals = counting(partitions=1)
    seen: list[float] = []

    @later.agent(orders, name="never")
    async def reads(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order.amount)

    async with continued(later, t) as t:
        assert t.table(totals) == {"ada": 1.0}
    assert seen == [1.0]


async def test_sinks_of_another_app() -> None:
    """A sink of another app is an error before the first event, also when a topic here has its name."""
    app, other = ms.App("mine"), ms.App("other")
    foreign = other.topic("out", value=int)
    numbers = app.topic("numbers", value=int)
    app.topic("out", value=int)

    @app.agent(numbers, sink=foreign)
    async def forward(stream: ms.Stream[int]) -> Any:
        async for number in stream:
            yield number

    with pytest.raises(
        TopologyError, match=r"sink 'out' belongs to another app: describe its topic with"
    ):
        async with TestApp(app):
            pass


async def test_agents_of_another_app() -> None:
    """An agent of another app is no sink either."""
    app, other = ms.App("mine"), ms.App("other")

    @other.agent
    async def foreign(stream: ms.Stream[int]) -> None:
        pass

    @app.agent(sink=foreign)
    async def forward(stream: ms.Stream[int]) -> Any:
        async for number in stream:
            yield number

    with pytest.raises(TopologyError, match="sink 'foreign' belongs to another app"):
        async with TestApp(app):
            pass


def test_declared_twice() -> None:
    """Tables and topics are declared once, agents have names of their own."""
    app = ms.App("twice")
    app.table("t")
    for again in (
        lambda: app.table("t"),
        lambda: app.set_table("t"),
        lambda: app.global_table("t"),
    ):
        with pytest.raises(
            TopologyError, match="table 't' is declared twice: keep the first object"
        ):
            again()


# stored values -----------------------------------------------------------------------------------


class Profile(msgspec.Struct):
    """What a later version of the program stores."""

    name: str
    visits: int


async def stored(value: Any, value_type: Any) -> TestApp:
    """A program that has stored a value and ended."""
    app = ms.App("profiles", partitions=1)
    go = app.topic("go", value=int)
    profiles = app.table("profiles", key=str, value=value_type)

    @app.agent(go)
    async def write(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            profiles["ada"] = value

    t = TestApp(app)
    async with t:
        await t.send(go, 1)
    return t


def profiles_now(
    upgrade: Callable[[Any], Any] | None = None, **settings: Any
) -> tuple[ms.App, ms.Topic[int], ms.Table[str, Profile]]:
    app = ms.App("profiles", partitions=1, **settings)
    go = app.topic("go", value=int)
    profiles = app.table("profiles", key=str, value=Profile, upgrade=upgrade)

    @app.agent(go)
    async def visit(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            profiles["ada"].visits += 1

    return app, go, profiles


async def test_stored_value_that_no_longer_decodes() -> None:
    """An old value is an error that names table, key and field, and says how to convert it."""
    before = await stored({"name": "Ada"}, dict[str, str])
    app, go, _ = profiles_now()
    with pytest.raises(
        DecodeError,
        match=r"table 'profiles', key 'ada': the stored value is not Profile: .*missing required field"
        r" `visits`.*Convert it with upgrade=",
    ):
        async with continued(app, before) as t:
            await t.send(go, 1)


async def test_stored_value_that_no_longer_decodes_before_the_first_event() -> None:
    """The error comes before the first event, whatever ``on_error`` says."""
    before = await stored({"name": "Ada"}, dict[str, str])
    app, _, _ = profiles_now(on_error="skip")
    with pytest.raises(DecodeError, match=r"table 'profiles'.*`visits`"):
        async with continued(app, before):
            pass


@pytest.mark.parametrize("lost", [False, True])
async def test_upgrade(lost: bool) -> None:
    """``upgrade=`` turns old values into new ones, and what is written from then on is new."""
    before = await stored({"name": "Ada"}, dict[str, str])
    calls: list[Any] = []

    def upgrade(old: Any) -> Profile:
        calls.append(old)
        return Profile(old["name"], visits=0)

    app, go, profiles = profiles_now(upgrade)
    after = continued(app, before)
    async with after as t:
        if lost:
            await t.crash(lose_state=True)
        assert t.table(profiles) == {"ada": Profile("Ada", 0)}
        await t.send(go, 1)
        assert t.table(profiles) == {"ada": Profile("Ada", 1)}
    assert calls[0] == {"name": "Ada"}
    without, go, profiles = profiles_now()
    async with continued(without, after) as t:
        await t.send(go, 1)
        assert t.table(profiles) == {"ada": Profile("Ada", 2)}


async def test_upgrade_that_fails() -> None:
    """What ``upgrade`` raises names table and key."""
    before = await stored({"name": "Ada"}, dict[str, str])
    app, go, _ = profiles_now(lambda old: Profile(old["title"], 0))
    with pytest.raises(
        DecodeError, match=r"table 'profiles', key 'ada': the stored value is not Profile"
    ):
        async with continued(app, before) as t:
            await t.send(go, 1)


def test_wrong_shard_error_is_a_program_error() -> None:
    """Who has to act: the program."""
    assert issubclass(WrongShardError, ProgramError)

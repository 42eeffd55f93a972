import asyncio, msgspec, pytest
import millstream as ms


class Order(msgspec.Struct):
    account: str
    amount: float


def make(**kw):
    app = ms.App("shop", **kw)
    orders = app.topic("orders", value=Order, key_from="account")
    large = app.topic("large", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders)
    async def count(stream):
        async for order in stream:
            if order.amount < 0:
                raise ValueError("negative")
            totals[order.account] += order.amount
            if totals[order.account] > 20:
                await large.send(order)

    return app, orders, large, totals


from millstream.testing import TestApp


async def test_a(millstream_test):
    app, orders, large, totals = make()
    async with millstream_test(app) as t:
        for i in range(5):
            print(await t.send(orders, Order("ada", 5.0 + i)))
        assert t.table(totals)["ada"] == 35
        assert [o.amount for o in t.sent(large)] == [8, 9]
        await t.crash()
        assert t.table(totals)["ada"] == 35
        await t.send(orders, Order("bob", 5.0))
        await t.crash(lose_state=True)
        await t.rebalance()
        await t.send(orders, Order("ada", 5.0))
        assert t.table(totals) == {"ada": 40, "bob": 5}


async def test_skip(millstream_test):
    app, orders, large, totals = make(on_error="skip")
    async with millstream_test(app) as t:
        await t.send_many(orders, [Order("ada", x) for x in (1, 2, -3, 4, -5)])
        assert t.table(totals)["ada"] == 7


async def test_dlq(millstream_test):
    app, orders, large, totals = make(on_error="dlq")
    async with millstream_test(app) as t:
        await t.send_many(orders, [Order("ada", x) for x in (1, 2, -3, 4, -5)])
        assert t.table(totals)["ada"] == 7


async def test_retry(millstream_test):
    app, orders, large, totals = make(on_error=ms.Retry(times=2, backoff="1s", then="skip"))
    async with millstream_test(app) as t:
        await t.send_many(orders, [Order("ada", x) for x in (1, 2, -3, 4)])
        assert t.table(totals)["ada"] == 3
        await t.advance("1s")
        assert t.table(totals)["ada"] == 3
        await t.advance("3s")
        assert t.table(totals)["ada"] == 7


async def test_stop(millstream_test):
    app, orders, large, totals = make()
    with pytest.raises(ms.errors.AgentError, match="skip orders/1@2"):
        async with millstream_test(app) as t:
            await t.send_many(orders, [Order("ada", x) for x in (1, 2, -3, 4)])


async def test_conc(millstream_test):
    app = ms.App("c")
    orders = app.topic("orders", value=Order, key_from="account")
    out = app.topic("out", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    seen = []

    @app.agent(orders, concurrency=10)
    async def count(stream):
        async for order in stream:
            totals[order.account] += order.amount
            await app.clock.sleep(1)
            seen.append(order.amount)
            await out.send(order)

    async with millstream_test(app) as t:
        await t.send_many(orders, [Order("ada", 1), Order("ada", 2), Order("bob", 3)])
        assert seen == []
        assert t.table(totals) == {}
        await t.advance("1s")
        assert sorted(seen) == [1, 3]
        assert t.table(totals) == {"ada": 1, "bob": 3}, t.table(totals)
        await t.advance("1s")
        assert t.table(totals) == {"ada": 3, "bob": 3}
        assert len(t.sent(out)) == 3


async def test_ask(millstream_test):
    app = ms.App("c")

    @app.agent
    async def double(stream: ms.Stream[int]):
        async for x in stream:
            yield x * 2

    async with millstream_test(app) as t:
        task = asyncio.ensure_future(double.ask(21))
        for _ in range(50):
            await t.settle()
        assert await task == 42


async def test_group_by(millstream_test):
    app = ms.App("c")
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=int, default=0)

    @app.agent(
        app.stream(orders)
        .filter(lambda o: o.amount > 0)
        .group_by(lambda o: "even" if o.amount % 2 == 0 else "odd", name="parity")
    )
    async def count(stream):
        async for order in stream:
            totals["even" if order.amount % 2 == 0 else "odd"] += 1

    async with millstream_test(app) as t:
        await t.send_many(orders, [Order(str(i), i) for i in range(11)])
        assert t.table(totals) == {"even": 5, "odd": 5}


async def test_take(millstream_test):
    app = ms.App("c")
    orders = app.topic("orders", value=Order, key_from="account")
    sizes = app.table("sizes", key=str, value=list[int], default=list)

    @app.agent(orders)
    async def count(stream):
        async for batch in stream.take(3, within="10s"):
            sizes[batch[0].account].append(len(batch))

    async with millstream_test(app) as t:
        await t.send_many(orders, [Order("a", i) for i in range(7)])
        assert t.table(sizes) == {"a": [3, 3]}
        await t.advance("11s")
        assert t.table(sizes) == {"a": [3, 3, 1]}

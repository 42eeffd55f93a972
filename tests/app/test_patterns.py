"""Topics by pattern: those that are there, and those that are made while the app runs."""

from __future__ import annotations

import logging

import pytest

import millstream as ms
from millstream.errors import LogUnavailableError, PartitionCountError, UnknownTopicError
from millstream.testing import TestApp
from tests.kit import Order, continued, second_worker


def reading(pattern: str) -> tuple[ms.App, ms.Topic[Order], list[str]]:
    """An app that notes the account and topic of every order of the topics that match."""
    app = ms.App("shop", partitions=2)
    orders = app.topic(pattern=pattern, value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    seen: list[str] = []

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            totals[event.value.account] += event.value.amount
            seen.append(f"{event.value.account} {event.topic}")

    return app, orders, seen


async def test_existing_topics() -> None:
    """Topics that match when the app starts are read from their beginning, others are not."""
    app, orders, seen = reading("orders-.*")
    before = ms.App("before", partitions=2)
    eu = before.topic("orders-eu", value=Order, key_from="account")
    other = before.topic("the-orders-eu", value=Order, key_from="account")
    first = TestApp(before)
    async with first as t:
        await t.send(eu, Order("ada", 1.0))
        await t.send(other, Order("eve", 1.0))
    async with continued(app, first) as t:
        assert seen == ["ada orders-eu"]
        assert t.table(app.tables["totals"].table) == {"ada": 1.0}
        assert t.sent(orders) == [Order("ada", 1.0)]
        assert t.worker.plan.counts == [2]


async def test_new_topics() -> None:
    """A topic that is made later is found within the interval, and read from its beginning, exactly once."""
    app, orders, seen = reading("orders-.*")
    async with TestApp(app) as t:
        assert seen == []
        await t.create_topic("orders-eu")
        await t.create_topic("invoices-eu")
        await t.send(orders.named("orders-eu"), Order("ada", 1.0))
        assert seen == []
        await t.advance("5s")
        assert seen == ["ada orders-eu"]
        await t.create_topic("orders-us")
        await t.advance("5s")
        await t.send(orders.named("orders-us"), Order("ada", 2.0))
        await t.send(orders.named("orders-eu"), Order("bob", 4.0))
        assert seen == ["ada orders-eu", "ada orders-us", "bob orders-eu"]
        await t.rebalance()
        await t.crash(lose_state=True)
        assert t.table(app.tables["totals"].table) == {"ada": 3.0, "bob": 4.0}
        assert len(seen) == 3
        await t.send(orders.named("orders-us"), Order("eve", 8.0))
        assert seen[3:] == ["eve orders-us"]


async def test_a_new_topic_that_the_group_could_not_be_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leader tells it the next time it looks."""
    app, orders, seen = reading("orders-.*")
    async with TestApp(app) as t:
        membership = t.worker.membership
        assert membership is not None
        update, told = membership.update, []

        async def away_once(metadata: bytes) -> None:
            told.append(metadata)
            if len(told) == 1:
                raise LogUnavailableError("no broker answers")
            await update(metadata)

        monkeypatch.setattr(membership, "update", away_once)
        await t.create_topic("orders-eu")
        for looks in (1, 2, 2):
            await t.advance("5s")
            assert len(told) == looks
        await t.send(orders.named("orders-eu"), Order("ada", 1.0))
        assert seen == ["ada orders-eu"]


async def test_new_topic_in_the_middle_of_work() -> None:
    """What is uncommitted and what agents keep in their variables survives that a topic is found."""
    app = ms.App("shop", partitions=1)
    orders = app.topic("orders", value=int)
    more = app.topic(pattern="more-.*", value=int)
    sums = app.table("sums", key=str, value=int, default=0)
    starts = []

    @app.agent(orders, more)
    async def add(stream: ms.Stream[int]) -> None:
        starts.append(1)
        async for value in stream:
            sums["all"] += value

    async with TestApp(app) as t:
        await t.send(orders, 1)
        await t.create_topic("more-1")
        await t.advance("5s")
        await t.send(more.named("more-1"), 10)
        await t.send(orders, 100)
        assert t.table(sums) == {"all": 111}
        assert starts == [1]


async def test_several_workers() -> None:
    """A worker that starts when there are more topics runs the same topology, and takes over mid-way."""
    app, orders, seen = reading("orders-.*")
    other, _, others = reading("orders-.*")
    async with TestApp(app) as t:
        await t.create_topic("orders-eu")
        await t.advance("5s")
        await t.create_topic("orders-us")
        async with second_worker(other, t) as runtime:
            assert runtime.worker is not None
            for _ in range(3):
                await t.settle()
                await runtime.worker.committer.commit()
            for n in range(8):
                await t.send(orders.named("orders-us"), Order(f"k{n}", 1.0))
            await t.advance("5s")
            for _ in range(3):
                await runtime.worker.committer.commit()
                await t.settle()
            assert sorted(seen + others) == [f"k{n} orders-us" for n in range(8)]
            assert seen
            assert others


async def test_wrong_count_while_running(caplog: pytest.LogCaptureFixture) -> None:
    """A later topic with another number of partitions stays out, which is said once."""
    app, orders, seen = reading("orders-.*")
    async with TestApp(app) as t:
        await t.create_topic("orders-eu", partitions=3)
        with caplog.at_level(logging.ERROR):
            await t.advance("10s")
        assert caplog.messages == [
            "agent 'count' does not read topic 'orders-eu', which matches its pattern: it has 3"
            " partitions, and the agent's other topics have 2. The next start will refuse it: give it"
            " as many, or change the pattern"
        ]
        await orders.named("orders-eu").send(Order("ada", 1.0))
        await t.advance("10s")
        assert seen == []


async def test_wrong_count_at_start() -> None:
    """Topics that match and are not co-partitioned are an error before the first event."""
    app, _, _ = reading("orders-.*")
    before = ms.App("before")
    before.topic("orders-a", partitions=2)
    before.topic("orders-b", partitions=3)
    first = TestApp(before)
    async with first:
        pass
    with pytest.raises(PartitionCountError, match="orders-a 2, orders-b 3"):
        async with continued(app, first):
            pass
    declared = ms.App("shop")
    topic = declared.topic(pattern="orders-b", partitions=2)
    declared.agent(topic)(app.agents["count"].function)
    with pytest.raises(PartitionCountError, match=r"'orders-b' has 3 partitions.*declares 2"):
        async with continued(declared, first):
            pass


async def test_not_its_own_topics() -> None:
    """Changelogs, repartition topics, replies and dead letters of the app do not match, whatever the pattern."""
    app = ms.App("shop", partitions=1, on_error="dlq")
    everything = app.topic(pattern=".*", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    seen: list[str] = []

    @app.agent(everything)
    async def count(stream: ms.Stream[Order]) -> None:
        async for event in stream.events():
            seen.append(event.topic)
            totals[event.value.account] += event.value.amount

    async with TestApp(app) as t:
        await t.create_topic("orders")
        await t.create_topic("__consumer_offsets")
        await t.advance("5s")
        await t.send(everything.named("orders"), Order("ada", 1.0))
        await t.advance("30s")
        await t.crash()
        await t.advance("30s")
        assert seen == ["orders"]
        assert t.sent(everything) == [Order("ada", 1.0)]


async def test_a_declared_topic_matches() -> None:
    """A topic that the app declares as well is read like one that was there."""
    app = ms.App("shop", partitions=2)
    eu = app.topic("orders-eu", value=Order, key_from="account")
    orders = app.topic(pattern="orders-.*", value=Order)
    seen: list[str] = []

    @app.agent(orders, eu)
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen.append(order.account)  # noqa: PERF401 - a stream is no list

    async with TestApp(app) as t:
        await t.send(eu, Order("ada", 1.0))
        assert seen == ["ada"]  # once, although two sources stand for it


async def test_unknown_topic() -> None:
    """Sending to a topic that is not there says so."""
    app, orders, _ = reading("orders-.*")
    async with TestApp(app):
        with pytest.raises(UnknownTopicError, match="'orders-nowhere' does not exist"):
            await orders.named("orders-nowhere").send(Order("ada", 1.0))


def test_topology() -> None:
    """Undrawn, a pattern stands for itself; with the log at hand its topics do, and the workers stay alike."""
    app, _, _ = reading("orders-.*")
    declared = app.topology
    assert "~orders-.* → agent count" in str(declared)
    assert '[("~orders-.*")]' in declared.mermaid()
    empty = declared.resolved({}, 2)
    assert empty.agents["count"].sources == ()
    assert empty.shard_counts() == {2: ["count"]}
    full = declared.resolved({"orders-b": 3, "orders-a": 3, "orders": 7}, 2)
    assert full.agents["count"].sources == ("orders-a", "orders-b")
    assert full.shard_counts() == {3: ["count"]}
    assert full.tables["totals"].partitions == 3
    again = declared.resolved({"orders-b": 3}, 2)
    assert full.fingerprint() == again.fingerprint()

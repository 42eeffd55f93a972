"""What a program of streams becomes: topics, tables, and the agents that run it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import millstream as ms
from millstream.errors import PartitionCountError, TopologyError
from millstream.records import TopicPartition
from millstream.testing import TestApp
from tests.kit import continued
from tests.streams.running import by_key, feed, read


class Order(msgspec.Struct):
    """What most of the programs here are about."""

    id: str
    account: str
    amount: float


def shop(**settings: Any) -> tuple[ms.App, ms.Topic[Order]]:
    app = ms.App("shop", partitions=2, **settings)
    return app, app.topic("orders", value=Order, key_from="account")


def moved(app: ms.App) -> list[str]:
    """Topics through which records move to the shards of their keys."""
    return sorted(name for name in app.topology.topics if name.endswith("-repartition"))


def agents(app: ms.App) -> dict[str, tuple[list[str], list[str]]]:
    """Sources and sinks of each agent."""
    return {
        agent.name: (sorted(agent.sources), sorted(agent.sinks))
        for agent in app.topology.agents.values()
    }


# -- what moves, and what need not ----------------------------------------------------------------


def test_nothing_moves_without_need() -> None:
    """The topic's own key, the field that it is derived from, and values that change: records stay."""
    app, orders = shop()
    stream = app.stream(orders)
    stream.group_by().count(name="a")
    stream.group_by("account").count(name="b")
    large = stream.filter(lambda order: order.amount > 5).map(lambda order: order.amount)
    large.group_by().sum(name="c")
    stream.to_table("d")
    stream.merge(stream.peek(print)).group_by().count(name="e")
    assert moved(app) == []
    assert list(agents(app)) == ["stream:orders"]


def test_a_new_key_moves_once() -> None:
    """One topic serves all who need the records by a key, whatever they do with them then."""
    app, orders = shop()
    stream = app.stream(orders)
    stream.group_by("id").count(name="a")
    stream.group_by("id").tumbling("1s").count(name="b")
    by_size = stream.group_by(lambda order: order.amount > 5, name="size")
    by_size.count(name="c")
    by_size.mean("amount", name="d")
    stream.key_by("id").group_by().count(name="by-field")
    stream.key_by("id").to_table("by-field-too")
    rekeyed = stream.key_by(lambda order: order.id[0], type=str)
    rekeyed.to_table("e")
    rekeyed.group_by().count(name="f")
    rekeyed.filter(lambda order: order.amount).repartition(name="large").to_table("g")
    assert moved(app) == [
        "shop-large-repartition",
        "shop-orders-by-id-repartition",
        "shop-orders-keyed-repartition",
        "shop-size-repartition",
    ]


def test_a_key_that_is_there_already() -> None:
    """A step that keeps the values keeps what their key is: then nothing moves for that key, or not again."""
    app, orders = shop()
    more = app.topic("more", value=Order, key_from="account")
    stream, large = app.stream(orders), lambda order: order.amount > 5
    branch = stream.split({"large": large})["large"]
    for number, one in enumerate([stream.filter(large), branch]):
        one.group_by("account").count(name=f"a{number}")
    stream.distinct("account", within="1s").group_by("account").count(name="c")
    stream.merge(stream.filter(large)).group_by("account").count(name="d")
    app.stream(orders, more).group_by("account").count(name="e")
    assert moved(app) == []
    by_id = stream.group_by("id").filter(large)
    by_id.group_by("id").count(name="f")
    by_id.distinct("id", within="1s").group_by("id").count(name="g")
    assert moved(app) == ["shop-orders-by-id-repartition"]
    stream.key_by("id").group_by("id").count(name="h")
    assert moved(app) == ["shop-orders-by-id-repartition"]


def test_a_key_that_is_not_there() -> None:
    """New values, another type of key, streams of different keys, or keys in any shard: the records move.

    So they do for ``key_by``, as whoever writes a topic may give other keys, and after a function that may change values.
    """
    app, orders = shop()
    stream = app.stream(orders)
    stream.key_by("account").group_by(name="f").count(name="f")
    stream.peek(print).group_by("account", name="g").count(name="g")
    other = app.topic("other", value=Order, key_from="account", key_codec="json")
    app.stream(orders, other).group_by("account", name="h").count(name="h")
    stream.merge(app.stream(other)).group_by("account", name="i").count(name="i")
    doubled = stream.map(
        lambda order: Order(order.id, order.account, order.amount * 2), value=Order
    )
    doubled.group_by("account").count(name="a")
    stream.key_by("id").merge(stream).group_by("account", name="b").count(name="b")
    stream.map_keys(str.upper).group_by("account", name="c").count(name="c")
    stream.group_by("account", type=int, name="d").count(name="d")
    loose = app.topic("loose", value=Order, key_from="account", partitioner="any")
    app.stream(loose).group_by("account", name="e").count(name="e")
    assert moved(app) == [
        "shop-b-repartition",
        "shop-c-repartition",
        "shop-d-repartition",
        "shop-e-repartition",
        "shop-f-repartition",
        "shop-g-repartition",
        "shop-h-repartition",
        "shop-i-repartition",
        "shop-orders-by-account-repartition",
    ]


def test_a_function_or_a_table_that_moves_once() -> None:
    """The same function under the same name is one move, and so is the same group of a table."""
    app, orders = shop()
    stream, table = app.stream(orders), app.table("all", topic=orders)

    def initial(order: Order) -> str:
        return order.id[0]

    for number in range(2):
        stream.group_by(initial, name="initial").count(name=f"a{number}")
        stream.key_by(initial).to_table(f"b{number}")
        table.group_by("id").count(name=f"c{number}")
        table.group_by(initial, name="of-table").count(name=f"d{number}")
    assert moved(app) == [
        "shop-all-by-id-repartition",
        "shop-initial-repartition",
        "shop-of-table-repartition",
        "shop-orders-keyed-repartition",
    ]
    with pytest.raises(TopologyError, match=r"name='of-table-2'"):
        table.group_by("id", name="of-table")
    with pytest.raises(TopologyError, match=r"name='initial-2'"):
        stream.group_by("id", name="initial")


def test_a_group_of_the_own_key_has_a_name() -> None:
    """``name=`` without a key names the topic, where one is needed."""
    app, orders = shop()
    by_id = app.stream(orders).key_by("id")
    by_id.filter(bool).group_by(name="some").count(name="a")
    by_id.map(lambda order: order.amount).group_by(name="amounts").sum()
    app.stream(orders).group_by(name="not-moved").count(name="b")
    assert moved(app) == ["shop-amounts-repartition", "shop-some-repartition"]
    assert sorted(app.tables) == ["a", "amounts-sum", "b"]


async def test_what_moved_is_where_its_key_belongs() -> None:
    """On the other side of the topic, all records of a key are in one shard, with timestamp and headers."""
    app, orders = shop()
    out = app.topic("out", value=Order)
    stream = app.stream(orders).key_by("id").repartition(name="by-id", partitions=3)
    counts = stream.group_by().count(name="counts")
    stream.to(out)
    async with TestApp(app) as t:
        listed = [Order(f"o{n % 5}", f"a{n}", n) for n in range(40)]
        records = [(None, order, number) for number, order in enumerate(listed)]
        await feed(t, orders, records, headers={"from": "test"})
        assert t._runtime is not None
        assert t._runtime.partitions["shop-by-id-repartition"] == 3
        assert t.table(counts) == {f"o{n}": 8 for n in range(5)}
        found = read(t, out)
        assert sorted(record.timestamp for record in found) == list(range(40))
        assert all(record.headers == {"from": b"test"} for record in found)
        assert {key: len(values) for key, values in by_key(found).items()} == {
            f"o{n}": 8 for n in range(5)
        }


def test_agents_of_streams() -> None:
    """Filters and maps run with the agent; what has to move, moves through a topic named after the agent."""
    app, orders = shop()

    @app.agent(app.stream(orders).filter(lambda order: order.amount).map(lambda order: order.id))
    async def near(stream: ms.Stream[str]) -> None: ...

    @app.agent(app.stream(orders).group_by("id"))
    async def regrouped(stream: ms.Stream[Order]) -> None: ...

    @app.agent(app.stream(orders).flat_map(lambda order: [order.id, order.account]))
    async def many(stream: ms.Stream[str]) -> None: ...

    assert moved(app) == ["shop-many-input-repartition", "shop-orders-by-id-repartition"]
    found = agents(app)
    assert found["near"][0] == ["orders"]
    assert found["regrouped"][0] == ["shop-orders-by-id-repartition"]
    assert found["many"][0] == ["shop-many-input-repartition"]
    assert found["stream:orders"] == (["orders"], moved(app))


# -- pipelines ------------------------------------------------------------------------------------


def test_what_runs_together() -> None:
    """Operators that are connected by calls, or use one table, are one agent; topics part them."""
    app, orders = shop()
    people = app.topic("people", value=str, codec="str")
    other = app.topic("other", value=int)
    out = app.topic("out", value=Any)
    totals = app.stream(orders).group_by().sum("amount", name="totals")
    totals.join(app.table("names", topic=people), lambda total, name: f"{name}: {total}").to(out)
    app.stream(orders).group_by("id").count(name="by-id")
    app.stream(other).map(str).to(out)
    found = agents(app)
    assert set(found) == {
        "stream:orders+people",
        "stream:shop-orders-by-id-repartition",
        "stream:other",
    }
    assert found["stream:orders+people"] == (
        ["orders", "people"],
        ["out", "shop-orders-by-id-repartition"],
    )


def test_what_nobody_needs_does_not_run() -> None:
    """A stream that ends nowhere makes no agent."""
    app, orders = shop()
    app.stream(orders).filter(lambda order: order.amount).map(lambda order: order.id)
    assert agents(app) == {}
    app.stream(orders).foreach(print)
    assert list(agents(app)) == ["stream:orders"]


def numbered(*lines: str, pattern: bool = False) -> tuple[ms.App, ms.Topic[Order], Any]:
    """A count beside an agent that is slow, and what else a version of the program does with the topic."""
    app, orders = shop()
    read = app.topic(pattern="ord.*", value=Order) if pattern else orders
    stream = app.stream(read)
    counts = stream.group_by().count(name="counts")
    if "join" in lines:
        names = app.table("names", topic=app.topic("names", value=str))
        stream.join(names, lambda order, name: name, name="named", value=str).foreach(print)
    if "merge" in lines:
        stream.merge(app.stream(app.topic("others", value=Order))).foreach(print)

    @app.agent(read, name="mail")
    async def mail(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            await app.clock.sleep(3_600)

    return app, orders, counts


@pytest.mark.parametrize("pattern", [False, True])
async def test_a_pipeline_stays_where_it_is(pattern: bool) -> None:
    """Whatever else a new version of the program reads with it: no record is counted twice, and its time is its own."""
    before: TestApp | None = None
    orders_at = TopicPartition("orders", 0)
    versions: list[tuple[str, ...]] = [(), ("merge",), ("merge", "join"), ("join",), ()]
    for sent, lines in enumerate(versions if not pattern else [(), ("merge",), ()], start=1):
        app, orders, counts = numbered(*lines, pattern=pattern)
        async with continued(app, before) if before is not None else TestApp(app) as t:
            (name,) = (name for name in app.agents if name.startswith("stream:"))
            await feed(t, orders, [("b", Order("1", "b", 1.0), 1_000 * sent)])
            assert t.table(counts).items() == [("b", sent)], lines
            (shard,) = (shard for shard in t.worker.shards.values() if shard.number == 0)
            assert shard.input_positions.begun[name, orders_at] == sent - 1
            assert shard.input_positions.begun["mail", orders_at] == 0
            assert shard.subtopology_of(name).stream_time == 1_000 * sent
        before = t


async def test_times_of_pipelines_stay_their_own() -> None:
    """A stream that is behind does not get the time of an agent that is ahead, when it reads another topic as well."""
    before: TestApp | None = None
    for lines in ((), ("merge",), ()):
        app, orders = shop()
        stream = app.stream(orders)

        async def slow(order: Order, app: ms.App = app) -> None:
            await app.clock.sleep(3_600 if order.id == "2" else 0)

        stream.foreach(slow)
        if lines:
            stream.merge(app.stream(app.topic("others", value=Order))).foreach(print)

        @app.agent(orders)
        async def mail(stream: ms.Stream[Order]) -> None:
            async for _ in stream:
                pass

        async with continued(app, before) if before is not None else TestApp(app) as t:
            if before is None:
                for id_, time in (("1", 1_000), ("1", 2_000), ("2", 80_000), ("1", 90_000)):
                    await feed(t, orders, [("b", Order(id_, "b", 1.0), time)])
            (shard,) = (shard for shard in t.worker.shards.values() if shard.number == 0)
            (name,) = (name for name in app.agents if name.startswith("stream:"))
            times = {one: shard.subtopology_of(one).cut_time for one in (name, "mail")}
            assert 1_000 <= times[name] < 80_000 <= times["mail"]
        before = t


async def test_declarations_are_not_used_up() -> None:
    """A stream is a value: it may be used twice, and the app may run again."""
    app, orders = shop()
    first, second = app.topic("first", value=str), app.topic("second", value=str)
    ids = app.stream(orders).map(lambda order: order.id)
    ids.map(str.upper).to(first)
    ids.to(second)
    for _ in range(2):
        async with TestApp(app) as t:
            await t.send(orders, Order("a", "x", 1.0))
            assert (t.sent(first), t.sent(second)) == (["A"], ["a"])


# -- names ----------------------------------------------------------------------------------------


def test_names_come_from_what_is_done() -> None:
    """Tables are named after source and operator, and so are their changelogs."""
    app, orders = shop()
    stream = app.stream(orders)
    stream.group_by().count()
    stream.group_by("id").sum("amount")
    stream.group_by().top_k(3, by="amount")
    assert sorted(app.tables) == ["orders-by-id-sum", "orders-count", "orders-top-3"]
    assert app.topology.tables["orders-count"].changelog == "shop-orders-count-changelog"


def test_names_that_clash() -> None:
    """Each clash is an error that proposes a name."""
    app, orders = shop()
    stream = app.stream(orders)
    stream.group_by().count()
    with pytest.raises(TopologyError, match="orders-count"):
        stream.filter(bool).group_by().count()
    with pytest.raises(TopologyError, match=r"name='orders-count-2'"):
        stream.group_by().sum(name="orders-count")
    stream.key_by("id").repartition(name="moved")
    with pytest.raises(TopologyError, match=r"name='moved-2'"):
        stream.key_by(lambda order: "x").repartition(name="moved")
    rekeyed = stream.key_by(lambda order: order.id)
    rekeyed.to_table("all")
    with pytest.raises(TopologyError, match=r"\.repartition\(name='orders-keyed-2'\) after key_by"):
        rekeyed.filter(bool).to_table("some")
    with pytest.raises(TopologyError, match="give it a name, for example group_by"):
        stream.group_by(lambda order: order.id)
    with pytest.raises(TopologyError, match="one of the branches already"):
        stream.split({"large": bool}, default="large")
    app.table("plain", key=str, value=int)
    with pytest.raises(TopologyError, match="plain"):
        stream.to_table("plain")


def test_other_partitions_need_another_name() -> None:
    """A topic has one number of partitions: who wants another one gives another name, or an error says so."""
    app, orders = shop()
    stream = app.stream(orders)
    stream.repartition(partitions=3)
    stream.repartition()
    stream.repartition(partitions=3)
    with pytest.raises(
        TopologyError, match=r"partitions= was 3\. .*\(partitions=4, name='orders-2'\)"
    ):
        stream.repartition(partitions=4)
    stream.repartition(partitions=4, name="orders-2")
    stream.key_by("id").by_key()
    with pytest.raises(TopologyError, match="partitions= was left out"):
        stream.key_by("id").repartition(partitions=5)
    assert {name: app.topics[name].partitions for name in app.topics if name != "orders"} == {
        "shop-orders-repartition": 3,
        "shop-orders-2-repartition": 4,
        "shop-orders-by-id-repartition": None,
    }


def test_topics_of_others() -> None:
    """A stream reads topics of its own app, and at least one."""
    app, orders = shop()
    other, _ = shop()
    with pytest.raises(TopologyError, match="needs the topics"):
        app.stream()
    with pytest.raises(TopologyError, match="orders"):
        other.stream(orders)


def test_partitions_have_to_fit() -> None:
    """Tables that are joined by key have to be co-partitioned: else an error before the first record."""
    app = ms.App("shop", partitions=2)
    left = app.table("left", topic=app.topic("l", value=str, partitions=2))
    right = app.table("right", topic=app.topic("r", value=str, partitions=3))
    with pytest.raises(TopologyError, match="'l' has 2 partitions and 'r' has 3"):
        left.join(right, lambda a, b: a + b)
    merged = app.stream(app.topics["l"]).merge(app.stream(app.topics["r"]))
    merged.to(app.topic("out", value=str))
    with pytest.raises(PartitionCountError, match="l has 2, r has 3"):
        app.topology.shard_counts()

"""State of tables and streams that a program does not declare any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import TopologyError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.testing import TestApp
from millstream.worker import find_orphans
from tests.kit import Order, continued

if TYPE_CHECKING:
    from collections.abc import Callable


def program(table: str, app_id: str = "shop") -> tuple[ms.App, ms.Topic[Order]]:
    app = ms.App(app_id, partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    app.stream(orders).group_by().count(name=table)
    return app, orders


async def test_a_renamed_table() -> None:
    """A worker does not begin with an empty table where one of another name was: the error says how to go on."""
    app, orders = program("per-account")
    async with TestApp(app) as before:
        await before.send(orders, Order("ada", 1.0))
    with pytest.raises(TopologyError) as raised:
        async with continued(program("by-account")[0], before):
            pass
    assert str(raised.value) == (
        "app 'shop' has left state behind: the log holds table 'per-account' (2 records in"
        " shop-per-account-changelog), which the program does not declare any more. If it has got another"
        " name, give it the old one back: name='per-account'. If it is to go: millstream reset --orphans"
    )
    again, orders = program("per-account")
    async with continued(again, before) as t:
        await t.send(orders, Order("ada", 1.0))
        assert t.table(again.tables["per-account"].table) == {"ada": 2}


async def test_what_is_no_orphan() -> None:
    """An empty changelog is none, and neither are topics of an app whose id begins like ours."""
    app, _ = program("per-account")
    async with TestApp(app) as before:
        pass
    async with continued(program("by-account")[0], before):
        pass
    other, orders = program("per-account", "shop-eu")
    async with continued(other, before) as t:
        await t.send(orders, Order("ada", 1.0))
        before = t
    async with continued(program("by-account")[0], before):
        pass


async def test_an_app_that_was_not_there_for_a_while() -> None:
    """Its group is forgotten then; its notes tell of it, where its id begins like ours."""
    other, orders = program("per-account", "shop-eu")
    other.table("names", topic=other.topic("names", value=str))
    async with TestApp(other) as before:
        await before.send(orders, Order("ada", 1.0))
    del before._log._groups["shop-eu"]
    async with continued(program("per-account")[0], before):
        pass


async def test_the_only_timer_of_shards_is_gone() -> None:
    """What a timer remembered is no state of the program: it starts without the timer."""
    app, orders = program("per-account")

    @app.timer("1s", scope="shard")
    async def tick() -> None:
        pass

    async with TestApp(app) as before:
        await before.send(orders, Order("ada", 1.0))
        await before.advance(wall="10s")
        log = before._running.transport
        notes = TopicPartition("shop-notes-of-1-changelog", 0)
        assert (await log.end_offsets([notes]))[notes] > 0
        assert await find_orphans(app.topology.resolved({}, 1), log, await log.topics()) == {}
    async with continued(program("per-account")[0], before):
        pass


def streams(declare: Callable[[Any, Any, ms.Topic[int]], Any]) -> ms.App:
    """Over streams of orders and payments, and a topic for what comes out."""
    app = ms.App("shop", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    payments = app.topic("payments", value=Order, key_from="account")
    declare(app.stream(orders), app.stream(payments), app.topic("numbers", value=int))
    return app


def pair(order: Order, payment: Order | None) -> int:
    return 1


@pytest.mark.parametrize(
    ("before", "after", "what", "argument"),
    [
        (
            lambda orders, _, to: orders.group_by().count(name="n", emit=ms.Suppress("1m")).to(to),
            lambda orders, _, to: orders.group_by().count(name="n").to(to),
            r"what ms.Suppress\(...\) held back of 'n' \(\d+ records in shop-n-suppress-changelog\)",
            r"give back the emit= or .suppress\(\) as it was, and",
        ),
        (
            lambda orders, _, to: orders.group_by().count(name="n", emit_every="1m").to(to),
            lambda orders, _, to: orders.group_by().count(name="n").to(to),
            r"what emit_every= held back of 'n' \(\d+ records in shop-n-emit-changelog\)",
            "give back the emit_every= as it was, and",
        ),
        (
            lambda orders, payments, to: orders.join(
                payments, pair, within="1m", how="left", name="j"
            ).to(to),
            lambda orders, payments, to: orders.join(payments, pair, within="1m", name="j").to(to),
            r"what waits for a partner in join 'j' \(\d+ records in shop-j-unmatched-changelog\)",
            "give back the how= as it was, and",
        ),
    ],
    ids=["suppress", "emit_every", "how"],
)
async def test_what_was_held_back(before: Any, after: Any, what: str, argument: str) -> None:
    """Rows that were not sent yet are not lost unseen: the error names the argument. Once they are out, nothing stops."""
    app = streams(before)
    async with TestApp(app) as held:
        await held.send(app.topics["orders"], Order("ada", 1.0))
    with pytest.raises(TopologyError, match=f"{what}.*{argument}.*reset --orphans") as raised:
        async with continued(streams(after), held):
            pass
    assert "name=" not in str(raised.value)
    app = streams(before)
    async with continued(app, held) as out:
        await out.advance(wall="10m", stream="10m")
        assert len(out.sent(app.topics["numbers"])) == 1
    async with continued(streams(after), out):
        pass


async def test_a_join_that_is_gone() -> None:
    """The name to give back is that of the join, which a program can set; so it is for a table with a buffer."""
    app = streams(
        lambda orders, payments, to: orders.join(
            payments, pair, within="1m", how="left", name="j"
        ).to(to)
    )
    async with TestApp(app) as before:
        await before.send(app.topics["orders"], Order("ada", 1.0))
        await before.send(app.topics["payments"], Order("bob", 1.0))
    with pytest.raises(
        TopologyError, match=r"holds join 'j' \(.*give it the old one back: name='j'."
    ):
        async with continued(streams(lambda *_: None), before):
            pass
    app = streams(lambda orders, *_: orders.group_by().count(name="n", emit=ms.Suppress("1m")))
    async with TestApp(app) as before:
        await before.send(app.topics["orders"], Order("ada", 1.0))
    with pytest.raises(TopologyError, match=r"holds table 'n' \(.*name='n'.*--orphans$") as raised:
        async with continued(streams(lambda *_: None), before):
            pass
    assert "held back" not in str(raised.value)


@pytest.mark.parametrize(("before", "after"), [("left", "inner"), ("inner", "left")])
async def test_a_join_of_a_stream_with_itself(before: str, after: str) -> None:
    """With another ``how`` it has other buffers under the same name, so it is not the name that has to be given back."""

    def joined(how: str) -> ms.App:
        return streams(
            lambda orders, _, to: orders.join(orders, pair, within="1m", how=how, name="j").to(to)
        )

    app = joined(before)
    async with TestApp(app) as t:
        await t.send(app.topics["orders"], Order("ada", 1.0))
    with pytest.raises(TopologyError, match=r"rows of join 'j'.*Give the how= back") as raised:
        async with continued(joined(after), t):
            pass
    assert "name=" not in str(raised.value)


async def test_records_between_two_stages() -> None:
    """Where they are all processed, nothing is lost with the topic that they went through."""
    app = streams(lambda orders, *_: orders.repartition(name="moved").group_by().count(name="n"))
    async with TestApp(app) as before:
        await before.send(app.topics["orders"], Order("ada", 1.0))
    async with continued(
        streams(lambda orders, *_: orders.group_by().count(name="n")), before
    ) as t:
        log, left = t._running.transport, TopicPartition("shop-moved-repartition", 0)
        assert (await log.end_offsets([left]))[left] == 1
        await log.append({left: [OutgoingRecord(1, b"ada", b"{}", [])]})
    with pytest.raises(TopologyError, match=r"records on their way for 'moved'.*name='moved'"):
        async with continued(streams(lambda orders, *_: orders.group_by().count(name="n")), t):
            pass


async def test_a_stream_less_in_a_cogroup() -> None:
    """The event time of each stream is kept beside the table; without them nothing of the results is lost."""

    def add(count: int, order: Order) -> int:
        return count + 1

    def both(orders: Any, payments: Any, to: Any) -> None:
        groups = orders.group_by().cogroup(add).cogroup(payments.group_by(), add)
        groups.tumbling("1m").aggregate(default=0, name="n")

    app = streams(both)
    async with TestApp(app) as before:
        await before.send(app.topics["orders"], Order("ada", 1.0))
    after = streams(
        lambda orders, *_: (
            orders.group_by().cogroup(add).tumbling("1m").aggregate(default=0, name="n")
        )
    )
    async with continued(after, before) as t:
        assert "shop-n-time-0-changelog" in await t._running.transport.topics()

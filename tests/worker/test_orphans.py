"""State of tables and streams that a program does not declare any more."""

from __future__ import annotations

import pytest

import millstream as ms
from millstream.errors import TopologyError
from millstream.records import TopicPartition
from millstream.testing import TestApp
from millstream.worker import find_orphans
from tests.kit import Order, continued


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

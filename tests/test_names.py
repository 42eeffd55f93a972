"""Names that programs written elsewhere rely on: what is called how, and which arguments it takes."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.client import Client
from millstream.tables import View, WindowView
from millstream.testing import TestApp

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = "grace retention idle_timeout"
NAMES: list[tuple[Any, str]] = [
    (ms.App, "id lifespan autodiscover clock settings"),
    (ms.App.running, "worker web"),
    (
        ms.App.topic,
        "names pattern key value key_from codec key_codec partitions retention compacted timestamp"
        " on_error max_wait idle_timeout",
    ),
    (ms.App.agent, "sources name concurrency ordered_by sink on_error"),
    (ms.App.table, "name key value default topic like partitions ttl on_change upgrade"),
    (ms.App.global_table, "name topic key value default"),
    (ms.App.set_table, "name key value"),
    (ms.App.timer, "interval scope time"),
    (ms.App.crontab, "expression timezone"),
    (ms.App.on_shards, "assigned revoked"),
    (ms.App.on_state, "function"),
    (ms.App.task, "function"),
    (ms.App.command, "args kwargs"),
    (ms.App.page, "path"),
    (ms.App.mount, "path other"),
    (ms.App.main, "arguments"),
    (ms.Topic.send, "value key timestamp headers partition"),
    (ms.Stream.take, "count within"),
    (ms.Stream.filter, "keep"),
    (ms.Stream.map, "function"),
    (ms.Stream.enumerate, "start"),
    (ms.Stream.events, ""),
    (ms.Stream.items, ""),
    (ms.Agent.cast, "value key"),
    (ms.Agent.ask, "value key timeout"),
    (ms.Agent.map, "values"),
    (ms.Agent.join, "values"),
    (ms.Event, "key value timestamp offset partition topic headers"),
    (ms.Retry, "times backoff max_backoff then"),
    (ms.Dlq, "topic"),
    (ms.Table.view, "stale"),
    (ms.Table.items, "start end prefix reverse"),
    (ms.Table.keys, "start end prefix reverse"),
    (ms.Table.values, "start end prefix reverse"),
    (ms.Table.tumbling, f"size {WINDOW}"),
    (ms.Table.hopping, f"size advance {WINDOW}"),
    (ms.Table.sliding, f"width {WINDOW}"),
    (ms.Table.session, f"gap {WINDOW}"),
    (ms.Table.calendar, f"unit timezone {WINDOW}"),
    (WindowView.apply, "function"),
    (WindowView.event_windows, ""),
    (WindowView.current, ""),
    (WindowView.now, ""),
    (WindowView.at, "time"),
    (WindowView.delta, "by"),
    (WindowView.windows, "start end"),
    (ms.WindowedTable.on_close, "function"),
    (ms.WindowedTable.view, "stale"),
    (View.get, "key default at at_least"),
    (View.items, "start end prefix reverse"),
    (View.windows, "key start end"),
    (View.changes, "key"),
    (Client, "url"),
    (Client.table, "name"),
    (TestApp, "app"),
    (TestApp.send, "topic value key timestamp headers partition"),
    (TestApp.advance, "wall stream"),
    (TestApp.table, "table"),
    (TestApp.sent, "topic"),
    (TestApp.records, "topic"),
    (TestApp.crash, ""),
    (TestApp.rebalance, ""),
]
SETTINGS = (
    "broker processing_guarantee commit_interval partitions replication state_dir on_error web web_host"
    " web_port"
)


@pytest.mark.parametrize(
    ("function", "names"), NAMES, ids=lambda value: getattr(value, "__qualname__", "")
)
def test_arguments(function: Any, names: str) -> None:
    """Each takes these arguments."""
    taken = inspect.signature(function).parameters
    assert [name for name in names.split() if name not in taken] == []


def test_settings() -> None:
    """Each setting can be given to the app, and read from one frozen object."""
    settings = ms.App("x").settings
    assert [name for name in SETTINGS.split() if not hasattr(settings, name)] == []
    with pytest.raises(AttributeError):
        settings.partitions = 7  # type: ignore[misc]


app = ms.App("shop")


class Order(msgspec.Struct):
    account: str
    amount: float
    at: datetime


orders = app.topic("orders", value=Order, key_from="account", timestamp="at")
large = app.topic("large-orders", value=Order, key_from="account")
totals = app.table("totals", key=str, value=float, default=0.0)
hourly = app.table("orders-per-hour", key=str, value=int, default=0).tumbling(
    "1h", grace="5m", retention="7d"
)


@app.agent(orders)
async def count(stream: ms.Stream[Order]) -> None:
    """Totals per account, and the accounts that spend much."""
    async for order in stream:
        totals[order.account] += order.amount
        hourly[order.account] += 1
        if totals[order.account] > 10_000:
            await large.send(order)


noon = datetime(2024, 5, 1, 12, tzinfo=UTC)


async def test_counts(millstream_test: Callable[..., TestApp]) -> None:
    """The first program that anybody writes, and its test."""
    async with millstream_test(app) as t:
        await t.send(orders, Order("ada", 5.0, at=noon))
        assert t.table(totals)["ada"] == 5.0
        await t.advance(stream="2h")  # time moves by hand: no sleeping
        assert t.sent(large) == []
        await t.crash()
        await t.rebalance()
        await t.send(orders, Order("ada", 10_000.0, at=noon))
        assert t.sent(large) == [Order("ada", 10_000.0, at=noon)]
        assert [value for _, value in t.table(hourly).items()] == [
            1
        ]  # two hours later it was too late

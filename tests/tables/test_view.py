"""Views: committed tables as Python objects, in this process and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from millstream.client import Client
from millstream.errors import BadQueryError, DecodeError, UnavailableError, UnknownTableError
from millstream.records import Position
from millstream.tables._query import (
    Entry,
    Page,
    merge_pages,
)
from millstream.tables._view import View, ViewChange
from millstream.windows import Window
from tests.web.memory import (
    HOUR_MS,
    TABLES,
    MemoryTables,
    Order,
    keys_of,
    running,
    table_info,
)

OpenView = Callable[..., View[Any, Any]]
TYPES: dict[str, dict[str, Any]] = {
    "totals": {"key_type": str, "value_type": float},
    "last": {"key_type": str, "value_type": Order},
    "pairs": {"key_type": tuple[str, int], "value_type": int},
    "hourly": {"key_type": str, "value_type": int},
    "recent": {"key_type": str, "value_type": int},
}


@pytest.fixture
def tables() -> MemoryTables:
    """Tables of one worker."""
    return MemoryTables()


@pytest.fixture(params=["here", "client", "client without types"])
async def open_view(
    request: pytest.FixtureRequest, tables: MemoryTables
) -> AsyncIterator[OpenView]:
    """What `Table.view` gives, and what `Client.table` gives."""
    if request.param == "here":
        yield lambda name, **more: View(TABLES[name], tables, **more)
        return
    typed = request.param == "client"
    async with asyncio.timeout(20), running(tables) as app, Client(app.served.url) as client:
        yield lambda name: client.table(name, **(TYPES[name] if typed else {}))


async def test_get(tables: MemoryTables, open_view: OpenView) -> None:
    """The value of a key, or the default."""
    tables.put("totals", "ada", 12.5)
    tables.put("totals", "a/b c?&ü", 1.0)
    view = open_view("totals")
    assert await view.get("ada") == 12.5
    assert await view.get("a/b c?&ü") == 1.0
    assert await view.get("eve") is None
    assert await view.get("eve", 0.0) == 0.0
    assert repr(view) == "<View 'totals'>"


async def test_keys_of_a_tuple(tables: MemoryTables, open_view: OpenView) -> None:
    """Keys of several parts, and ranges of them."""
    for pair in [("a", 1), ("a", 2), ("b", 1)]:
        tables.put("pairs", pair, pair[1])
    view = open_view("pairs")
    assert await view.get(("a", 2)) == 2
    assert [key async for key, _ in view.items(prefix=("a",))] == [("a", 1), ("a", 2)]
    assert [key async for key, _ in view.items(start=("a", 2))] == [("a", 2), ("b", 1)]


async def test_items(tables: MemoryTables, open_view: OpenView) -> None:
    """Entries of all shards in key order, within bounds, over more than one page."""
    keys = keys_of(range(4), 700)
    for number, key in enumerate(keys):
        tables.put("totals", key, float(number))
    view = open_view("totals")
    assert [pair async for pair in view.items()] == [(k, float(n)) for n, k in enumerate(keys)]
    found = [key async for key, _ in view.items(start=keys[3], end=keys[5])]
    assert found == keys[3:5]
    assert [key async for key, _ in view.items(prefix="key-01")] == keys[10:20]
    assert [key async for key, _ in view.items(end=keys[650], reverse=True)] == keys[649::-1]
    with pytest.raises(BadQueryError, match="not both"):
        await anext(view.items(prefix="a", end="b"))


async def test_windows(tables: MemoryTables, open_view: OpenView) -> None:
    """In a windowed table a key has a value for each window."""
    windows = [Window(hour * HOUR_MS, (hour + 1) * HOUR_MS) for hour in range(4)]
    for number, window in enumerate(windows):
        tables.put("hourly", "EWR", number, window)
        tables.put("hourly", "JFK", number * 10, window)
    view = open_view("hourly")
    assert await view.get("EWR") == 3, "the newest window"
    assert await view.get("EWR", at=HOUR_MS + 5) == 1
    assert await view.get("EWR", at=datetime(1970, 1, 1, 2, 30, tzinfo=UTC)) == 2
    assert await view.get("EWR", at=9 * HOUR_MS) is None
    assert [found async for found in view.windows("JFK")] == [
        (window, number * 10) for number, window in enumerate(windows)
    ]
    between = view.windows("EWR", start=HOUR_MS, end=3 * HOUR_MS)
    assert [window async for window, _ in between] == windows[1:3]
    backwards = view.windows("EWR", start=HOUR_MS, reverse=True)
    assert [window async for window, _ in backwards] == windows[:0:-1]
    items = [pair async for pair in view.items()]
    assert items[:2] == [(("EWR", windows[0]), 0), (("JFK", windows[0]), 0)]
    assert len(items) == 8


async def test_windows_of_a_plain_table(tables: MemoryTables, open_view: OpenView) -> None:
    """Asking a table without windows for them is an error."""
    tables.put("totals", "ada", 1.0)
    view = open_view("totals")
    with pytest.raises(BadQueryError, match="has no windows"):
        await view.get("ada", at=5)
    with pytest.raises(BadQueryError, match="has no windows"):
        await anext(view.windows("ada"))


async def test_changes(tables: MemoryTables, open_view: OpenView) -> None:
    """Changes come as they are committed: of one key or all, deletions and gaps told apart."""
    async with contextlib.aclosing(open_view("totals").changes("ada")) as changes:  # type: ignore[type-var]
        following = asyncio.ensure_future(anext(changes))
        await tables.until(lambda: tables.followers)
        tables.put("totals", "bob", 1.0)
        tables.put("totals", "ada", 2.0)
        tables.put("totals", "ada", ...)
        tables.overrun("totals")
        assert await following == ViewChange("ada", 2.0)
        assert await anext(changes) == ViewChange("ada", None, deleted=True)
        assert await anext(changes) == ViewChange(None, None, missed=True)
    await tables.until(lambda: not tables.followers)
    async with contextlib.aclosing(open_view("hourly").changes()) as changes:  # type: ignore[type-var]
        following = asyncio.ensure_future(anext(changes))
        await tables.until(lambda: tables.followers)
        tables.put("hourly", "EWR", 1, Window(0, HOUR_MS))
        assert await following == ViewChange("EWR", 1, Window(0, HOUR_MS))


async def test_values_of_a_type(tables: MemoryTables, open_view: OpenView) -> None:
    """Values are what the table declares, or what JSON makes of them for who declares nothing."""
    tables.put("last", "ada", Order("ada", 5.0))
    value = await open_view("last").get("ada")
    assert value in (Order("ada", 5.0), {"account": "ada", "amount": 5.0})


async def test_read_your_writes(tables: MemoryTables) -> None:
    """Positions are taken as ``send`` returns them, or as text."""
    view: View[str, float] = View(TABLES["totals"], tables, stale_ms=700)
    await view.get("ada", at_least=Position("orders", 3, 7))
    assert tables.asked[-1].at_least == (("orders", 3, 7),)
    assert tables.asked[-1].stale_ms == 700
    await view.get("ada", at_least=["orders/1@2", Position("orders", 0, 1)])
    assert list(tables.asked[-1].at_least) == [("orders", 1, 2), ("orders", 0, 1)]


async def test_a_key_of_another_type(tables: MemoryTables) -> None:
    """A key that is not of the declared type is a TypeError."""
    view: View[Any, Any] = View(TABLES["totals"], tables)
    with pytest.raises(TypeError, match="str"):
        await view.get(5)


async def test_a_value_that_does_not_decode(tables: MemoryTables) -> None:
    """A stored value of another form is an error that names table and key."""
    tables.put("totals", "ada", 1.5)
    view: View[str, Order] = View(table_info("totals", str, Order), tables)
    with pytest.raises(DecodeError, match="table 'totals', key 'ada'"):
        await view.get("ada")


async def test_a_client_without_a_server() -> None:
    """A worker that does not answer, and a table that is not there, are errors of their own kind."""
    async with Client("http://127.0.0.1:9") as client:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
            await client.table("totals").get("ada")
        with pytest.raises(UnavailableError):
            await anext(client.table("totals").changes())
    tables = MemoryTables()
    async with running(tables) as app, Client(f"{app.served.url}/") as client:
        with pytest.raises(UnknownTableError, match="'nope'"):
            await client.table("nope").get("ada")
        with pytest.raises(UnknownTableError):
            await anext(client.table("nope").changes())
        assert [row["name"] for row in await client.tables()] == sorted(TABLES)


async def test_a_client_follows_on_after_a_break(tables: MemoryTables) -> None:
    """When the worker restarts, a client goes on, and says that it may have missed something."""
    async with asyncio.timeout(20), running(tables) as app, Client(app.served.url) as client:
        changes = client.table("totals").changes()
        following = asyncio.ensure_future(anext(changes))
        await tables.until(lambda: tables.followers)
        tables.put("totals", "ada", 0.0)
        assert (await following).value == 0.0
        app.web.state.closing.close()
        app.web.state.closing.closed = False
        assert (await anext(changes)).missed
        tables.put("totals", "ada", 1.0)
        assert (await anext(changes)).value == 1.0
        await changes.aclose()  # type: ignore[attr-defined]


async def test_a_client_of_ones_own(tables: MemoryTables) -> None:
    """A client that is given is used, and left open."""
    async with running(tables) as app, httpx.AsyncClient() as http:
        async with Client(app.served.url, http=http) as client:
            assert await client.table("totals", stale="5s").get("ada") is None
        assert not http.is_closed
        assert tables.asked[-1].stale_ms == 5_000


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_are_merged_up_to_where_all_of_them_reach(reverse: bool) -> None:
    """What lies beyond the end of a page that is not the last one is left for the next page."""

    def page(keys: str, after: str | None = None) -> Page:
        entries = [Entry(key.encode(), None, b"1") for key in keys]
        return Page(entries=entries, position={}, next=None if after is None else after.encode())

    def merged(limit: int, *pages: Page) -> tuple[str, bytes | None]:
        found = merge_pages(TABLES["totals"], pages, limit=limit, reverse=reverse)
        return "".join(entry.key.decode() for entry in found.entries), found.next

    if reverse:
        assert merged(9, page("zy", "y"), page("xwv")) == ("zy", b"y")
        assert merged(9, page("z"), page("y")) == ("zy", None)
        return
    assert merged(9, page("abg", "g"), page("cdefh")) == ("abcdefg", b"g")
    assert merged(9, page("", "c"), page("abd")) == ("ab", b"c")
    assert merged(2, page("ac"), page("b")) == ("ab", b"b")
    assert merged(3, page("ac"), page("b")) == ("abc", None)

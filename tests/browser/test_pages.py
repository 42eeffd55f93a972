"""The pages in a browser: what people see, and that it changes by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from millstream.web import build_web, serve
from millstream.windows import Window
from tests.browser.webdriver import Browser, browsing
from tests.web.memory import HOUR_MS, MemoryFacts, MemoryTables, Order, RunningApp, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T0 = 1_357_034_400_000
"""2013-01-01 10:00 UTC."""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A window."""
    async with browsing() as found:
        yield found


@pytest.fixture
async def app() -> AsyncIterator[RunningApp]:
    """An app on a port."""
    async with running(MemoryTables()) as found:
        yield found


async def test_a_table_changes_while_one_looks(browser: Browser, app: RunningApp) -> None:
    """Values, new keys and deletions appear as they are committed, without loading the page again."""
    tables = app.tables
    tables.put("totals", "ada", 12.5)
    tables.put("totals", "zoë", 1.0)
    await browser.open(f"{app.served.url}/tables")
    assert "totals" in await browser.text("tbody")
    await browser.open(f"{app.served.url}/tables/totals")
    assert await browser.text('[data-id="ada"] td') == "12.5"
    await browser.until("[data-pulse]", "live")
    await browser.run("window.kept = true")
    tables.put("totals", "ada", 99.75)
    await browser.until('[data-id="ada"] td', "99.75")
    assert "changed" in await browser.run(
        "return document.querySelector('[data-id=ada] td').className"
    )
    tables.put("totals", "bob", 3.0)
    await browser.until('[data-id="bob"] td', "3")
    ids = "return [...document.querySelectorAll('tbody tr')].map((row) => row.dataset.id)"
    assert await browser.run(ids) == ["ada", "bob", "zoë"]
    tables.put("totals", "ada", ...)
    await browser.until_true("return !document.querySelector('[data-id=ada]')")
    assert await browser.run(ids) == ["bob", "zoë"]
    assert await browser.run("return window.kept") is True
    assert await browser.errors() == []


async def test_values_of_several_fields(browser: Browser, app: RunningApp) -> None:
    """Each field has a column, and changes there."""
    app.tables.put("last", "ada", Order("ada", 5.0))
    await browser.open(f"{app.served.url}/tables/last")
    assert (await browser.text("thead")).split() == ["Key", "account", "amount"]
    await browser.until("[data-pulse]", "live")
    app.tables.put("last", "ada", Order("ada", 6.5))
    await browser.until('[data-id="ada"] td:last-child', "6.5")
    assert await browser.errors() == []


async def test_windows(browser: Browser, app: RunningApp) -> None:
    """A windowed table shows its newest windows first, and those of one key on its page."""
    for hour in range(3):
        start = T0 + hour * HOUR_MS
        app.tables.put("hourly", "EWR", hour, Window(start, start + HOUR_MS))
    await browser.open(f"{app.served.url}/tables/hourly")
    assert "2013-01-01 12:00 – 13:00" in await browser.text("tbody tr")
    await browser.open(f"{app.served.url}/tables/hourly/keys/EWR")
    await browser.until("[data-pulse]", "live")
    start = T0 + 3 * HOUR_MS
    app.tables.put("hourly", "EWR", 77, Window(start, start + HOUR_MS))
    await browser.until("tbody tr", "2013-01-01 13:00 – 14:00")
    assert "77" in await browser.text("tbody tr")
    assert await browser.errors() == []


async def test_windows_of_a_time_zone(browser: Browser, app: RunningApp) -> None:
    """Days are shown as they are counted, by the server and by the script."""
    start = T0 - 5 * HOUR_MS  # midnight in New York
    days = [Window(start + n * 24 * HOUR_MS, start + (n + 1) * 24 * HOUR_MS) for n in range(2)]
    app.tables.put("daily", "EWR", 1, days[0])
    await browser.open(f"{app.served.url}/tables/daily")
    assert "Window (America/New_York)" in await browser.text("thead")
    assert "2013-01-01 00:00 – 2013-01-02 00:00" in await browser.text("tbody tr")
    await browser.until("[data-pulse]", "live")
    app.tables.put("daily", "EWR", 2, days[1])
    await browser.until("tbody tr", "2013-01-02 00:00 – 2013-01-03 00:00")
    assert await browser.errors() == []


async def test_looking_for_a_key_by_keyboard(browser: Browser, app: RunningApp) -> None:
    """The slash goes to the search field; a prefix narrows the table; a key's value is live too."""
    for key in ("ada", "adam", "bob", "a/b"):
        app.tables.put("totals", key, 1.0)
    await browser.open(f"{app.served.url}/tables/totals")
    await browser.press("/ad\ue007")
    await browser.until("body", "adam")
    await browser.until_true("return !document.querySelector('[data-id=bob]')")
    await browser.press("/")
    await browser.press("\ue004a/b\ue007")
    await browser.until("h1", "a/b")
    await browser.until("[data-pulse]", "live")
    app.tables.put("totals", "a/b", 2.25)
    await browser.until("pre.value", "2.25")
    assert await browser.errors() == []


async def test_the_overview_counts(browser: Browser, app: RunningApp) -> None:
    """Lag and commits follow what the app tells."""
    await browser.open(f"{app.served.url}/")
    assert "count" in await browser.text('[data-live="agents"]')
    app.facts.lag = 4_321
    await browser.until('[data-tile="lag"]', "4,321")
    await browser.until('[data-live="agents"]', "4,321")
    await browser.until('[data-tile="rate"]', "0")
    assert await browser.errors() == []


async def test_every_page_below_a_prefix(browser: Browser) -> None:
    """Pages load their files, and change, where the web part is mounted below a prefix."""
    tables = MemoryTables()
    tables.put("totals", "ada", 1.0)
    outer = Starlette(routes=[Mount("/x", build_web(tables, MemoryFacts()))])
    async with serve(outer, port=0) as served:
        for page in ("", "tables", "agents", "topics", "workers", "topology", "docs"):
            await browser.open(f"{served.url}/x/{page}")
            loaded = "return [...document.styleSheets].every((sheet) => sheet.cssRules.length > 0)"
            assert await browser.run(loaded) is True
            assert await browser.text("h1")
        await browser.open(f"{served.url}/x/tables/totals")
        await browser.until("[data-pulse]", "live")
        tables.put("totals", "ada", 2.5)
        await browser.until('[data-id="ada"] td', "2.5")
        assert await browser.errors() == []
        await browser.open("about:blank")
        await tables.until(lambda: not tables.followers)

"""Tables over HTTP: what each address answers, and how it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from millstream.web import build_web
from millstream.windows import Window
from tests.web.memory import HOUR_MS, MemoryFacts, MemoryTables, Order, keys_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T0 = 1_357_034_400_000
"""2013-01-01 10:00 UTC."""


@pytest.fixture
def tables() -> MemoryTables:
    """A few entries in each table."""
    tables = MemoryTables()
    for key, value in {"ada": 12.5, "adam": 2.0, "bob": 7.0, "zoë/1 2": -1.0, "": 0.0}.items():
        tables.put("totals", key, value)
    tables.put("last", "ada", Order("ada", 5.0))
    for pair in [("a", 1), ("a", 2), ("b", 1)]:
        tables.put("pairs", pair, pair[1])
    for hour in range(3):
        for key in ("EWR", "JFK"):
            start = T0 + hour * HOUR_MS
            tables.put("hourly", key, hour + 1, Window(start, start + HOUR_MS))
    for end in (10_000, 25_000):
        tables.put("recent", "x", end, Window(end - 10_000, end))
    return tables


@pytest.fixture
async def http(tables: MemoryTables) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app."""
    transport = httpx.ASGITransport(build_web(tables, MemoryFacts()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_one_value(http: httpx.AsyncClient) -> None:
    """A value comes with its key and the position that it reflects, as the documentation shows it."""
    answer = await http.get("/tables/totals/keys/ada")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    shard = next(iter(answer.json()["position"]))
    offset = answer.json()["position"][shard]
    assert answer.text == f'{{"key":"ada","value":12.5,"position":{{"{shard}":{offset}}}}}'


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        # spaces, a slash and letters beyond ASCII, percent-encoded
        ("/tables/totals/keys/zo%C3%AB%2F1%202", "zoë/1 2", -1.0),
        # the empty key
        ("/tables/totals/keys/", "", 0.0),
        # a tuple, as JSON
        ('/tables/pairs/keys/["a",2]', ["a", 2], 2),
        # a codec other than JSON
        ("/tables/last/keys/ada", "ada", {"account": "ada", "amount": 5.0}),
    ],
)
async def test_keys_by_their_type(http: httpx.AsyncClient, path: str, key: Any, value: Any) -> None:
    """Keys are read by the table's type, and values are shown as JSON whatever their codec."""
    answer = (await http.get(path)).json()
    assert (answer["key"], answer["value"]) == (key, value)


@pytest.mark.parametrize(
    ("path", "status", "kind", "says"),
    [
        ("/tables/nope", 404, "no-such-table", "There is no table 'nope'"),
        ("/tables/nope/keys/a", 404, "no-such-table", "There is no table 'nope'"),
        ("/tables/nope/changes", 404, "no-such-table", "There is no table 'nope'"),
        ("/tables/totals/keys/eve", 404, "no-such-key", "Table 'totals' has no key 'eve'"),
        ("/tables/hourly/keys/LGA", 404, "no-such-key", "no key 'LGA'"),
        (
            "/tables/hourly/keys/EWR?at=5",
            404,
            "no-such-key",
            "no window of key 'EWR' at 1970-01-01T00:00:00.005+00:00",
        ),
        ("/tables/pairs/keys/a", 400, "bad-question", "tuple[str, int]"),
        ("/tables/totals?limit=0", 400, "bad-question", "from 1 to 1000"),
        ("/tables/totals?limit=x", 400, "bad-question", "from 1 to 1000"),
        ("/tables/totals?after=%21", 400, "bad-question", "what the last page had as next"),
        ("/tables/totals?preifx=a", 400, "bad-question", "preifx= means nothing here"),
        ("/tables/totals?at=5", 400, "bad-question", "has no windows"),
        ("/tables/totals?prefix=a&start=b", 400, "bad-question", "exclude each other"),
        ("/tables/totals?at_least=orders", 400, "bad-question", "topic/partition@offset"),
        ("/tables/totals?stale=soon", 400, "bad-question", "not a duration"),
        ("/tables/hourly?from=2013-01-01", 400, "bad-question", "ISO 8601 with a zone"),
        ("/tables/totals/changes?from=1", 400, "bad-question", "there is key"),
        ("/nothing", 404, "no-such-page", "nothing at this address"),
    ],
)
async def test_problems(
    http: httpx.AsyncClient, path: str, status: int, kind: str, says: str
) -> None:
    """What is wrong is said as RFC 9457 has it, so that a table can be told from a key."""
    answer = await http.get(path)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    assert problem["type"] == f"urn:millstream:{kind}"
    assert says in problem["detail"]
    assert problem["title"]


async def test_method_not_allowed(http: httpx.AsyncClient) -> None:
    """What the router refuses is a problem too."""
    answer = await http.post("/tables")
    assert answer.status_code == 405
    assert answer.json() == {
        "type": "about:blank",
        "title": "Method Not Allowed",
        "status": 405,
        "detail": "Method Not Allowed",
    }


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("", ["", "ada", "adam", "bob", "zoë/1 2"]),
        ("?prefix=ad", ["ada", "adam"]),
        ("?start=adam", ["adam", "bob", "zoë/1 2"]),
        ("?start=ada&end=bob", ["ada", "adam"]),
        ("?reverse=1&limit=2", ["zoë/1 2", "bob"]),
        ("?prefix=nobody", []),
    ],
)
async def test_ranges(http: httpx.AsyncClient, query: str, keys: list[str]) -> None:
    """Pages are merged over the shards in key order."""
    page = (await http.get(f"/tables/totals{query}")).json()
    assert [row["key"] for row in page["rows"]] == keys
    assert set(page["position"]) == {"orders/0", "orders/1", "orders/2", "orders/3"}


async def test_prefix_of_a_tuple(http: httpx.AsyncClient) -> None:
    """For tuples the prefix is their first elements."""
    page = (await http.get('/tables/pairs?prefix=["a"]')).json()
    assert [row["key"] for row in page["rows"]] == [["a", 1], ["a", 2]]
    page = (await http.get("/tables/pairs?prefix=a")).json()
    assert len(page["rows"]) == 2


async def test_pages_follow_one_another(http: httpx.AsyncClient, tables: MemoryTables) -> None:
    """Going on after the last page gives each entry once, in either direction."""
    for key in keys_of(range(4), 100):
        tables.put("totals", key, 1.0)
    whole = (await http.get("/tables/totals?limit=1000")).json()
    assert whole["next"] is None
    for extra in ("", "&reverse=1"):
        found: list[str] = []
        query = f"limit=7{extra}"
        while True:
            page = (await http.get(f"/tables/totals?{query}")).json()
            found += [row["key"] for row in page["rows"]]
            if page["next"] is None:
                break
            query = f"limit=7{extra}&after={page['next']}"
        expected = [row["key"] for row in whole["rows"]]
        assert found == (expected[::-1] if extra else expected)


async def test_windows_of_a_key(http: httpx.AsyncClient) -> None:
    """A windowed table shows a row for each window of the key, the oldest first."""
    page = (await http.get("/tables/hourly/keys/EWR")).json()
    assert page["rows"] == [
        {
            "key": "EWR",
            "value": hour + 1,
            "window": {"start": T0 + hour * HOUR_MS, "end": T0 + (hour + 1) * HOUR_MS},
        }
        for hour in range(3)
    ]


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (f"?from={T0 + HOUR_MS}", [2, 3]),
        (f"?from={T0}&to={T0 + HOUR_MS}", [1]),
        ("?from=2013-01-01T11:00:00Z", [2, 3]),
        # a plus sign that was not encoded
        ("?from=2013-01-01T12:00:00+01:00", [2, 3]),
        ("?reverse=1&limit=2", [3, 2]),
        ("?to=0", []),
    ],
)
async def test_windows_in_a_range(http: httpx.AsyncClient, query: str, values: list[int]) -> None:
    """``from`` and ``to`` bound the windows' starts, in ms or as ISO 8601."""
    page = (await http.get(f"/tables/hourly/keys/EWR{query}")).json()
    assert [row["value"] for row in page["rows"]] == values


async def test_window_at_a_time(http: httpx.AsyncClient) -> None:
    """``at`` gives the window that contains the time, as one row."""
    answer = (await http.get(f"/tables/hourly/keys/JFK?at={T0 + HOUR_MS + 5}")).json()
    assert (answer["value"], answer["window"]["start"]) == (2, T0 + HOUR_MS)
    answer = (await http.get("/tables/recent/keys/x?at=15000")).json()
    assert answer["window"] == {"start": 15_000, "end": 25_000}
    page = (await http.get(f"/tables/hourly?at={T0}")).json()
    assert [(row["key"], row["value"]) for row in page["rows"]] == [("EWR", 1), ("JFK", 1)]


async def test_windowed_table_in_order_of_time(http: httpx.AsyncClient) -> None:
    """A page of a table with aligned windows is in order of their start, then key; ranges hold."""
    page = (await http.get("/tables/hourly?reverse=1&limit=3")).json()
    found = [(row["key"], row["value"]) for row in page["rows"]]
    assert found == [("JFK", 3), ("EWR", 3), ("JFK", 2)]
    page = (await http.get("/tables/hourly?prefix=E")).json()
    assert [(row["key"], row["value"]) for row in page["rows"]] == [
        ("EWR", 1),
        ("EWR", 2),
        ("EWR", 3),
    ]


async def test_answers_that_may_be_old_say_so(
    http: httpx.AsyncClient, tables: MemoryTables
) -> None:
    """An age is passed on to who answers, in ms, and comes back with the answer."""
    tables.stale_ms = 1_200
    answer = (await http.get("/tables/totals/keys/ada?stale=5s")).json()
    assert answer["stale_ms"] == 1_200
    assert tables.asked[-1].stale_ms == 5_000
    assert (await http.get("/tables/totals?stale=2.5")).json()["stale_ms"] == 1_200
    assert tables.asked[-1].stale_ms == 2_500


async def test_records_to_wait_for(http: httpx.AsyncClient, tables: MemoryTables) -> None:
    """``at_least`` takes records as they are written everywhere, several in a list or repeated."""
    await http.get("/tables/totals/keys/ada?at_least=orders/3@5123")
    assert tables.asked[-1].at_least == (("orders", 3, 5123),)
    await http.get("/tables/totals?at_least=a/0@1,b/0@2&at_least=c/0@3")
    assert list(tables.asked[-1].at_least) == [("a", 0, 1), ("b", 0, 2), ("c", 0, 3)]


async def test_the_list_of_tables(http: httpx.AsyncClient) -> None:
    """Each table tells its types and windows."""
    rows = {row["name"]: row for row in (await http.get("/tables")).json()["rows"]}
    assert rows["totals"]["key"] == "str"
    assert rows["totals"]["value"] == "float"
    assert rows["hourly"]["windows"] == "tumbling(1h, retention=100d)"
    assert list(rows) == sorted(rows)


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html", True),
        ("application/json, text/html;q=0.5", False),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/tables", "/tables/totals", "/tables/hourly", "/tables/totals/keys/ada"),
        *("/tables/hourly/keys/EWR", "/tables/totals/keys/eve", "/topics", "/agents", "/workers"),
        *("/topology", "/docs", "/nothing", "/tables/nope"),
    ],
)
async def test_one_address_for_people_and_programs(
    http: httpx.AsyncClient, path: str, accept: str, html: bool
) -> None:
    """Who prefers HTML gets a page at the same address, everyone else JSON; errors too."""
    answer = await http.get(path, headers={"Accept": accept})
    if html:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    else:
        json.loads(answer.text)


async def test_numbers_that_json_lacks(http: httpx.AsyncClient, tables: MemoryTables) -> None:
    """Infinity in a value does not break the JSON."""
    tables.put("last", "odd", Order("odd", float("inf")))
    assert (await http.get("/tables/last/keys/odd")).json()["value"]["amount"] is None

"""Everything besides tables: facts, health, metrics, pages, prefixes, pages of the user."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount

from millstream.errors import TopologyError
from millstream.web import Cluster, build_web
from millstream.windows import Window
from tests.web.memory import MemoryFacts, MemoryTables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

HTML = {"Accept": "text/html"}
PAGES = ("/", "/tables", "/tables/totals", "/agents", "/topics", "/workers", "/topology", "/docs")


@pytest.fixture
def facts() -> MemoryFacts:
    """Facts that a test may change."""
    return MemoryFacts()


@pytest.fixture
async def http(facts: MemoryFacts) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app."""
    tables = MemoryTables()
    tables.put("totals", "a/b", 1.0)
    tables.put("totals", "<script>alert(1)</script>", 2.0)
    transport = httpx.ASGITransport(build_web(tables, facts, cluster=Cluster(tables)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_agents(http: httpx.AsyncClient, facts: MemoryFacts) -> None:
    """Each agent has its sources, concurrency and lag."""
    facts.lag = 1_234
    rows = (await http.get("/agents")).json()["rows"]
    assert rows[0]["name"] == "count"
    assert rows[0]["sources"] == ["orders"]
    assert (rows[0]["concurrency"], rows[0]["lag"]) == (2, 1_234)
    assert "1,234" in (await http.get("/agents", headers=HTML)).text


async def test_topics_and_workers(http: httpx.AsyncClient) -> None:
    """Topics have partitions and records, workers their shards."""
    assert (await http.get("/topics")).json()["rows"][0]["records"] == 12
    [worker] = (await http.get("/workers")).json()["rows"]
    assert worker["member"] == "worker-1"
    assert worker["here"] is True


async def test_topology_in_four_forms(http: httpx.AsyncClient) -> None:
    """The topology is data, a Mermaid diagram, an SVG and text."""
    answer = (await http.get("/topology")).json()
    assert answer["app"] == "shop"
    assert answer["agents"][0]["sources"] == ["orders"]
    assert answer["timers"][0]["scope"] == "shard"
    assert (await http.get("/topology?format=mermaid")).text.startswith("flowchart LR")
    svg = await http.get("/topology?format=svg")
    assert svg.headers["content-type"] == "image/svg+xml"
    assert svg.text.startswith("<svg")
    assert "orders → agent count" in (await http.get("/topology?format=text")).text
    assert (await http.get("/topology?format=png")).status_code == 400
    assert "<svg" in (await http.get("/topology", headers=HTML)).text


async def test_health(http: httpx.AsyncClient, facts: MemoryFacts) -> None:
    """Live means the process answers, ready that its shards do."""
    assert (await http.get("/health/live")).json() == {"status": "live"}
    answer = await http.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "generation": 3}
    facts.why = "2 of 4 shards are being recovered."
    answer = await http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "why": "2 of 4 shards are being recovered."}
    assert (await http.get("/health/live")).status_code == 200


async def test_metrics(http: httpx.AsyncClient) -> None:
    """Metrics are in Prometheus' text format, with what needs it escaped."""
    answer = await http.get("/metrics", headers=HTML)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text == (
        "# HELP millstream_commits_total Commits.\n"
        "# TYPE millstream_commits_total counter\n"
        "millstream_commits_total 3\n"
        "# HELP millstream_lag_records Lag\\nof all.\n"
        "# TYPE millstream_lag_records gauge\n"
        'millstream_lag_records{agent="a\\"\\\\"} 0.5\n'
    )


async def test_openapi_names_every_address(http: httpx.AsyncClient) -> None:
    """The description has the addresses, and ``/docs`` shows them to people."""
    described = (await http.get("/openapi.json")).json()
    assert described["openapi"].startswith("3.")
    assert (await http.get("/docs")).json() == described
    page = (await http.get("/docs", headers=HTML)).text
    for path in described["paths"]:
        assert path in page
        if "{" not in path:
            assert (await http.get(path)).status_code == 200


async def test_openapi_is_well_formed(http: httpx.AsyncClient) -> None:
    """Every parameter has a place and a schema, those of a path stand in it, and every reference leads somewhere."""
    described = (await http.get("/openapi.json")).json()
    for path, methods in described["paths"].items():
        for operation in methods.values():
            listed = operation["parameters"]
            assert all({"name", "in", "schema", "description"} <= set(p) for p in listed)
            named = [(p["name"], p["in"]) for p in listed]
            assert len(named) == len(set(named))
            in_path = {p["name"] for p in listed if p["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path))
            assert all(p["required"] for p in listed if p["in"] == "path")
            assert "200" in operation["responses"]
    for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(described)):
        assert reference in described["components"]["schemas"]


async def test_openapi_has_every_parameter(http: httpx.AsyncClient) -> None:
    """What an address takes, as it says itself when it is asked for something else, is described."""
    described = (await http.get("/openapi.json")).json()["paths"]
    for path, asked in [
        ("/tables/{name}", "/tables/hourly"),
        ("/tables/{name}/keys/{key}", "/tables/hourly/keys/EWR"),
        ("/tables/{name}/changes", "/tables/hourly/changes"),
    ]:
        refused = (await http.get(f"{asked}?nonsense=1")).json()["detail"]
        taken = refused.removeprefix("nonsense= means nothing here; there is ").rstrip(".")
        listed = described[path]["get"]["parameters"]
        assert {p["name"] for p in listed if p["in"] == "query"} == set(taken.split(", "))


async def test_icon(http: httpx.AsyncClient) -> None:
    """Browsers ask for it, on pages of the user as well."""
    answer = await http.get("/favicon.ico")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"


async def test_index(http: httpx.AsyncClient) -> None:
    """A program finds the other addresses from the first one."""
    answer = (await http.get("/")).json()
    assert answer["app"] == "shop"
    for link in answer["links"].values():
        assert (await http.get(f"/{link}")).status_code == 200


async def test_nothing_of_the_user_is_markup(http: httpx.AsyncClient) -> None:
    """Keys and errors are escaped in pages."""
    page = (await http.get("/tables/totals", headers=HTML)).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    problem = await http.get("/tables/%3Cscript%3E", headers=HTML)
    assert problem.status_code == 404
    assert "<script>&#x27" not in problem.text
    assert "&lt;script&gt;" in problem.text


async def test_the_search_field_leads_to_the_key(http: httpx.AsyncClient) -> None:
    """A key that is typed leads to its page, whatever is in it."""
    answer = await http.get("/tables/totals?prefix=&key=a/b", headers=HTML)
    assert answer.status_code == 303
    found = await http.get(urljoin("http://localhost/tables/totals", answer.headers["location"]))
    assert found.json()["key"] == "a/b"


class Links(HTMLParser):
    """Every address that a page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.base: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect one tag's."""
        for name, value in attrs:
            if name in ("href", "src") and value is not None and not value.startswith("#"):
                self.found.append(value)
            if name == "data-base":
                self.base = value


@pytest.mark.parametrize("prefix", ["", "/x", "/deep/er"])
async def test_links_lead_somewhere_under_any_prefix(prefix: str) -> None:
    """Every link of every page works, mounted below any prefix, at any depth, with a slash in a key."""
    tables = MemoryTables()
    tables.put("totals", "a/b", 1.0)
    web = build_web(tables, MemoryFacts())
    outer = Starlette(routes=[Mount(prefix, web)]) if prefix else web
    transport = httpx.ASGITransport(outer)
    seen: set[str] = set()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        waiting = [f"{prefix}{page}" for page in (*PAGES, "/tables/totals/keys/a%2Fb", "/no/where")]
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = await client.get(path, headers=HTML)
            assert answer.status_code == (404 if path.endswith("/no/where") else 200), path
            if answer.headers["content-type"].startswith("text/html"):
                links = Links(answer.text)
                assert links.base is not None
                assert (
                    urljoin(f"http://localhost{path}", links.base) == f"http://localhost{prefix}/"
                )
                for link in links.found:
                    full = urljoin(f"http://localhost{path}", link)
                    assert full.startswith(f"http://localhost{prefix}/"), (path, link)
                    waiting.append(full.removeprefix("http://localhost"))
    assert f"{prefix}/static/style.css" in seen
    assert f"{prefix}/tables/totals/keys/a%2Fb" in seen


async def test_pages_need_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    """Pages and their files name no other server, and have no style or script of their own."""
    texts = [(await http.get(page, headers=HTML)).text for page in PAGES]
    texts += [(await http.get(f"/static/{name}")).text for name in ("style.css", "live.js")]
    for text in texts:
        named = set(re.findall(r"https?://[^\s\"'<]+", text))
        assert named <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<[^>]+ (style|on\w+)=", text)


async def page(request: Request) -> Response:
    """A page of the user."""
    return PlainTextResponse(f"hello {request.query_params.get('name')}")


async def test_pages_and_mounts_of_the_user() -> None:
    """Pages are Starlette endpoints at their paths; applications are mounted beside them."""
    other = Starlette()
    other.add_route("/inside", page)
    web = build_web(MemoryTables(), MemoryFacts(), pages={"/hello": page}, mounts={"/other": other})
    transport = httpx.ASGITransport(web)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/hello?name=ada")).text == "hello ada"
        assert (await client.post("/hello")).status_code == 200
        assert (await client.get("/other/inside")).text == "hello None"


async def test_pages_that_return_values() -> None:
    """What is no response is sent as JSON, whether the function is async or not."""

    async def soon(request: Request) -> dict[str, int]:
        return {"ada": 1}

    def at_once(request: Request) -> list[Window]:
        return [Window(0, 5)]

    web = build_web(MemoryTables(), MemoryFacts(), pages={"/soon": soon, "/at-once": at_once})
    transport = httpx.ASGITransport(web)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/soon")).json() == {"ada": 1}
        answer = await client.get("/at-once")
        assert answer.headers["content-type"] == "application/json"
        assert len(answer.json()) == 1


@pytest.mark.parametrize("path", ["/", "/tables", "/tables/mine", "/health/x", "/docs/", "/static"])
def test_a_page_on_a_built_in_path(path: str) -> None:
    """A page of the user does not hide one of Millstream's own."""
    with pytest.raises(TopologyError, match="Choose another path"):
        build_web(MemoryTables(), MemoryFacts(), pages={path: page})
    mounts: Any = {path: Starlette()}
    with pytest.raises(TopologyError):
        build_web(MemoryTables(), MemoryFacts(), mounts=mounts)

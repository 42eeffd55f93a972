"""The web part of an app: what each address answers."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from millstream.errors import BadQueryError, MillstreamError, QueryError, TopologyError
from millstream.topology import draw_mermaid, draw_svg, draw_text
from millstream.web import _pages
from millstream.web._guard import OriginGuard
from millstream.web._metrics import CONTENT_TYPE, metrics_text
from millstream.web._negotiation import wants_html
from millstream.web._openapi import openapi
from millstream.web._problems import Problem, of_status, problem_of, respond
from millstream.web._streams import Closing, LiveResponse, beating, serve_websocket
from millstream.web._tables import (
    describe,
    json_response,
    key_read,
    missing_key,
    page_json,
    parse_key,
    plain,
    row_json,
    table_of,
    table_read,
    texts,
)
from millstream.web._wire import internal_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp
    from starlette.websockets import WebSocket

    from millstream.tables._query import Queries, Read, TableInfo
    from millstream.web._cluster import Cluster
    from millstream.web._facts import Facts

__all__ = ["build_web"]

STATIC = Path(__file__).parent / "static"


def build_web(
    queries: Queries,
    facts: Facts,
    *,
    cluster: Cluster | None = None,
    pages: Mapping[str, Callable[..., Any]] = {},
    mounts: Mapping[str, ASGIApp] = {},
) -> Starlette:
    """An ASGI application that answers for the tables of an app; it may be mounted below any prefix.

    ``state.closing.close()`` ends its streams, which `millstream.web.serve` does when it stops.

    Args:
        queries: answers for tables: a `Cluster`, or something else in a test.
        cluster: the workers of the group, where there is one: this one then answers for its shards when
            others ask.
        pages: Starlette endpoints of the user, by path.
        mounts: ASGI applications of the user, by path.

    Raises:
        TopologyError: a page or mount has an address of Millstream's own.
    """
    closing = Closing()
    endpoints = _Endpoints(queries, facts, cluster, closing)
    built_in: list[BaseRoute] = endpoints.routes()
    if cluster is not None:
        built_in += internal_routes(cluster.local, facts, closing)
    _check_paths([*pages, *mounts])
    application = Starlette(
        routes=[
            *built_in,
            *(_user_route(path, page) for path, page in pages.items()),
            *(Mount(path, other) for path, other in mounts.items()),
            Route("/favicon.ico", _icon),  # browsers ask for it; a page of the user's comes first
        ],
        middleware=[Middleware(OriginGuard)],
        exception_handlers={
            HTTPException: _refused,
            MillstreamError: _problem,
            Problem: _problem,
            Exception: _problem,
        },
    )
    application.state.closing = closing
    return application


def _user_route(path: str, page: Callable[..., Any]) -> Route:
    if isinstance(page, type):
        return Route(path, page)

    async def answer(request: Request) -> Response:
        if inspect.iscoroutinefunction(page):
            found = await page(request)
        else:
            found = await run_in_threadpool(page, request)
            if inspect.isawaitable(found):
                found = await found
        return found if isinstance(found, Response) else json_response(found)

    return Route(path, answer, methods=["GET", "POST"])


async def _icon(request: Request) -> Response:
    return FileResponse(STATIC / "icon.svg")


BUILT_IN = (
    *("/tables", "/topics", "/agents", "/topology", "/workers", "/health", "/metrics", "/docs"),
    *("/openapi.json", "/static", "/internal"),
)


def _check_paths(paths: list[str]) -> None:
    for path in paths:
        for own in BUILT_IN:
            if path.rstrip("/") == own or path.startswith(f"{own}/"):
                raise TopologyError(
                    f"page {path!r}: {own} is an address of Millstream's own. Choose another path"
                )
        if path in ("", "/"):
            raise TopologyError(
                f"page {path!r}: / is Millstream's own overview. Choose another path"
            )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = respond(request, of_status(error))
    response.headers.update(error.headers or {})
    return response


async def _problem(request: Request, error: Exception) -> Response:
    return respond(request, problem_of(error))


class _Endpoints:
    """Functions for Starlette's routes."""

    def __init__(
        self, queries: Queries, facts: Facts, cluster: Cluster | None, closing: Closing
    ) -> None:
        self._queries = queries
        self._facts = facts
        self._cluster = cluster
        self._closing = closing

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.index),
            Route("/tables", self.tables),
            Route("/tables/{name}", self.table),
            Route("/tables/{name}/changes", self.changes),
            WebSocketRoute("/tables/{name}/changes", self.changes_websocket),
            Route("/tables/{name}/keys/{key:path}", self.key),
            Route("/topics", self.topics),
            Route("/agents", self.agents),
            Route("/workers", self.workers),
            Route("/topology", self.topology),
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/docs", self.docs),
            Route("/openapi.json", self.openapi),
            Mount("/static", StaticFiles(directory=STATIC), name="static"),
        ]

    # tables ---------------------------------------------------------------------------------------

    async def tables(self, request: Request) -> Response:
        rows = [describe(info) for _, info in sorted(self._queries.tables.items())]
        if wants_html(request):
            return _pages.tables_page(request, self._facts.topology.app, rows)
        return json_response({"rows": rows})

    async def table(self, request: Request) -> Response:
        info = table_of(self._queries, request.path_params["name"])
        if not wants_html(request):
            return json_response(
                page_json(info, await self._queries.read(table_read(info, _parameters(request))))
            )
        key = request.query_params.get("key")
        if key:
            return _pages.to_key(request, info.name, key)
        query = _parameters(request)
        if info.windows is not None and not info.keyed_windows:
            query.setdefault("reverse", "1")  # the newest windows
        read = table_read(info, query)
        page = plain(page_json(info, await self._queries.read(read)))
        app = self._facts.topology.app
        return _pages.table_page(request, app, describe(info), page, query)

    async def key(self, request: Request) -> Response:
        info = table_of(self._queries, request.path_params["name"])
        text = request.path_params["key"]
        html = wants_html(request)
        query = _parameters(request)
        if html and info.windows is not None and "at" not in query:
            query.setdefault("reverse", "1")  # the newest windows
        body = await self._key(info, text, key_read(info, query, text))
        if html:
            app = self._facts.topology.app
            return _pages.key_page(request, app, describe(info), text, plain(body), query)
        return json_response(body)

    async def _key(self, info: TableInfo, text: str, read: Read) -> dict[str, Any]:
        if info.windows is not None and read.at is None:
            answer = await self._queries.read(read)
            if not answer.entries and answer.next is None and _whole(read):
                raise missing_key(info, text)
            return page_json(info, answer)
        read = msgspec.structs.replace(read, limit=1, reverse=info.windows is not None)
        answer = await self._queries.read(read)
        if not answer.entries:
            raise missing_key(info, text, read.at)
        stale = {} if answer.stale_ms is None else {"stale_ms": answer.stale_ms}
        return {**row_json(info, answer.entries[0]), "position": answer.position, **stale}

    async def changes(self, request: Request) -> Response:
        info = table_of(self._queries, request.path_params["name"])
        items = texts(self._queries, info, self._followed(request), events=True)
        return LiveResponse(beating(items, b": still here\n\n"), closing=self._closing)

    async def changes_websocket(self, websocket: WebSocket) -> None:
        try:
            info = table_of(self._queries, websocket.path_params["name"])
            items = texts(self._queries, info, self._followed(websocket), events=False)
        except QueryError as exc:
            with contextlib.suppress(RuntimeError):  # the client has gone
                await websocket.close(1008, str(exc)[:120])
            return
        await websocket.accept()
        await serve_websocket(
            items, closing=self._closing, receive=websocket.receive, send=websocket.send
        )

    def _followed(self, request: Request | WebSocket) -> bytes | None:
        info = table_of(self._queries, request.path_params["name"])
        for name in request.query_params:
            if name != "key":
                raise BadQueryError(f"{name}= means nothing here; there is key.")
        text = request.query_params.get("key")
        return None if text is None else parse_key(info, text)

    # the app --------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Response:
        topology = self._facts.topology
        if wants_html(request):
            agents, topics = await self._facts.agents(), await self._facts.topics()
            tables = [describe(info) for _, info in sorted(self._queries.tables.items())]
            return _pages.overview_page(
                request,
                topology.app,
                log=self._facts.log,
                agents=agents,
                topics=topics,
                tables=tables,
                workers=await self._workers(),
            )
        addresses = ("tables", "topics", "agents", "workers", "topology", "metrics", "docs")
        return json_response(
            {"app": topology.app, "log": self._facts.log, "links": {a: a for a in addresses}}
        )

    async def topics(self, request: Request) -> Response:
        rows = await self._facts.topics()
        if wants_html(request):
            return _pages.topics_page(request, self._facts.topology.app, rows)
        return json_response({"rows": rows})

    async def agents(self, request: Request) -> Response:
        rows = await self._facts.agents()
        if wants_html(request):
            return _pages.agents_page(request, self._facts.topology.app, rows)
        return json_response({"rows": rows})

    async def workers(self, request: Request) -> Response:
        rows = await self._workers()
        if wants_html(request):
            return _pages.workers_page(request, self._facts.topology.app, rows)
        return json_response({"rows": rows})

    async def _workers(self) -> list[dict[str, Any]]:
        me = self._facts.worker()
        if self._cluster is None:
            return [{**me, "here": True}]
        return await self._cluster.workers(me)

    async def topology(self, request: Request) -> Response:
        topology = self._facts.topology
        kind = request.query_params.get("format", "")
        if kind == "svg":
            return Response(draw_svg(topology), media_type="image/svg+xml")
        if kind == "mermaid":
            return PlainTextResponse(draw_mermaid(topology))
        if kind == "text":
            return PlainTextResponse(draw_text(topology))
        if kind not in ("", "json"):
            raise BadQueryError(f"format={kind}: there is json, mermaid, svg and text.")
        if not kind and wants_html(request):
            return _pages.topology_page(
                request, topology.app, draw_svg(topology), draw_mermaid(topology)
            )
        return json_response(
            {
                "app": topology.app,
                **{
                    part: list(getattr(topology, part).values())
                    for part in ("topics", "tables", "agents", "timers")
                },
            }
        )

    async def live(self, request: Request) -> Response:
        return json_response({"status": "live"})

    async def ready(self, request: Request) -> Response:
        why = self._facts.unready()
        if why is None:
            return json_response({"status": "ready", "generation": self._facts.generation()})
        return json_response({"status": "not ready", "why": why}, 503)

    async def metrics(self, request: Request) -> Response:
        text = metrics_text(await self._facts.metrics())
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return json_response(openapi(self._facts.topology.app))

    async def docs(self, request: Request) -> Response:
        described = openapi(self._facts.topology.app)
        if wants_html(request):
            return _pages.docs_page(request, self._facts.topology.app, described)
        return json_response(described)


def _parameters(request: Request) -> dict[str, str]:
    """What the question says; several records to wait for become one list."""
    found = {name: text for name, text in request.query_params.items() if text}
    if "at_least" in found:
        found["at_least"] = ",".join(request.query_params.getlist("at_least"))
    return found


def _whole(read: Read) -> bool:
    """Whether a question is about all windows of a key."""
    return read.from_ is None and read.to is None and read.after is None

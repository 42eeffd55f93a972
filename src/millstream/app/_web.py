"""The query side of a running app: views, and the web server with its pages."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from millstream.clock import Duration, duration_ms
from millstream.errors import ConfigurationError, ProgramError
from millstream.tables import View
from millstream.web import Cluster, Problem, build_web, refuse, serve
from millstream.worker import GroupQueries, LocalQueries, WorkerReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from millstream.app._app import App
    from millstream.app._runtime import Runtime
    from millstream.tables import TableInfo
    from millstream.web import Serving

__all__ = ["LazyWeb", "Questions"]


class Questions:
    """Answers what a running app is asked: by its views, and over HTTP."""

    def __init__(self, runtime: Runtime) -> None:
        app, topology = runtime.app, runtime.topology
        tables: dict[str, TableInfo] = {}
        for declared in app.tables.values():
            count = topology.tables[declared.name].partitions or 1
            tables[declared.name] = declared.info(count, app.topics.read(topology, count))
        self._local: LocalQueries | GroupQueries = (
            LocalQueries(runtime.worker, tables)
            if runtime.worker is not None
            else GroupQueries(runtime.transport, app.id, tables)
        )
        self.cluster = Cluster(self._local)
        self.report = WorkerReport(
            runtime.worker, topology=topology, transport=runtime.transport, group=app.id
        )
        self.web: Starlette = build_web(
            self.cluster, self.report, cluster=self.cluster, pages=app.pages, mounts=app.mounts
        )

    def view(self, name: str, stale: Duration | None) -> View[Any, Any]:
        """A table from outside."""
        info = self.cluster.tables.get(name)
        if info is None:
            raise ConfigurationError(f"there is no table {name!r}")
        return View(
            info,
            self.cluster,
            stale_ms=None if stale is None else duration_ms(stale, what="view(stale=)"),
        )

    async def aclose(self) -> None:
        """Let go of connections and listeners."""
        self._local.close()
        self.report.close()
        await self.cluster.aclose()

    @contextlib.asynccontextmanager
    async def serving(self, runtime: Runtime) -> AsyncIterator[str]:
        """Listen where the settings say; gives the URL under which other workers reach this one."""
        settings = runtime.settings
        named = urlsplit(settings.web_url).hostname
        async with serve(
            self.web,
            host=settings.web_host,
            port=settings.web_port,
            hosts=[*settings.web_hosts.split(), *([named] if named else [])],
        ) as serving:
            yield settings.web_url or _reachable(serving)

    def publish(self, table: str, changes: Mapping[bytes, bytes | None]) -> None:
        """Tell those who follow a global table."""
        if isinstance(self._local, LocalQueries):
            self._local.publish(table, changes)


def _reachable(serving: Serving) -> str:
    """The address that other workers use: the machine's name where the server listens everywhere."""
    if serving.host in ("0.0.0.0", "::"):
        return f"http://{socket.gethostname()}:{serving.port}"
    return serving.url


class LazyWeb:
    """The web part of an app as an ASGI application: it answers while the app runs, and else says why it does not."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self._app.runtime
        if runtime is not None:
            await runtime.questions().web(scope, receive, send)
            return
        why = self._app.why_not_running()
        if scope["type"] not in ("http", "websocket"):
            raise ProgramError(why)  # `lifespan`: running the app is not this one's business
        await refuse(scope, receive, send, Problem("unavailable", 503, why))

"""Who may ask: names under which the server is known, and pages of others.

A server on the loopback interface is reachable from every page that the user's browser shows. Reading its
answers is what the same-origin rule forbids, and there are two ways around that rule, closed here: a name
that its owner points at 127.0.0.1 (DNS rebinding), which ``Host`` gives away; and WebSockets, which the rule
does not cover, and where ``Origin`` tells.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from millstream.web._problems import Problem, respond

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["HostGuard", "OriginGuard", "is_loopback", "refuse"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(authority: str) -> str:
    """The host of ``host:port``, in lower case, without brackets."""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class HostGuard:
    """Refuses requests that were sent to another name than these, and those of a loopback server."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {*LOOPBACK, *(_name(host) for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            host = Headers(scope=scope).get("host", "")
            name = _name(host)
            if name not in self._names and not name.endswith(".localhost"):
                detail = (
                    f"{host!r} is not a name of this server, which listens on the loopback interface."
                    f" Ask localhost, or allow the name with web_hosts."
                )
                await refuse(scope, receive, send, Problem("wrong-host", 421, detail))
                return
        await self._app(scope, receive, send)


class OriginGuard:
    """Refuses WebSockets that pages of other origins open."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
                detail = f"A page of {origin} may not open WebSockets here."
                await refuse(scope, receive, send, Problem("", 403, detail))
                return
        await self._app(scope, receive, send)


async def refuse(scope: Scope, receive: Receive, send: Send, problem: Problem) -> None:
    """Answer a request, or a WebSocket that wants to be opened, with a problem."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": problem.title})
        return
    from starlette.requests import Request

    await respond(Request(scope), problem)(scope, receive, send)

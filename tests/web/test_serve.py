"""The server in our own event loop: ports, names, origins, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from millstream.errors import AddressInUseError, SettingError
from millstream.web import _serve as serve_module
from millstream.web import build_web, serve
from millstream.web._guard import HostGuard, is_loopback
from tests.web.memory import MemoryFacts, MemoryTables, running
from tests.web.sockets import Refused, connected

if TYPE_CHECKING:
    from millstream.tables._query import Page, Read


async def test_a_busy_port_that_was_asked_for() -> None:
    """An explicit port that is taken is an error that names it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(AddressInUseError, match=str(port)):
            async with serve(build_web(MemoryTables(), MemoryFacts()), port=port):
                pass


async def test_the_next_free_port() -> None:
    """Without a port the default one is taken, or the next that is free."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        async with serve(build_web(MemoryTables(), MemoryFacts()), default_port=port) as served:
            assert served.port > port
            assert served.url == f"http://127.0.0.1:{served.port}"
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{served.url}/health/live")).status_code == 200


async def test_an_address_of_another_machine() -> None:
    """A host that is not ours is a setting that is wrong."""
    with pytest.raises(SettingError, match="web_host"):
        async with serve(build_web(MemoryTables(), MemoryFacts()), host="203.0.113.7"):
            pass


async def test_it_leaves_signals_alone_and_the_port_free() -> None:
    """Serving changes no signal handler, and the port can be taken again at once."""
    before = signal.getsignal(signal.SIGINT)
    async with serve(build_web(MemoryTables(), MemoryFacts()), port=0) as served:
        assert signal.getsignal(signal.SIGINT) is before
        port = served.port
    async with serve(build_web(MemoryTables(), MemoryFacts()), port=port) as served:
        assert served.port == port


async def test_it_stops_although_somebody_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end when the server stops, which does not wait for them; and nothing is kept for them."""
    monkeypatch.setattr(serve_module, "STOP_TIMEOUT_S", 60)
    tables = MemoryTables()
    async with httpx.AsyncClient() as client, contextlib.AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(tables))
        async with client.stream("GET", f"{app.served.url}/tables/totals/changes") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "event: ready"
            assert tables.followers == 1
            began = time.monotonic()
            await stack.aclose()
            assert time.monotonic() - began < 30
            assert [line async for line in lines] == ["data: {}", ""]
            assert tables.followers == 0


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:6066", True),
        ("LOCALHOST", True),
        ("127.0.0.1:6066", True),
        ("[::1]:6066", True),
        ("shop.localhost:6066", True),
        ("shop.internal:6066", True),
        # a name that its owner points at 127.0.0.1
        ("evil.example:6066", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[::1", False),
    ],
)
async def test_names_of_a_loopback_server(host: str, allowed: bool) -> None:
    """A server on the loopback interface answers to its own names only: DNS rebinding fails."""
    guarded = HostGuard(build_web(MemoryTables(), MemoryFacts()), ["shop.internal"])
    transport = httpx.ASGITransport(guarded)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/tables", headers={"Host": host})
        assert answer.status_code == (200 if allowed else 421)
        if not allowed:
            assert answer.json()["type"] == "urn:millstream:wrong-host"


async def test_the_guard_is_there_when_served() -> None:
    """What is served on the loopback interface is guarded, with names that were allowed."""
    web = build_web(MemoryTables(), MemoryFacts())
    async with serve(web, port=0, hosts=["shop.internal"]) as served, httpx.AsyncClient() as client:
        for host, status in {"evil.example": 421, "shop.internal": 200}.items():
            answer = await client.get(f"{served.url}/tables", headers={"Host": host})
            assert answer.status_code == status
            assert "access-control-allow-origin" not in answer.headers
    async with serve(web, host="0.0.0.0", port=0) as served, httpx.AsyncClient() as client:
        answer = await client.get(f"{served.url}/tables", headers={"Host": "shop.example"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://testserver", True),
        ("http://evil.example", False),
        ("null", False),
    ],
)
async def test_web_sockets_of_other_pages(origin: str | None, allowed: bool) -> None:
    """A page of another origin cannot open a WebSocket, which no browser would prevent."""
    web = build_web(MemoryTables(), MemoryFacts())
    headers = {} if origin is None else {"Origin": origin}
    if allowed:
        async with connected(web, "/tables/totals/changes", headers=headers) as socket:
            assert await socket.receive() == {"event": "ready"}
    else:
        with pytest.raises(Refused):
            async with connected(web, "/tables/totals/changes", headers=headers):
                pass


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("shop.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Addresses that only this machine can reach are told from others."""
    assert is_loopback(host) is loopback


async def test_requests_in_progress_are_finished() -> None:
    """A request that is being answered when the server stops gets its answer."""
    begun = asyncio.Event()

    class Slow(MemoryTables):
        async def read(self, read: Read) -> Page:
            begun.set()
            await asyncio.sleep(0.05)  # the server is told to stop meanwhile
            return await super().read(read)

    tables = Slow()
    tables.put("totals", "ada", 1.0)
    async with httpx.AsyncClient() as client:
        async with running(tables) as app:
            asking = asyncio.create_task(client.get(f"{app.served.url}/tables/totals/keys/ada"))
            await begun.wait()
        assert (await asking).json()["value"] == 1.0

"""Changes as they come: server-sent events and WebSockets, on a real port."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from millstream.web import build_web
from millstream.web._streams import beating
from millstream.windows import Window
from tests.web.memory import HOUR_MS, MemoryFacts, MemoryTables, running
from tests.web.sockets import Refused, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE_S = 10.0


async def events(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """The events of a stream, as a browser reads them."""
    name, data = "message", ""
    async for line in answer.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and data:
            yield name, json.loads(data)
            name, data = "message", ""


async def test_changes_as_events() -> None:
    """After ``ready`` each commit is an event: values, deletions, windows, and what was missed."""
    tables = MemoryTables()
    async with asyncio.timeout(DEADLINE_S), running(tables) as app, httpx.AsyncClient() as client:
        async with client.stream("GET", f"{app.served.url}/tables/totals/changes") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            found = events(answer)
            assert await anext(found) == ("ready", {})
            tables.put("totals", "ada", 12.5)
            tables.put("totals", "ada", ...)
            assert await anext(found) == ("message", {"key": "ada", "value": 12.5})
            assert await anext(found) == ("message", {"key": "ada", "value": None, "deleted": True})
            tables.overrun("totals")
            assert await anext(found) == ("missed", {})
        async with client.stream("GET", f"{app.served.url}/tables/hourly/changes") as answer:
            found = events(answer)
            await anext(found)
            tables.put("hourly", "EWR", 3, Window(0, HOUR_MS))
            tables.put("hourly", "EWR", ..., Window(0, HOUR_MS))
            window = {"start": 0, "end": HOUR_MS}
            assert (await anext(found))[1] == {"key": "EWR", "value": 3, "window": window}
            assert (await anext(found))[1]["window"] == window


async def test_changes_of_one_key() -> None:
    """With ``key`` others are left out."""
    tables = MemoryTables()
    async with asyncio.timeout(DEADLINE_S), running(tables) as app, httpx.AsyncClient() as client:
        url = f"{app.served.url}/tables/totals/changes"
        async with client.stream("GET", url, params={"key": "ada"}) as answer:
            found = events(answer)
            await anext(found)
            tables.put("totals", "bob", 1.0)
            tables.put("totals", "ada", 2.0)
            assert (await anext(found))[1]["key"] == "ada"


async def test_who_goes_is_forgotten() -> None:
    """When a client goes, nothing is kept for it."""
    tables = MemoryTables()
    async with asyncio.timeout(DEADLINE_S), running(tables) as app, httpx.AsyncClient() as client:
        async with client.stream("GET", f"{app.served.url}/tables/totals/changes") as answer:
            await anext(events(answer))
            assert tables.followers == 1
        await tables.until(lambda: not tables.followers)


async def test_a_head_request_follows_nothing() -> None:
    """HEAD answers, and ends."""
    tables = MemoryTables()
    async with asyncio.timeout(DEADLINE_S), running(tables) as app, httpx.AsyncClient() as client:
        answer = await client.head(f"{app.served.url}/tables/totals/changes")
        assert answer.status_code == 200
        assert tables.followers == 0


async def test_changes_as_messages() -> None:
    """A WebSocket gets the same changes, as JSON messages."""
    tables = MemoryTables()
    web = build_web(tables, MemoryFacts())
    async with asyncio.timeout(DEADLINE_S):
        async with connected(web, "/tables/totals/changes", "key=ada") as socket:
            assert await socket.receive() == {"event": "ready"}
            tables.put("totals", "bob", 1.0)
            tables.put("totals", "ada", 2.0)
            assert await socket.receive() == {"key": "ada", "value": 2.0}
            tables.put("totals", "ada", ...)
            assert await socket.receive() == {"key": "ada", "value": None, "deleted": True}
        assert tables.followers == 0
        with pytest.raises(Refused, match="There is no table 'nope'"):
            async with connected(web, "/tables/nope/changes"):
                pass


async def test_a_web_socket_on_a_port() -> None:
    """uvicorn speaks WebSocket here; the server closes it when it stops."""
    tables = MemoryTables()
    async with asyncio.timeout(DEADLINE_S), running(tables) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.served.port)
        writer.write(
            b"GET /tables/totals/changes HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in await reader.readline()
        await reader.readuntil(b"\r\n\r\n")
        assert (await reader.readexactly(2))[0] == 0x81  # a whole text message
        assert await reader.readexactly(17) == b'{"event":"ready"}'
        app.web.state.closing.close()
        assert (await reader.readexactly(1))[0] == 0x88  # a close frame
        writer.close()
    assert tables.followers == 0


async def test_silence_is_filled() -> None:
    """Where nothing comes for a while, a beat does; the source is closed with the stream."""
    closed = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.sleep(60)
        finally:
            closed.set()

    stream = beating(source(), b"beat", every_s=0.01)
    assert [await anext(stream) for _ in range(3)] == [b"first", b"beat", b"beat"]
    await stream.aclose()  # type: ignore[attr-defined]
    assert closed.is_set()


async def test_who_closes_a_stream_can_be_cancelled() -> None:
    """Also while its source takes its time to end."""
    ending, ended = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.sleep(60)
        finally:
            ending.set()
            await ended.wait()

    stream = beating(source(), b"beat", every_s=0.01)
    assert [await anext(stream) for _ in range(2)] == [b"first", b"beat"]
    closing = asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
    await ending.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    ended.set()


async def test_a_source_that_ends_and_one_that_fails() -> None:
    """The end and the errors of a source are those of the stream."""

    async def short() -> AsyncIterator[bytes]:
        yield b"only"

    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise ValueError("broken")

    assert [item async for item in beating(short(), b"beat")] == [b"only"]
    stream = beating(broken(), b"beat")
    assert await anext(stream) == b"first"
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)

"""A WebSocket client that speaks ASGI to an application directly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import ASGIApp, Message

__all__ = ["Refused", "Socket", "connected"]


class Refused(Exception):
    """The application closed the WebSocket before it was open."""


class Socket:
    """An open WebSocket."""

    def __init__(self, sent: asyncio.Queue[Message]) -> None:
        self._sent = sent

    async def receive(self) -> Any:
        """The next message, read as JSON."""
        message = await self._sent.get()
        assert message["type"] == "websocket.send", message
        return json.loads(message["text"])


@contextlib.asynccontextmanager
async def connected(
    app: ASGIApp, path: str, query: str = "", headers: Mapping[str, str] = {}
) -> AsyncIterator[Socket]:
    """Open a WebSocket, and go at the end of the block.

    Raises:
        Refused: the application does not want it.
    """
    given = {"host": "testserver", **headers}
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "ws",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "subprotocols": [],
        "extensions": {},
    }
    received: asyncio.Queue[Message] = asyncio.Queue()
    sent: asyncio.Queue[Message] = asyncio.Queue()
    received.put_nowait({"type": "websocket.connect"})

    async def serve() -> None:
        await app(scope, received.get, sent.put)

    task = asyncio.create_task(serve())
    first = await sent.get()
    if first["type"] != "websocket.accept":
        await task
        raise Refused(first.get("reason", ""))
    try:
        yield Socket(sent)
    finally:
        received.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await task

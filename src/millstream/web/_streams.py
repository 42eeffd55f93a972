"""Changes as they come: server-sent events and WebSockets, closed when the client or the server goes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Message, Receive, Scope, Send

__all__ = ["Closing", "LiveResponse", "beating", "serve_websocket"]

BEAT_S = 15.0
"""After so much silence something is sent, so that a client that is gone is noticed."""


class Closing:
    """Tells streams that the server stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed = False

    def close(self) -> None:
        """End all streams, and refuse new ones."""
        self.closed = True
        for task in self._tasks:
            task.cancel()

    async def until_closed(self, task: asyncio.Task[None], receive: Receive) -> None:
        """Wait until the task ends, the client goes or the server stops; the task is over then.

        Raises:
            Exception: what the task raised.
        """
        gone = asyncio.ensure_future(_gone(receive))
        self._tasks.add(task)
        if self.closed:
            task.cancel()
        try:
            await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._tasks.discard(task)
            for one in (task, gone):
                one.cancel()
            await asyncio.wait([task, gone])
        if not task.cancelled():
            task.result()


async def _gone(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            return


async def beating(
    items: AsyncIterator[bytes], beat: bytes, every_s: float = BEAT_S
) -> AsyncIterator[bytes]:
    """The items, with a beat wherever none came for a while; closes them at its end."""
    following = None
    try:
        while True:
            if following is None:
                following = asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait([following], timeout=every_s)
            if not done:
                yield beat
                continue
            finished, following = following, None
            try:
                item = finished.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
            if not following.cancelled():
                with contextlib.suppress(StopAsyncIteration):
                    following.result()
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


class LiveResponse(Response):
    """A body that is sent as it comes, until either side goes."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        *,
        closing: Closing,
        media_type: str = "text/event-stream",
    ) -> None:
        self.body = b""
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._content = content
        self._closing = closing
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            sending = asyncio.ensure_future(self._send(send))
            await self._closing.until_closed(sending, receive)
        with contextlib.suppress(OSError):  # the client has gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._content) as content:  # type: ignore[type-var]
            async for chunk in content:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def serve_websocket(
    items: AsyncIterator[bytes], *, closing: Closing, receive: Receive, send: Send
) -> None:
    """Send each item as a text message on an accepted WebSocket, until either side goes."""

    async def sending() -> None:
        async with contextlib.aclosing(items) as messages:  # type: ignore[type-var]
            async for message in messages:
                await send({"type": "websocket.send", "text": message.decode()})

    await closing.until_closed(asyncio.ensure_future(sending()), receive)
    with contextlib.suppress(OSError, RuntimeError):  # the client has gone, or closed it
        await send({"type": "websocket.close", "code": 1001 if closing.closed else 1000})

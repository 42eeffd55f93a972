"""Calling a windowed table's ``on_close`` functions: each call is an event, and happens once.

A part knows which of its windows are final and not closed (`WindowedPart.due`), and moves its closing cursor when it
is asked for one of them (`WindowedPart.close`). That is part of the event in which the functions run, as are
their writes and sends. So an epoch has all of it or nothing, and after a restart the first window whose event was
not committed comes first. In a shard with journals the event depends on whoever brought the time that made
the window final, and stays out of the epoch as long as that event does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from millstream.agents import user_line
from millstream.context import current
from millstream.errors import AgentError
from millstream.tables import MISSING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream.context import Scope
    from millstream.tables import TimedPart
    from millstream.windows import Window

__all__ = ["ClosingHost", "close_due"]


class ClosingHost(Protocol):
    """The running shard, as closing needs it."""

    def begin_callback(self, name: str, timestamp: int) -> Scope: ...

    def end_callback(self, scope: Scope) -> None: ...


async def close_due(
    shard: ClosingHost,
    part: TimedPart,
    callback: Callable[[Any, Window, Any], Awaitable[Any]],
    *,
    pause: Callable[[], Awaitable[object]] | None = None,
) -> int:
    """Call ``callback(key, window, value)`` for each final window that is not closed, in order of end, start, then key.

    The shard takes in no record meanwhile. The events' time is the window's end. Windows that become final
    meanwhile are included.

    Args:
        pause: awaited between a thousand calls and the next: where back-pressure has its place. The event
            loop turns there in any case.

    Returns:
        How many windows were closed.

    Raises:
        AgentError: the callback raised; its event is not finished, so the cursor stays before it.
    """
    closed = 0
    while listed := part.due():
        for due in listed:
            scope = shard.begin_callback(f"on_close:{part.name}", due.window.end)
            token = current.set(scope)
            try:
                value = part.close(due, scope)
                if value is not MISSING:
                    closed += 1
                    await callback(due.key, due.window, value)
            except Exception as exc:
                # The event stays open: no epoch may take what it has done.
                raise AgentError(
                    f"on_close of table {part.name!r}, window {due.window}, key {due.key!r},",
                    cause=exc,
                    line=user_line(exc),
                ) from exc
            finally:
                current.reset(token)
            shard.end_callback(scope)
        await asyncio.sleep(0)
        if pause is not None:
            await pause()
    return closed

"""Calling a windowed table's ``on_close`` functions: each call is an event, and happens once.

A part knows which of its windows are final and not closed (`WindowedPart.due`), and moves its closing cursor when it
is asked for one of them (`WindowedPart.close`). That is part of the event in which the functions run, as are
their writes and sends. So an epoch has all of it or nothing, and after a restart the first window whose event was
not committed comes first. In a shard with journals the event depends on whoever brought the time that made
the window final, and stays out of the epoch as long as that event does.

A call that fails follows its policy (`millstream.worker._calls`). To go past a window is to move the cursor past it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millstream.agents import Policy
from millstream.clock import format_timestamp
from millstream.tables import MISSING
from millstream.worker._calls import Call, CallHost, run_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream.context import Scope
    from millstream.tables import Due, DueRow, TimedPart
    from millstream.windows import Window

__all__ = ["Closing", "close_due", "window_position"]


STOP = Policy()


def window_position(table: str, key: str, start: int) -> str:
    """A window as ``millstream skip`` takes it: ``totals@ada@2024-07-01T12:00:00.000+00:00``.

    Args:
        key: as people write it.
        start: of the window, in ms.
    """
    return f"{table}@{key}@{format_timestamp(start).removesuffix(' ms')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What is to be done for each final window of a table."""

    call: Callable[[Any, Window, Any], Awaitable[Any]]
    """With key, window and value."""
    show_key: Callable[[Any], str] = str
    policy: Policy = STOP
    set_aside: Callable[[Scope, Any, Window, bytes | None, Exception], None] | None = None
    """Send key, window, stored value and error to the dead-letter topic."""
    set_aside_row: Callable[[Scope, DueRow, Exception], None] | None = None
    """Send a row that was held back likewise."""


async def close_due(
    shard: CallHost,
    part: TimedPart,
    closing: Closing,
    *,
    pause: Callable[[], Awaitable[object]] | None = None,
) -> int:
    """Call ``closing.call`` for each final window that is not closed, in order of end, start, then key.

    The shard takes in no record meanwhile. The events' time is the window's end. Windows that become final
    meanwhile are included.

    Args:
        pause: awaited between a thousand calls and the next: where back-pressure has its place. The event
            loop turns there in any case.

    Returns:
        How many windows were closed.

    Raises:
        AgentError: the policy says stop; the cursor stays before the window.
    """
    closed = 0
    while listed := part.due():
        for due in listed:
            calling = _Calling(part, closing, due)
            await run_call(shard, calling.call())
            closed += calling.had_value
        await asyncio.sleep(0)
        if pause is not None:
            await pause()
    return closed


class _Calling:
    """One window that is closed."""

    def __init__(self, part: TimedPart, closing: Closing, due: Due) -> None:
        self._part = part
        self._closing = closing
        self._due = due
        self.had_value = False

    def call(self) -> Call:
        name, due = self._part.name, self._due
        return Call(
            name=f"on_close:{name}",
            what=f"on_close of table {name!r}, window {due.window}, key {due.key!r},",
            identity=(name, due.place),
            timestamp=due.window.end,
            policy=self._closing.policy,
            run=self._run,
            pass_by=self._pass_by,
            position=window_position(name, self._closing.show_key(due.key), due.window.start),
        )

    async def _run(self, scope: Scope) -> None:
        value = self._part.close(self._due, scope)
        self.had_value = value is not MISSING
        if self.had_value:
            await self._closing.call(self._due.key, self._due.window, value)

    def _pass_by(self, scope: Scope, error: Exception | None) -> None:
        due = self._due
        data = self._part.close_unread(due, scope)
        if error is not None and self._closing.set_aside is not None:
            self._closing.set_aside(scope, due.key, due.window, data, error)

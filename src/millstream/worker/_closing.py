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
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from millstream.agents import Policy
from millstream.clock import format_timestamp
from millstream.tables import MISSING, TimedPart
from millstream.worker._calls import Call, CallHost, run_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from millstream.context import Scope
    from millstream.tables import Due, DueRow
    from millstream.windows import Window
    from millstream.worker._subtopology import SubTopology

__all__ = ["WINDOWS_DUE", "Closing", "FinalWindows", "close_due", "window_position"]


STOP = Policy()
WINDOWS_DUE = "windows due"
"""Why those who use a table take nothing in while some of its windows are final and not closed."""


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


@dataclass(slots=True)
class _Followed:
    """A table that closes windows."""

    part: TimedPart
    closing: Closing
    due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when some are final."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever calls the functions for its final windows."""


class FinalWindows:
    """The tables of a shard that close windows, and what closes those that have become final.

    They are closed before the next record is taken by those who use the table.

    Args:
        owner_of: the sub-topology of those who use a table, which may become another one at any time.
    """

    def __init__(self, shard: CallHost, *, owner_of: Callable[[str], SubTopology]) -> None:
        self._shard = shard
        self._owner_of = owner_of
        self._followed: dict[str, _Followed] = {}

    @property
    def tables(self) -> Collection[str]:
        """Those that are followed."""
        return self._followed.keys()

    def forget(self) -> None:
        """Follow nothing any more."""
        self._followed.clear()

    def follow(self, part: TimedPart, closing: Closing) -> None:
        """Notice from now on when windows of this table become final; `close` is to run for it."""
        self._followed[part.name] = _Followed(part, closing)
        part.on_due = partial(self._became_due, part.name)
        if part.closing_due:
            self._became_due(part.name)

    def _became_due(self, table: str) -> None:
        owner = self._owner_of(table)
        owner.close_gate(WINDOWS_DUE)
        owner.interrupt()
        self._followed[table].due.set()

    async def close(self, table: str) -> NoReturn:
        """Close a table's windows whenever some are final, and those of tables that are connected with it."""
        due = self._followed[table].due
        while True:
            await due.wait()
            async with self._owner_of(table).closing:
                while listed := self._due_in(self._owner_of(table)):
                    for each in listed:
                        await self._close(each)
            owner = self._owner_of(table)  # a callback may have connected it with others
            if not owner.closing.locked() and not self._is_due(owner):
                owner.open_gate(WINDOWS_DUE)
            owner.took_run()

    async def _close(self, each: _Followed) -> None:
        # a callback may have connected it with others meanwhile, whose windows somebody else closes
        async with each.lock:
            each.due.clear()
            await close_due(
                self._shard,
                each.part,
                each.closing,
                pause=partial(self._until_room, each.part.name),
                is_full=partial(self._is_full, each.part.name),
            )

    def _due_in(self, owner: SubTopology) -> list[_Followed]:
        """The tables of a sub-topology that have something to close, in the order of declaration."""
        return [
            each
            for name, each in self._followed.items()
            if each.due.is_set() and self._owner_of(name) is owner
        ]

    def _is_due(self, owner: SubTopology) -> bool:
        """Whether something is to be closed, perhaps once an update has ended that is under way."""
        return bool(self._due_in(owner)) or any(
            isinstance(part, TimedPart) and part.closing_due for part in owner.parts.values()
        )

    def _is_full(self, table: str) -> bool:
        """Whether the next epoch is full already."""
        return self._owner_of(table).is_full

    async def _until_room(self, table: str) -> None:
        """Wait while the next epoch is full."""
        owner = self._owner_of(table)
        owner.took_run()  # which sees whether it is
        await owner.until_room()


async def close_due(
    shard: CallHost,
    part: TimedPart,
    closing: Closing,
    *,
    pause: Callable[[], Awaitable[object]] | None = None,
    is_full: Callable[[], bool] | None = None,
) -> int:
    """Call ``closing.call`` for each final window that is not closed, in order of end, start, then key.

    The shard takes in no record meanwhile. The events' time is the window's end. Windows that become final
    meanwhile are included.

    Args:
        pause: awaited between a thousand calls and the next: where back-pressure has its place. The event
            loop turns there in any case.
        is_full: whether to pause at once, as the next epoch has no room.

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
            if pause is not None and is_full is not None and is_full():
                await pause()
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

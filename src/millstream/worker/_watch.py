"""Watching other workers' processes, so that a killed one is replaced at once and not after the session time-out.

A worker holds a connection to the web servers of the few workers before it in the circle of member ids, and sends
nothing over it. When such a connection ends, it asks again: a port that refuses says that the process is gone, on a
machine that is there. That is told to the group (`Membership.suspect`). A port that does not answer at all says
nothing: the machine, or the way to it, may come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from millstream.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["PeerWatch", "neighbours"]

logger = logging.getLogger("millstream.worker")

WATCHED = 3
"""How many workers each one watches: so many may be killed at once, neighbours in the circle, and be noticed."""
REFUSALS = 3
"""How often in a row a port has to refuse."""
PAUSE_S = 0.1
"""Between two attempts where a connection has ended."""
CONNECT_S = 5.0
REPEAT_S = 1.0
"""Before a suspicion is repeated."""
AGAIN_S = 3.0
"""Before another attempt where none ever succeeded."""


def neighbours(member_id: str, members: Mapping[str, str]) -> dict[str, str]:
    """The few members before this one in the circle of ids, those only that have an address."""
    others = sorted(name for name, url in members.items() if url and name != member_id)
    at = sum(1 for name in others if name < member_id)
    circle = others[at:] + others[:at]
    return {name: members[name] for name in circle[-WATCHED:]}


class PeerWatch:
    """Watches some workers at a time, by member id and address.

    Args:
        suspect: is told of a member whose process is gone, again and again until `follow` says that it is not to be
            watched any more. Returns whether the group has let go of it.
    """

    def __init__(self, suspect: Callable[[str], Awaitable[bool]]) -> None:
        self._suspect = suspect
        self._wanted: dict[str, str] = {}
        self._changed = asyncio.Event()

    def follow(self, watched: Mapping[str, str]) -> None:
        """Watch these from now on, and no others."""
        self._wanted = dict(watched)
        self._changed.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        watches: dict[tuple[str, str], asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                wanted = set(self._wanted.items())
                for gone in watches.keys() - wanted:
                    watches.pop(gone).cancel()
                for new in wanted - watches.keys():
                    watches[new] = tasks.create_task(self._watch(*new), name=f"watch {new[1]}")
                await self._changed.wait()
                self._changed.clear()

    async def _watch(self, member_id: str, url: str) -> None:
        known, refusals = False, 0
        while True:
            try:
                async with asyncio.timeout(CONNECT_S):
                    reader, writer = await asyncio.open_connection(*_place(url))
            except (ConnectionRefusedError, ConnectionResetError):
                refusals += 1
            except OSError:  # a time-out too
                known, refusals = False, 0
            else:
                known, refusals = True, 0
                await _until_it_ends(reader, writer)
            if known and refusals >= REFUSALS:
                with contextlib.suppress(LogUnavailableError):  # it is told again
                    if await self._suspect(member_id):
                        logger.warning(
                            "worker %s at %s is gone: the group has let go of it", member_id, url
                        )
            suspected = REPEAT_S if refusals >= REFUSALS else PAUSE_S
            await asyncio.sleep(suspected if known else AGAIN_S)


async def _until_it_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while await reader.read(1_024):
                pass
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

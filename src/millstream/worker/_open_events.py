"""Events that stay open: whoever waits for ever says so, with the line of code at which it waits.

An open event keeps its partition's committed offset where it is, and with it whatever is tied to it; nothing ends it,
as only its program knows how long it may take. So it is reported, the oldest of each agent, once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NoReturn

from millstream.agents import waiting_line
from millstream.records import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from millstream.agents import Instance
    from millstream.worker._lane import Lane

__all__ = ["OpenEvents"]

logger = logging.getLogger("millstream.worker")

OPEN_EVENT_S = 30.0
"""How long an event may be open before it is reported, in real time."""
LOOKS = 6
"""How often we look within that time."""


class OpenEvents:
    """Watches the events of a worker's agents.

    Args:
        lanes: those that run now.
    """

    def __init__(self, lanes: Callable[[], Iterable[Lane]]) -> None:
        self._lanes = lanes
        self._since: dict[tuple[str, Position], float] = {}
        self._reported: set[tuple[str, Position]] = set()

    async def run(self) -> NoReturn:
        """Look again and again."""
        while True:
            await asyncio.sleep(OPEN_EVENT_S / LOOKS)
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        open_now: dict[tuple[str, Position], Instance] = {}
        for lane in self._lanes():
            for instance in lane.instances:
                scope = instance.scope
                if instance.in_event and scope.record is not None and scope.tp is not None:
                    event = Position(*scope.tp, scope.record.offset)
                    open_now[lane.agent.name, event] = instance
        self._since = {event: self._since.get(event, now) for event in open_now}
        self._reported &= open_now.keys()
        for agent in {agent for agent, _ in open_now}:
            oldest = min((e for e in open_now if e[0] == agent), key=self._since.__getitem__)
            open_s = now - self._since[oldest]
            if open_s >= OPEN_EVENT_S and oldest not in self._reported:
                self._reported.add(oldest)
                where = waiting_line(open_now[oldest].running) or "a line that cannot be told"
                logger.warning(
                    "agent %r: event %s has been open for %.0f s, and waits at %s. Until it is finished, neither"
                    " it nor what comes after it in its partition counts as processed, and who has seen what it"
                    " wrote waits as well",
                    agent,
                    oldest[1],
                    open_s,
                    where,
                )

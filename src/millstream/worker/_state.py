"""The state of a worker, and those who are told of it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NoReturn

from millstream.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["StateLog", "WorkerState"]

logger = logging.getLogger("millstream.worker")


class WorkerState(StrEnum):
    """What a worker is doing."""

    JOINING = "joining"
    """It waits for the group to give it shards."""
    RECOVERING = "recovering"
    """It has been given shards, and brings the tables of at least one of them up to date."""
    RUNNING = "running"
    """All of its shards process records."""
    STOPPING = "stopping"
    """It was told to stop, and finishes what it is doing."""
    STOPPED = "stopped"
    """It has committed what was finished, and left the group."""
    FAILED = "failed"
    """An error has ended it."""


_JOINING, _RECOVERING, _RUNNING, _STOPPING, _STOPPED, _FAILED = WorkerState
MOVES: Final[Mapping[WorkerState, tuple[WorkerState, ...]]] = {
    _JOINING: (_RECOVERING, _RUNNING, _STOPPING, _STOPPED, _FAILED),
    _RECOVERING: (_RUNNING, _STOPPING, _STOPPED, _FAILED),
    _RUNNING: (_RECOVERING, _STOPPING, _STOPPED, _FAILED),
    _STOPPING: (_STOPPED, _FAILED),
    _STOPPED: (),
    _FAILED: (),
}
"""Which state may follow which."""


class StateLog:
    """The state of a worker. Listeners are told of each one in order, whatever they raise is logged."""

    def __init__(self) -> None:
        self.now = WorkerState.JOINING
        self.listeners: list[Callable[[WorkerState], Awaitable[None]]] = []
        self._untold: deque[WorkerState] = deque([self.now])
        self._moved = asyncio.Event()

    @property
    def is_ending(self) -> bool:
        """Whether the worker processes nothing more."""
        return self.now in (_STOPPING, _STOPPED, _FAILED)

    def move(self, state: WorkerState) -> None:
        """The worker is in another state now, or still in the same one.

        Raises:
            InternalError: the one cannot follow the other.
        """
        if state is self.now:
            return
        if state not in MOVES[self.now]:
            raise InternalError(f"a worker that is {self.now} cannot become {state}")
        self.now = state
        self._untold.append(state)
        self._moved.set()

    async def tell(self) -> None:
        """Tell the listeners what they have not been told."""
        while self._untold:
            state = self._untold.popleft()
            for listener in self.listeners:
                try:
                    await listener(state)
                except Exception:  # who looks on does not stop the work
                    logger.exception("on_state, which was told %r", str(state))

    async def tell_for_ever(self) -> NoReturn:
        """Tell the listeners as it happens."""
        while True:
            await self.tell()
            self._moved.clear()
            await self._moved.wait()

"""The states of a worker: which may follow which."""

from __future__ import annotations

import pytest

from millstream.errors import InternalError
from millstream.worker._state import MOVES, StateLog, WorkerState


def test_moves() -> None:
    """Every move that stands in the table is taken, any other is a bug; the same state again is no move."""
    for before in WorkerState:
        for after in WorkerState:
            log = StateLog()
            log.now = before
            if after is before or after in MOVES[before]:
                log.move(after)
                assert log.now is after
            else:
                with pytest.raises(InternalError, match=f"is {before} cannot become {after}"):
                    log.move(after)


async def test_all_are_told_in_order() -> None:
    """States that were over before anybody could be told are told as well, once each."""
    log = StateLog()
    told: list[str] = []

    async def listen(state: WorkerState) -> None:
        told.append(state)

    log.listeners.append(listen)
    for state in (WorkerState.RECOVERING, WorkerState.RUNNING, WorkerState.RUNNING):
        log.move(state)
    await log.tell()
    await log.tell()
    assert told == ["joining", "recovering", "running"]

"""Named observation points of a worker's life, for telemetry and for tests that break things.

A point is reached once for an epoch, a rebalance or a recovery, never for an event. With no observer a
point costs one truth test. The names are listed in `POINTS`: a point that is not listed there is an error,
and so the tests can hold the list against what they have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from millstream.errors import InternalError

__all__ = ["POINTS", "Observer", "observe", "reached"]

Observer = Callable[[str, dict[str, object]], None]
"""Called with the point's name and its facts; what it raises, the worker raises."""

POINTS = {
    "commit.cut": "the finished prefix is chosen, and the buffers are swapped out",
    "commit.encoded": "every dirty key and every output is encoded",
    "commit.sent": "the epoch is about to be handed to the transport",
    "commit.writing": "inside the transport's transaction, before the first write",
    "commit.appended": "inside the transport's transaction, records are written and offsets are not",
    "commit.positioned": "inside the transport's transaction, offsets are written, before its end",
    "commit.committed": "the transport has committed; the local state does not hold the epoch yet",
    "commit.applying": "a slice of the epoch is in the local state",
    "commit.applied": "the local state holds the epoch",
    "recovery.started": "a shard begins to replay its changelogs",
    "recovery.slice": "a slice of the changelogs is in the local state",
    "recovery.finished": "a shard's tables are whole",
    "group.assigned": "an assignment has been received and applied",
    "group.left": "the worker has left its group",
}

_observers: list[Observer] = []


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call ``observer`` at every point that is reached inside the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def reached(point: str, **facts: object) -> None:
    """Tell the observers that ``point`` is reached."""
    if _observers:
        if point not in POINTS:
            raise InternalError(f"observation point {point!r} is not declared")
        for observer in tuple(_observers):
            observer(point, facts)

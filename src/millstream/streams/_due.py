"""Handing on what was held back and is due, so that a failure blames the row, and not the record that brought the time.

A value that a row's functions write may be refused only at the commit. The shard then goes through its events again and
looks for the one that wrote it: here, it looks before a row and behind it.

However much is due, an event lets out only so much of it (`has_room`): as many rows as come through without the event
loop standing still, and none once the next epoch is full. The part then says that more is due, which leaves in events
of its own before the next record. Where the record at hand has to wait for all of it, as with timers or the rows of a left join, its event is undone and comes again when that is out (`DueFirstError`). So an event's output is above the bound of an epoch by no more than that of a row.

A row whose failure the policy lets pass comes again with the next attempt, like the record at hand, and is passed over
then: `millstream.worker` remembers it until that is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from millstream.tables import DueError, DueFirstError, DueRow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from millstream.context import Scope
    from millstream.streams._operator import Done

__all__ = ["each_due", "hand_on_due", "has_room"]

T = TypeVar("T")

LET_OUT_MAX: Final = 5_000
"""Rows that one event lets out of a part."""


def has_room(scope: Scope, let_out: int) -> bool:
    """Whether an event may let out another row.

    Args:
        let_out: how many it has let out of the part.
    """
    return let_out < LET_OUT_MAX and not scope.subtopology.is_full


def each_due(
    scope: Scope,
    items: Iterable[T],
    go: Callable[[T], Done],
    row_of: Callable[[T], DueRow],
) -> Done:
    """Hand on several rows, one after the other.

    Args:
        items: taken out of where they were held, as they are asked for.
        row_of: how failures know one of them.
    """
    iterator = iter(items)
    if scope.shard.failures.is_searching:
        return _rest(_nothing(), scope, iterator, go, row_of)
    shard_due = scope.shard.due
    for item in iterator:
        # `hand_on_due`, without a call for each
        if shard_due.passing and shard_due.pass_by(scope, row_of(item)):
            continue
        try:
            done = go(item)
        except Exception as exc:
            raise _blamed(exc, item, row_of) from exc
        if done is not None:
            return _rest(_watched(done, item, row_of), scope, iterator, go, row_of)
    return None


async def _rest(
    done: Awaitable[None],
    scope: Scope,
    items: Iterator[T],
    go: Callable[[T], Done],
    row_of: Callable[[T], DueRow],
) -> None:
    await done
    for item in items:
        again = hand_on_due(scope, item, go, row_of)
        if again is not None:
            await again


def hand_on_due(
    scope: Scope, item: T, go: Callable[[T], Done], row_of: Callable[[T], DueRow]
) -> Done:
    """Hand on one row, unless it is to be passed over.

    Raises:
        DueError: that has failed.
    """
    due = scope.shard.due
    if due.passing and due.pass_by(scope, row_of(item)):
        return None
    if scope.shard.failures.is_searching:
        return _looked(scope, item, go, row_of)
    try:
        done = go(item)
    except Exception as exc:
        raise _blamed(exc, item, row_of) from exc
    return None if done is None else _watched(done, item, row_of)


async def _looked(
    scope: Scope, item: T, go: Callable[[T], Done], row_of: Callable[[T], DueRow]
) -> None:
    """Hand on a row, and see whether what follows from it can be committed; what went before it is not its own."""
    failures = scope.shard.failures
    failures.look(scope)
    try:
        done = go(item)
        if done is not None:
            await done
        failures.look(scope)
    except Exception as exc:
        raise _blamed(exc, item, row_of) from exc


async def _nothing() -> None:
    return None


async def _watched(done: Awaitable[None], item: T, row_of: Callable[[T], DueRow]) -> None:
    try:
        await done
    except Exception as exc:
        raise _blamed(exc, item, row_of) from exc


def _blamed(error: Exception, item: Any, row_of: Callable[[Any], DueRow]) -> Exception:
    if isinstance(error, (DueError, DueFirstError)) or getattr(error, "culprit", None) is not None:
        return error  # somebody else is to blame
    return DueError(row_of(item))

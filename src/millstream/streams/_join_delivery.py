"""Handing on what joins make: pairs through the joiner, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from millstream.streams._due import each_due
from millstream.streams._operator import WAITS, each, finish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from millstream.context import IncomingRecord, Scope
    from millstream.records import Headers
    from millstream.streams._join_waiting import Waiting, WaitingPart
    from millstream.streams._operator import Done

__all__ = ["Deliver", "Pair", "deliver_waiting", "delivery", "then"]

Pair: TypeAlias = "tuple[Any, Any, Any, int]"
"""Key, left value, right value, timestamp."""
Deliver: TypeAlias = "Callable[[Sequence[Pair]], Done]"


def delivery(joiner: Callable[[Any, Any], Any], forward: Callable[..., Done]) -> Deliver:
    """A function that hands on what the joiner makes of pairs."""

    def deliver_one(pair: Pair) -> Done:
        key, left, right, timestamp = pair
        made = joiner(left, right)
        if made.__class__ in WAITS:
            return finish(made, lambda found: forward(key, found, timestamp))
        return forward(key, made, timestamp)

    def deliver(pairs: Sequence[Pair]) -> Done:
        if len(pairs) == 1:
            return deliver_one(pairs[0])
        return each(((pair,) for pair in pairs), deliver_one)

    return deliver


def then(done: Done, deliver: Deliver, pairs: Sequence[Pair]) -> Done:
    """Deliver when what is under way is done."""
    return deliver(pairs) if done is None else _then(done, deliver, pairs)


async def _then(done: Awaitable[None], deliver: Deliver, pairs: Sequence[Pair]) -> None:
    await done
    again = deliver(pairs)
    if again is not None:
        await again


class _Disguised:
    """The record at hand, with the headers of another."""

    __slots__ = ("headers", "key", "offset", "timestamp", "value")

    def __init__(self, record: IncomingRecord | None, headers: Headers) -> None:
        self.headers = headers
        self.offset = -1 if record is None else record.offset
        self.timestamp = -1 if record is None else record.timestamp
        self.key = None if record is None else record.key
        self.value = None if record is None else record.value


def deliver_waiting(
    part: WaitingPart,
    rows: Iterable[Waiting],
    scope: Scope,
    deliver: Deliver,
    pair_of: Callable[[Any, Any, int], Pair | None] | None = None,
) -> Done:
    """Deliver rows that have waited, each with the headers that its own record had.

    Args:
        rows: taken out as they are asked for.
        pair_of: makes of key, value and timestamp of a row its pair, or None; without, rows come out alone.
    """
    plain = scope.record is None or not scope.record.headers

    def go(row: Waiting) -> Done:
        pair = _alone(row) if pair_of is None else pair_of(row.key, row.value, row.timestamp)
        if pair is None:
            return None
        if plain and not row.headers:
            return deliver([pair])
        return _with_headers(pair, row.headers, scope, deliver)

    return each_due(scope, rows, go, part.due_row)


async def _with_headers(pair: Pair, headers: Headers, scope: Scope, deliver: Deliver) -> None:
    record = scope.record
    try:
        scope.record = _Disguised(record, headers)
        done = deliver([pair])
        if done is not None:
            await done
    finally:
        scope.record = record


def _alone(row: Waiting) -> Pair:
    left, right = (row.value, None) if row.left else (None, row.value)
    return row.key, left, right, row.timestamp

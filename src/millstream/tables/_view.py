"""Tables as everyone outside of an event sees them: what is committed, in any shard, on any worker."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast, overload

import msgspec

from millstream.clock import timestamp_ms
from millstream.errors import BadQueryError, DecodeError
from millstream.records import Position
from millstream.tables._query import (
    Read,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from millstream.tables._query import Page, Queries, TableInfo
    from millstream.windows import Window

__all__ = ["View", "ViewChange"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

PAGE_ENTRIES = 500
"""Entries that `View.items` asks for at once."""

Moment = datetime | int
"""A time: an aware datetime, or ms since the epoch."""


class ViewChange(NamedTuple, Generic[K, V]):
    """One change of a table.

    Attributes:
        key: which entry; None where ``missed``.
        value: its value now; None where it was deleted.
        window: its window, in a windowed table.
        deleted: whether the entry is gone.
        missed: changes came faster than they were taken, and some are lost: read the table again.
    """

    key: K | None
    value: V | None
    window: Window | None = None
    deleted: bool = False
    missed: bool = False


class View(Generic[K, V]):
    """A table from outside: reads committed values, whoever owns the key.

    Any number of tasks may use one view. What is read of one shard belongs to one commit; shards commit
    independently of one another.

    Raises (any use):
        TypeError, ValueError: the key is not of the declared type.
        UnknownTableError, BadQueryError: the question is wrong.
        UnavailableError: nobody can answer now, for example while a shard moves to another worker.
    """

    def __init__(self, info: TableInfo, queries: Queries, *, stale_ms: int | None = None) -> None:
        self.name = info.name
        self._info = info
        self._queries = queries
        self._stale_ms = stale_ms

    def __repr__(self) -> str:
        return f"<View {self.name!r}>"

    @overload
    async def get(
        self,
        key: K,
        default: None = None,
        *,
        at: Moment | None = None,
        at_least: Position | str | Iterable[Position | str] = (),
    ) -> V | None: ...
    @overload
    async def get(
        self,
        key: K,
        default: D,
        *,
        at: Moment | None = None,
        at_least: Position | str | Iterable[Position | str] = (),
    ) -> V | D: ...
    async def get(
        self,
        key: K,
        default: Any = None,
        *,
        at: Moment | None = None,
        at_least: Position | str | Iterable[Position | str] = (),
    ) -> Any:
        """The value, or ``default`` where there is none; the table's own default is not used.

        Args:
            at: in a windowed table, the value of the latest-starting window that contains this time; of
                the key's newest window where left out.
            at_least: records, as `Topic.send` returns them, that the answer has to reflect: read your
                writes. They have to be in a topic that the key's shard reads itself.
        """
        page = await self._queries.read(
            Read(
                table=self.name,
                key=self._info.layout.encode(key),
                at=None if at is None else timestamp_ms(at),
                reverse=True,
                limit=1,
                at_least=_positions(at_least),
                stale_ms=self._stale_ms,
            )
        )
        return self._value(page.entries[0].key, page.entries[0].value) if page.entries else default

    async def windows(
        self,
        key: K,
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        reverse: bool = False,
    ) -> AsyncIterator[tuple[Window, V]]:
        """The windows of a key that begin in ``start <= time < end``, the oldest first, or the latest.

        Args:
            start: an aware datetime, or ms since the epoch; so is ``end``.

        Raises:
            BadQueryError: the table has no windows.
            UnavailableError: nobody can answer at the moment.
        """
        read = Read(
            table=self.name,
            key=self._info.layout.encode(key),
            from_=None if start is None else timestamp_ms(start),
            to=None if end is None else timestamp_ms(end),
            reverse=reverse,
            limit=PAGE_ENTRIES,
            stale_ms=self._stale_ms,
        )
        async for page in self._pages(read):
            for entry in page.entries:
                if entry.window is None:
                    raise BadQueryError(f"table {self.name!r} has no windows: ask with get()")
                yield entry.window, self._value(entry.key, entry.value)

    async def items(
        self,
        *,
        start: K | None = None,
        end: K | None = None,
        prefix: Any = None,
        reverse: bool = False,
    ) -> AsyncIterator[tuple[K, V]]:
        """Entries of all shards, with ``start <= key < end``, or with keys that begin with ``prefix``.

        They come in key order, or with ``reverse`` in the opposite one. In a windowed table the key is a pair of key and `Window`; tumbling, hopping
        and calendar windows come in order of their start. Entries that are written while iterating may be
        in or not.
        """
        layout = self._info.layout
        if prefix is not None and (start is not None or end is not None):
            raise BadQueryError(f"table {self.name!r}: give prefix, or start and end, not both")
        if prefix is not None:
            first, last = layout.prefix(prefix)
        else:
            first = b"\x01" if start is None else layout.encode(start)
            last = None if end is None else layout.encode(end)
        read = Read(
            table=self.name,
            start=first,
            end=last,
            prefix=prefix,
            reverse=reverse,
            limit=PAGE_ENTRIES,
            stale_ms=self._stale_ms,
        )
        async for page in self._pages(read):
            for entry in page.entries:
                key = layout.decode(entry.key)
                shown = key if entry.window is None else (key, entry.window)
                yield cast("K", shown), self._value(entry.key, entry.value)

    async def changes(self, key: K | None = None) -> AsyncIterator[ViewChange[K, V]]:
        """Changes as they are committed, of all keys or of one, from now on and for ever.

        Who takes them slower than they come gets the last value of each key, and, when even those are too
        many, one change that says ``missed``.
        """
        layout = self._info.layout
        stream = self._queries.changes(self.name, None if key is None else layout.encode(key))
        async with contextlib.aclosing(stream) as batches:  # type: ignore[type-var]
            async for batch in batches:
                if batch.missed:
                    yield ViewChange(None, None, missed=True)
                for change in batch.changes:
                    of = layout.decode(change.key)
                    if change.value is None:
                        yield ViewChange(of, None, change.window, deleted=True)
                    else:
                        yield ViewChange(of, self._value(change.key, change.value), change.window)

    async def _pages(self, read: Read) -> AsyncIterator[Page]:
        while True:
            page = await self._queries.read(read)
            yield page
            if page.next is None:
                return
            read = msgspec.structs.replace(read, after=page.next)

    def _value(self, key: bytes, value: bytes) -> V:
        try:
            return cast("V", self._info.load(value))
        except (ValueError, TypeError) as exc:
            raise DecodeError(
                f"table {self.name!r}, key {self._info.layout.decode(key)!r}",
                part="stored value",
                type_name=self._info.codec.type_name,
                reason=str(exc),
            ) from exc


def _positions(
    given: Position | str | Iterable[Position | str],
) -> tuple[tuple[str, int, int], ...]:
    listed = [given] if isinstance(given, (str, Position)) else given
    return tuple(
        tuple(Position.parse(one)) if isinstance(one, str) else tuple(one)  # type: ignore[misc]
        for one in listed
    )

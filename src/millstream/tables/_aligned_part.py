"""Tumbling, hopping and calendar windows in one shard; the theory of operation is in `_windowed_base`."""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._windowed_base import (
    CLOSED_KEY,
    DUE_MAX,
    EXPIRE_KEYS_MAX,
    NEVER,
    WAITS,
    Due,
    WindowedPart,
)
from millstream.windows import Hopping, Tumbling, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.state.base import TableStore
    from millstream.windows import AlignedWindows

__all__ = ["AlignedPart"]

_pack = struct.Struct(">Q").pack


class AlignedPart(WindowedPart):
    """Tumbling, hopping and calendar windows. Entries are ``(start, key)``."""

    __slots__ = (
        "_expire_from",
        "advance_ms",
        "grace_ms",
        "open_starts",
        "size_ms",
        "span_ms",
        "stamped",
        "tumbles",
        "windows",
    )

    cursor_entry = (-1, None)
    first_key = b"\x02"

    def __init__(
        self,
        name: str,
        *,
        windows: AlignedWindows,
        store: TableStore,
        encode_key: Callable[[Any], bytes],
        decode_key: Callable[[bytes], Any],
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
        mutable: bool,
        check: Callable[[Any], None],
        clock: Clock,
        closes: bool = False,
        stamped: bool = False,
        type_name: str = "value",
        cache_size: int = 32_768,
    ) -> None:
        """Arguments as for `TablePart`, where keys are those of the program.

        Args:
            stamped: values are kept as ``(newest, value)``, with the newest timestamp that contributed.
        """

        def encode_entry(entry: tuple[int, Any]) -> bytes:
            start, key = entry
            return CLOSED_KEY if start < 0 else b"\x02" + _pack(start) + encode_key(key)

        def decode_entry(data: bytes) -> tuple[int, Any]:
            return int.from_bytes(data[1:9], "big"), decode_key(data[9:])

        def check_entry(entry: tuple[int, Any]) -> None:
            if entry[0] >= 0:
                check(entry[1])

        super().__init__(
            name,
            store=store,
            encode_key=encode_entry,
            decode_key=decode_entry,
            dumps=dumps,
            loads=loads,
            mutable=mutable,
            check=check_entry,
            clock=clock,
            closes=closes,
            type_name=type_name,
            cache_size=cache_size,
        )
        self.windows = windows
        self.stamped = stamped
        self.grace_ms = windows.grace_ms
        self.size_ms = self.advance_ms = self.span_ms = 0
        self.tumbles = isinstance(windows, Tumbling) and windows.offset_ms == 0
        if isinstance(windows, Tumbling | Hopping):
            self.size_ms, self.advance_ms = windows.size_ms, windows.advance_ms
            self.span_ms = windows.size_ms + windows.grace_ms
            if windows.offset_ms == 0 and not mutable and not stamped:
                self.flat = 1 if isinstance(windows, Tumbling) else 2
        self.open_starts: set[int] = set()
        """Starts of windows that may have data and are not closed; kept only where windows close."""
        self._expire_from = 0

    def shown(self, key: Any) -> Any:
        return key[1], self.windows.window(key[0])

    def window_of(self, entry: tuple[int, Any]) -> Window:
        return self.windows.window(entry[0])

    def entry_of(self, key: Any, window: Window) -> Any:
        return window.start, key

    def plain(self, stored: Any) -> Any:
        return stored[1] if self.stamped else stored

    def stamp_of(self, entry: Any, stored: Any) -> int:
        return stored[0] if self.stamped else super().stamp_of(entry, stored)

    def _encode(self, key: Any, value: Any) -> bytes:
        if self.stamped and key[0] >= 0:
            try:
                data = self.dumps(value[1])
                if len(data) <= self.value_bytes_max:
                    return _pack(value[0]) + data
            except Exception:  # met again, and said, below
                pass
            return _pack(value[0]) + super()._encode(key, value[1])
        return super()._encode(key, value)

    def decode(self, key: Any, data: bytes) -> Any:
        if self.stamped and key[0] >= 0:
            try:
                return int.from_bytes(data[:8], "big"), self.loads(data[8:])
            except Exception:
                return int.from_bytes(data[:8], "big"), super().decode(key, data[8:])  # says what
        return super().decode(key, data)

    def first(self, entry: tuple[int, Any], initial: Callable[[Any, TablePart], Any]) -> Any:
        """The value of an entry that is not dirty, or deleted; of immutable ones, without a journal."""
        value = DELETED if entry in self.dirty else self.load(entry)
        if value is MISSING or value is DELETED:
            value = initial(entry[1], self)
            if self.closes:
                self.opened(entry[0])
        return value

    def entries_of(self, keys: Sequence[Any], timestamps: Sequence[int]) -> Iterable[Any]:
        if self.tumbles:
            size = self.size_ms
            return [(at - at % size, key) for key, at in zip(keys, timestamps, strict=True)]
        starts = self.windows.starts
        return (
            (start, key) for key, at in zip(keys, timestamps, strict=True) for start in starts(at)
        )

    def opened(self, start: int) -> None:
        """A window has data, perhaps for the first time."""
        if start not in self.open_starts:
            self.open_starts.add(start)
            if not self.closing_due:
                self.due_at = min(self.due_at, self.windows.end(start) + self.grace_ms)

    def _accepted(self, scope: Scope, stream_time: int | None = None) -> list[int]:
        """Starts of the event's windows that take it; others are counted."""
        own_time = self.seen(scope)
        if stream_time is None:
            stream_time = own_time
        starts = self.windows.starts(scope.timestamp)
        if scope.timestamp >= stream_time:
            return list(starts)
        accepted = []
        for start in starts:
            final_at = self.windows.end(start) + self.grace_ms
            if final_at > stream_time:
                accepted.append(start)
            else:
                self.late(start, final_at, scope)
        return accepted

    def update(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
        changed: list[tuple[Window, Any, Any]] | None = None,
        stream_time: int | None = None,
    ) -> None:
        for start in self._accepted(scope, stream_time):
            entry = (start, key)
            value = before = self.get(entry, scope)
            if self.store_retention_ms:
                value = before = MISSING if self.is_gone(start) else value
                self.store_time = max(self.store_time, start)
            if value is MISSING:
                value = initial(key, self)
                if self.closes:
                    self.opened(start)
            value = operation(value, operand)
            self.set(entry, value, scope)
            if changed is not None:
                changed.append((self.windows.window(start), value, before))

    def fold(
        self,
        key: Any,
        value: Any,
        add: Callable[[Any, Any], Any],
        first: Callable[[], Any],
        scope: Scope,
        changed: list[tuple[Window, Any, Any]] | None,
        stream_time: int | None,
        starts: Sequence[int] | None = None,
    ) -> Generator[Any, Any, None] | None:
        """`update` of stamped values: ``add(value so far, value)`` for every window that takes the event.

        Args:
            starts: of the windows, where those of the event are not all meant.

        Returns:
            None, or the steps that are left because what ``add`` has returned is still to come: they give that, and
            are sent its result.
        """
        timestamp, plain = scope.timestamp, scope.journal is None
        own_time = self.stream_time
        if not plain or timestamp > own_time:
            own_time = self.seen(scope)
        if stream_time is None:
            stream_time = own_time
        if starts is None:
            if self.tumbles:
                starts = (timestamp - timestamp % self.size_ms,)
            else:
                starts = self.windows.starts(timestamp)
        for start in starts:
            if timestamp < stream_time:
                final_at = self.windows.end(start) + self.grace_ms
                if final_at <= stream_time:
                    self.late(start, final_at, scope)
                    continue
            entry = (start, key)
            before = self.dirty.get(entry) if plain else None
            there = before is not None and before is not DELETED
            if not there:
                before = self.get(entry, scope)
            if self.store_retention_ms:
                before = MISSING if self.is_gone(start) else before
                self.store_time = max(self.store_time, start)
            if before is MISSING:
                newest, made = timestamp, add(first(), value)
                if self.closes:
                    self.opened(start)
            else:
                newest, old = cast("tuple[int, Any]", before)
                made = add(self.copy(old) if self.keeps_old else old, value)
                if newest < timestamp:
                    newest = timestamp
            if made.__class__ in WAITS:
                rest = starts[starts.index(start) + 1 :]
                return self._fold_later(
                    start,
                    before,
                    newest,
                    made,
                    key,
                    value,
                    add,
                    first,
                    scope,
                    changed,
                    stream_time,
                    rest,
                )
            stored = newest, made
            if there and not self.fresh:
                self.dirty[entry] = stored
            else:
                self.set(entry, stored, scope)
            if changed is not None:
                changed.append((self.windows.window(start), stored, before))
        return None

    def _fold_later(
        self,
        start: int,
        before: Any,
        newest: int,
        made: Any,
        key: Any,
        value: Any,
        add: Callable[[Any, Any], Any],
        first: Callable[[], Any],
        scope: Scope,
        changed: list[tuple[Window, Any, Any]] | None,
        stream_time: int,
        rest: Sequence[int],
    ) -> Generator[Any, Any, None]:
        stored = newest, (yield made)
        self.set((start, key), stored, scope)
        if changed is not None:
            changed.append((self.windows.window(start), stored, before))
        steps = self.fold(key, value, add, first, scope, changed, stream_time, rest)
        if steps is not None:
            yield from steps

    def event_windows(
        self, key: Any, initial: Callable[[Any, TablePart], Any], scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        for start in self._accepted(scope):
            entry = (start, key)
            value = self.get(entry, scope)
            if value is MISSING:
                value = initial(key, self)
                if self.mutable:
                    self.keep_default(entry, value)
                    if self.closes:
                        self.opened(start)
            yield self.windows.window(start), value

    def discard(self, key: Any, scope: Scope) -> None:
        for start in self._accepted(scope):
            if self.contains((start, key), scope):
                self.delete((start, key), scope)

    def _expires_at(self, entry: tuple[int, Any]) -> int:
        return self.windows.expires_at(entry[0])

    def at(self, key: Any, moment: int, scope: Scope) -> Any:
        self.looked(scope)
        if moment < 0:
            return MISSING
        return self.read((self.windows.latest(moment), key), scope)

    def of_key(
        self, key: Any, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        stream_time = self.looked(scope)
        oldest = max(0, stream_time - self.windows.retention_ms)
        first = oldest if start is None else max(start, oldest)
        after = stream_time + 1 if end is None else min(end, stream_time + 1)
        for at in self.windows.starts_between(first, after):
            value = self.read((at, key), scope)
            if value is not MISSING:
                yield self.windows.window(at), value

    def of_shard(
        self, start: int | None, end: int | None, scope: Scope, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Window, Any]]:
        self.looked(scope)
        first = b"\x02" + _pack(max(start or 0, 0))
        after = b"\x03" if end is None else b"\x02" + _pack(max(end, 0))
        for entry in self.keys(first, after, reverse=reverse):
            if self.windows.expires_at(entry[0]) > self.stream_time:
                yield entry[1], self.windows.window(entry[0]), entry

    # closing --------------------------------------------------------------------------------------

    def _place(self, entry: Any) -> bytes:
        return self.encode_key(entry)

    def _final_at(self, entry: Any) -> int:
        return self.windows.end(entry[0]) + self.grace_ms

    def _find_open(self) -> None:
        at = max(b"\x02", self._cut_cursor + b"\x00")
        while (key := next(iter(self.store.keys(at, b"\x03")), None)) is not None:
            start = int.from_bytes(key[1:9], "big")
            self.opened(start)
            at = b"\x02" + _pack(start + 1)

    def due(self) -> list[Due]:
        found: list[Due] = []
        if self.busy:
            return found
        final = [
            start for start in self.open_starts if self._final_at((start, None)) <= self.stream_time
        ]
        lately: dict[int, list[Any]] = {start: [] for start in final}
        for source in (self.committing, self.dirty):
            for entry in source:
                if entry[0] in lately:
                    lately[entry[0]].append(entry)
        for start in sorted(final):
            window = self.windows.window(start)
            after = self._after_cursor(start, lately[start], DUE_MAX - len(found))
            of_start = [Due(entry, entry[1], window, place) for place, entry in after]
            if not of_start:
                self.open_starts.discard(start)
            found += of_start
            if len(found) >= DUE_MAX:
                break
        if not found:
            self.closing_due = False
            self.due_at = NEVER
            if self.open_starts:
                self.due_at = self.windows.end(min(self.open_starts)) + self.grace_ms
        return found

    def _after_cursor(
        self, start: int, lately: Iterable[Any], count: int
    ) -> list[tuple[bytes, Any]]:
        """The window's first ``count`` entries after the cursor, in key order.

        Args:
            lately: those of its entries that may not be in the store.
        """
        cursor = self.cursor()
        prefix = b"\x02" + _pack(start)
        overlay = {self.encode_key(entry): entry for entry in lately}
        here = [(k, e) for k, e in overlay.items() if k > cursor and self.exists(e)]
        first = max(prefix, cursor + b"\x00")
        stored = (k for k in self.store.keys(first, b"\x02" + _pack(start + 1)) if k not in overlay)
        here += [(k, self.decode_key(k)) for k in islice(stored, count)]
        return sorted(here, key=lambda pair: pair[0])[:count]

    # expiry ---------------------------------------------------------------------------------------

    def _expiry_limit(self) -> int:
        return self.keeping_time - self.windows.retention_ms

    def _closed_limit(self) -> int:
        return int.from_bytes(self._cut_cursor[1:9], "big") - 1

    def _expiry_moves(self, limit: int) -> bool:
        if limit < self._expire_from:
            return False
        self._expire_from = next(iter(self.windows.starts_between(limit + 1, NEVER)), limit + 1)
        return True

    def _is_expired(self, entry: Any, limit: int) -> bool:
        return bool(entry[0] <= limit)

    def _expired_keys(self, limit: int) -> Iterable[bytes]:
        end = b"\x02" + _pack(limit + 1)
        keys = list(islice(self.store.keys(self._scan_from, end), EXPIRE_KEYS_MAX))
        self._expiring = len(keys) == EXPIRE_KEYS_MAX
        self._scan_from = keys[-1] + b"\x00" if self._expiring else end
        return keys

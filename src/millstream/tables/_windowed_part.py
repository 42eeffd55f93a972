"""Windowed tables in one shard: a `TablePart` that keeps time, forgets old windows, and tells which are final.

Theory of operation
-------------------
**Layout.** Aligned windows (tumbling, hopping, calendar) lie by time, then key; sliding windows and sessions by
key, then time, with a local index by time::

    02 start(8) key             entry (start, key)
    03 key end(8) start(8)      entry (key, end, start)
    04 end(8) 03 key end start  index of the line above: in the store alone, derived by `index_key`
    00 time                     operator stream time
    00 closed                   the closing cursor: the place of the last window that was closed

So what expires is one range of keys, and what closes is a scan in order of window end, then key. Numbers are
big endian. A sliding window's value begins with 8 bytes: the newest timestamp that contributed to it.

**Stream time** is the highest event time that the part has seen. In a shard without journals a cut takes it as
it is. In one with journals each event notes the time that it brings (`Scope.times`), and the cut takes the
highest of the events in it. Time is not an entry like others, or each event would be tied to the one before:
the highest of several times does not depend on their order. Only who *acted* on a time that others brought (its
window was closed by them, or expired) is tied to the event that brought it (`_tie`).

**Expiry.** A window whose retention is over is not read any more, whether or not its bytes are still there.
Each cut takes tombstones for at most `EXPIRE_KEYS_MAX` of them: entries of this epoch are deleted where they
stand, those in the store are found by a keys-only scan, and go as bytes. The bound follows from the committed
stream time, so it needs no key of its own, and the first scan after a recovery begins at the oldest entry: what
lies before the bound is dropped whatever happened before. With ``on_close`` nothing expires that does not end
before the closing cursor of the same cut.

**Closing.** The part knows the moment at which the next window with data becomes final (``due_at``), and says so
once (``on_due``). `due` lists final windows after the cursor, in order; `close` reads one and moves the cursor.
The cursor is an entry like others, under a reserved dict key, so it is cut, undone and tied with the event that
moved it: each window is closed once.
"""

from __future__ import annotations

import functools
import heapq
import struct
from abc import abstractmethod
from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.windows import Hopping, Session, Sliding, Tumbling, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.context import IncomingRecord, PreImage, Scope
    from millstream.state.base import TableStore
    from millstream.windows import AlignedWindows

__all__ = ["AlignedPart", "Due", "KeyedPart", "WindowedPart", "index_key"]

TIME_KEY: Final = b"\x00time"
CLOSED_KEY: Final = b"\x00closed"

EXPIRE_KEYS_MAX: Final = 1_000
"""Entries of the store that expire with one cut."""
DUE_MAX: Final = 1_000
"""Windows that are listed for closing at once."""
STALE_MAX: Final = 64
"""Index entries of deleted windows that are passed over when the next due moment is looked for."""

NEVER: Final = 1 << 62

_number = struct.Struct(">Q")
_pack = _number.pack
_two_numbers = struct.Struct(">QQ")


class Due(NamedTuple):
    """A window that is final."""

    entry: Any
    """Its key in the part's dicts."""
    key: Any
    window: Window
    place: bytes
    """Where it stands in the order of closing."""


class WindowedPart(TablePart):
    """What parts of windowed tables have in common. Reads give values that the caller may keep."""

    __slots__ = (
        "_base_time",
        "_cut_cursor",
        "_expired_to",
        "_expiring",
        "_late_record",
        "_late_windows",
        "_recheck",
        "_scan_from",
        "_timed",
        "_written_time",
        "clock",
        "closes",
        "closing_due",
        "due_at",
        "flat",
        "late_records",
        "on_due",
        "on_late",
        "stream_time",
    )

    cursor_entry: Any
    """The dict key of the closing cursor."""
    first_key: bytes
    """Where the part's scans for expiry begin."""

    def __init__(
        self,
        name: str,
        *,
        store: TableStore,
        encode_key: Callable[[Any], bytes],
        decode_key: Callable[[bytes], Any],
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
        mutable: bool,
        check: Callable[[Any], None],
        clock: Clock,
        closes: bool = False,
        type_name: str = "value",
        cache_size: int = 32_768,
    ) -> None:
        """
        Args:
            encode_key: from entry to store key.
            decode_key: from store key to entry.
            check: for an entry.
            closes: whether final windows are to be closed.

        Others as for `TablePart`.
        """
        super().__init__(
            name,
            store=store,
            encode_key=encode_key,
            decode_key=decode_key,
            dumps=dumps,
            loads=loads,
            mutable=mutable,
            check=check,
            type_name=type_name,
            cache_size=cache_size,
        )
        self.clock = clock
        self.closes = closes
        self.flat = 0
        """For the hot path: 1 tumbling, 2 hopping, both without offset and with immutable values; else 0."""
        self.stream_time = -1
        """The highest event time seen, committed or not."""
        self._base_time = -1
        """While events in ``_timed`` are not cut: stream time without them."""
        self._timed: dict[Scope, int] = {}
        self._written_time = -1
        self.late_records = 0
        """Updates dropped because their window takes no more, once for each record and window."""
        self.on_late: Callable[[int], None] | None = None
        """Called with the record's event time for each update that is dropped."""
        self._late_record: IncomingRecord | None = None
        self._late_windows: set[int] = set()
        self.due_at = NEVER
        """Stream time at which the next open window may become final."""
        self.closing_due = False
        """Whether `due` may have something; nothing is asked of the part until it has been asked."""
        self.on_due: Callable[[], None] = _nothing
        """Called once when windows become due, in the middle of the event that brought the time."""
        self._cut_cursor = b""
        self._expired_to = -1
        self._expiring = False
        self._recheck = False
        self._scan_from = self.first_key

    # time -----------------------------------------------------------------------------------------

    def seen(self, scope: Scope) -> int:
        """Advance stream time to the event's; returns stream time."""
        timestamp = scope.timestamp
        if scope.journal is not None:
            if not self._timed:
                self._base_time = self.stream_time
            if timestamp > self._base_time and timestamp > scope.times.get(self, -1):
                scope.times[self] = self._timed[scope] = timestamp
        if timestamp > self.stream_time:
            self.stream_time = timestamp
            if timestamp >= self.due_at:
                self.became_due()
        return self.stream_time

    def advance(self, timestamp: int) -> None:
        """Advance stream time from outside of any event: idle inputs."""
        if self._timed and timestamp > self._base_time:
            self._base_time = timestamp
        if timestamp > self.stream_time:
            self.stream_time = timestamp
            if timestamp >= self.due_at:
                self.became_due()

    def became_due(self) -> None:
        """Say that windows are final."""
        self.due_at = NEVER
        self.closing_due = True
        self.on_due()

    def _tie(self, moment: int, scope: Scope) -> None:
        """The event acts on stream time having reached ``moment``: tie it to who brought that."""
        if scope.journal is None or not self._timed or moment <= self._base_time:
            return
        for owner, timestamp in self._timed.items():
            if timestamp >= moment:
                if owner is not scope:
                    scope.depends.add(owner)
                return

    def late(self, window: int, moment: int, scope: Scope) -> None:
        """Count an update for a window, told by a number, that was final at ``moment``."""
        self._tie(moment, scope)
        if scope.record is not self._late_record or scope.record is None:
            self._late_record = scope.record
            self._late_windows.clear()
        elif window in self._late_windows:
            return
        self._late_windows.add(window)
        self.late_records += 1
        if self.on_late is not None:
            self.on_late(scope.timestamp)

    def take_times(self, events: Sequence[Scope]) -> None:
        """These events go with the next cut: so does the event time that they brought."""
        for event in events:
            timestamp = self._timed.pop(event, None)
            if timestamp is not None and timestamp > self._base_time:
                self._base_time = timestamp

    def undo_time(self, scope: Scope) -> None:
        """The event is undone: so is the event time that it brought."""
        if self._timed.pop(scope, None) is not None:
            self.stream_time = max([self._base_time, *self._timed.values()])

    @property
    def lasting_time(self) -> int:
        """Stream time without that of events which may still be undone."""
        return self._base_time if self._timed else self.stream_time

    # values ---------------------------------------------------------------------------------------

    def peek(self, entry: Any, scope: Scope) -> Any:
        """The value, or `MISSING`: the caller's own, where values can change."""
        if scope.journal is not None:
            self.touch(entry, scope)
        if entry in self.dirty:
            if not self._is_kept(entry):
                return MISSING
            value = self.dirty[entry]
            return self.decode(entry, self._encode(entry, value)) if self.mutable else value
        if self.mutable:
            data = self._bytes_of(entry)
            return MISSING if data is None else self.decode(entry, data)
        value = self.load(entry)
        return MISSING if value is DELETED else value

    def exists(self, entry: Any) -> bool:
        """Whether there is such an entry, asked by nobody in particular."""
        if entry in self.dirty:
            return self._is_kept(entry)
        if self.mutable:
            return self._bytes_of(entry) is not None
        value = self.load(entry)
        return value is not MISSING and value is not DELETED

    def copy(self, value: Any) -> Any:
        """Another object with the value."""
        return self.loads(self.dumps(value)) if self.mutable else value

    def value_of(self, stored: Any) -> Any:
        """The program's value in what `peek` gives."""
        return stored

    # what kinds of windows differ in --------------------------------------------------------------

    @abstractmethod
    def update(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
    ) -> None:
        """Put ``operation(value, operand)`` into every window that takes the event.

        Args:
            initial: makes the value of a window that has none, from key and part.
        """

    @abstractmethod
    def event_windows(
        self, key: Any, initial: Callable[[Any, TablePart], Any], scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        """Windows that take the event, and their values; what is changed in place is kept."""

    @abstractmethod
    def discard(self, key: Any, scope: Scope) -> None:
        """Delete the event's windows, as far as they still take records."""

    @abstractmethod
    def at(self, key: Any, moment: int, scope: Scope) -> Any:
        """The value of the latest-starting window that holds ``moment``, or `MISSING`."""

    @abstractmethod
    def read(self, entry: Any, scope: Scope) -> Any:
        """The program's value of an entry, or `MISSING`, also where it has expired."""

    @abstractmethod
    def of_key(
        self, key: Any, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        """Windows of a key with ``start <= window.start < end``, in order of time."""

    @abstractmethod
    def of_shard(
        self, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Any, Window, Any]]:
        """Keys, windows and entries of the shard with ``start <= window.start < end``."""

    @abstractmethod
    def _place(self, entry: Any) -> bytes:
        """Where the entry stands in the order of closing."""

    @abstractmethod
    def due(self) -> list[Due]:
        """Final windows that are not closed, in order of end, then key: the first `DUE_MAX` of them.

        Empty when there are none; the part then tells again when there are.
        """

    @abstractmethod
    def _final_at(self, entry: Any) -> int: ...

    @abstractmethod
    def _find_open(self) -> None:
        """After a recovery: find what is still to close."""

    @abstractmethod
    def _expiry_limit(self) -> int:
        """What has expired at `lasting_time` ends up to here; in the unit of the part's layout."""

    @abstractmethod
    def _closed_limit(self) -> int:
        """What was closed before the last cut ends up to here, in the same unit."""

    @abstractmethod
    def _expiry_moves(self, limit: int) -> bool:
        """Whether there may be more to expire than at the last limit."""

    @abstractmethod
    def _is_expired(self, entry: Any, limit: int) -> bool: ...

    @abstractmethod
    def _expired_keys(self, limit: int) -> Iterable[bytes]:
        """Store keys up to the limit, from ``_scan_from`` on: `EXPIRE_KEYS_MAX` at most; moves it."""

    # closing --------------------------------------------------------------------------------------

    def cursor(self) -> bytes:
        """The place of the last window that was closed, committed or not."""
        return cast("bytes", self.dirty.get(self.cursor_entry, self._cut_cursor))

    def close(self, due: Due, scope: Scope) -> Any:
        """Read a final window and move the cursor past it, in one event; `MISSING` if it is gone."""
        self._tie(self._final_at(due.entry), scope)
        value = self.peek(due.entry, scope)
        if value is MISSING:
            return MISSING
        self.set(self.cursor_entry, due.place, scope)
        return self.value_of(value)

    def _encode(self, key: Any, value: Any) -> bytes:
        if key == self.cursor_entry:
            return cast("bytes", value)
        return super()._encode(key, value)

    def decode(self, key: Any, data: bytes) -> Any:
        if key == self.cursor_entry:
            return data
        return super().decode(key, data)

    # the commit -----------------------------------------------------------------------------------

    def recovered(self) -> None:
        """Read stream time and cursor, and find what is still to close."""
        data = self.store.get(TIME_KEY)
        if data is not None:
            (self.stream_time,) = _number.unpack(data)
        self._base_time = self._written_time = self.stream_time
        self._cut_cursor = self.store.get(CLOSED_KEY) or b""
        if self.closes:
            self._find_open()
            if self.stream_time >= self.due_at:
                self.became_due()

    def is_dirty(self) -> bool:
        """Whether the next cut takes something from here."""
        return self._expiring or super().is_dirty()

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        """Move what is dirty to ``committing``, with stream time, and what expires.

        In a shard with journals `take_times` comes first.
        """
        if not self._timed:
            self._base_time = self.stream_time
        if self._base_time > self._written_time:
            self._written_time = self._base_time
            self.changed_system[TIME_KEY] = _pack(self._base_time)
        super().cut(excluded)
        cursor = self.committing.get(self.cursor_entry)
        if cursor is MISSING:
            cursor = self.encoded[self.cursor_entry]
        if cursor is not None:
            self._cut_cursor = cursor
        self._expire(bool(excluded))

    def _expire(self, again: bool) -> None:
        limit = self._expiry_limit()
        if self.closes:
            limit = min(limit, self._closed_limit())
        moved = limit >= 0 and self._expiry_moves(limit)
        if not (moved or self._expiring or self._recheck):
            self._recheck = again and self._expired_to >= 0
            return
        if moved:
            self._expired_to = limit
            self._expiring = True
        limit = self._expired_to
        if moved or self._recheck:
            for entry in self.committing:
                if entry != self.cursor_entry and self._is_expired(entry, limit):
                    self.committing[entry] = DELETED
                    self.committing_fresh.discard(entry)
        self._recheck = again
        if self._expiring:
            for key in self._expired_keys(limit):
                self.committing_system[key] = None


class AlignedPart(WindowedPart):
    """Tumbling, hopping and calendar windows. Entries are ``(start, key)``."""

    __slots__ = (
        "_expire_from",
        "advance_ms",
        "grace_ms",
        "open_starts",
        "size_ms",
        "span_ms",
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
        type_name: str = "value",
        cache_size: int = 32_768,
    ) -> None:
        """Arguments as for `TablePart`, where keys are those of the program."""

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
        self.grace_ms = windows.grace_ms
        self.size_ms = self.advance_ms = self.span_ms = 0
        if isinstance(windows, Tumbling | Hopping):
            self.size_ms, self.advance_ms = windows.size_ms, windows.advance_ms
            self.span_ms = windows.size_ms + windows.grace_ms
            if windows.offset_ms == 0 and not mutable:
                self.flat = 1 if isinstance(windows, Tumbling) else 2
        self.open_starts: set[int] = set()
        """Starts of windows that may have data and are not closed; kept only where windows close."""
        self._expire_from = 0

    def first(self, entry: tuple[int, Any], initial: Callable[[Any, TablePart], Any]) -> Any:
        """The value of an entry that is not dirty, or deleted; of immutable ones, without a journal."""
        value = DELETED if entry in self.dirty else self.load(entry)
        if value is MISSING or value is DELETED:
            value = initial(entry[1], self)
            if self.closes:
                self.opened(entry[0])
        return value

    def opened(self, start: int) -> None:
        """A window has data, perhaps for the first time."""
        if start not in self.open_starts:
            self.open_starts.add(start)
            if not self.closing_due:
                self.due_at = min(self.due_at, self.windows.end(start) + self.grace_ms)

    def _accepted(self, scope: Scope) -> list[int]:
        """Starts of the event's windows that take it; others are counted."""
        stream_time = self.seen(scope)
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
    ) -> None:
        for start in self._accepted(scope):
            entry = (start, key)
            value = self.get(entry, scope)
            if value is MISSING:
                value = initial(key, self)
                if self.closes:
                    self.opened(start)
            self.set(entry, operation(value, operand), scope)

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

    def read(self, entry: tuple[int, Any], scope: Scope) -> Any:
        expires_at = self.windows.expires_at(entry[0])
        if expires_at <= self.stream_time:
            self._tie(expires_at, scope)
            return MISSING
        return self.peek(entry, scope)

    def at(self, key: Any, moment: int, scope: Scope) -> Any:
        self.seen(scope)
        if moment < 0:
            return MISSING
        return self.read((self.windows.latest(moment), key), scope)

    def of_key(
        self, key: Any, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        stream_time = self.seen(scope)
        oldest = max(0, stream_time - self.windows.retention_ms)
        first = oldest if start is None else max(start, oldest)
        after = stream_time + 1 if end is None else min(end, stream_time + 1)
        for at in self.windows.starts_between(first, after):
            value = self.read((at, key), scope)
            if value is not MISSING:
                yield self.windows.window(at), value

    def of_shard(
        self, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Any, Window, Any]]:
        self.seen(scope)
        first = b"\x02" + _pack(max(start or 0, 0))
        after = b"\x03" if end is None else b"\x02" + _pack(max(end, 0))
        for entry in self.keys(first, after):
            if self.windows.expires_at(entry[0]) > self.stream_time:
                yield entry[1], self.windows.window(entry[0]), entry

    # closing --------------------------------------------------------------------------------------

    def _place(self, entry: Any) -> bytes:
        return self.encode_key(entry)

    def _final_at(self, entry: Any) -> int:
        return self.windows.end(entry[0]) + self.grace_ms

    def _find_open(self) -> None:
        at = self._cut_cursor[:9] or b"\x02"
        while (key := next(iter(self.store.keys(at, b"\x03")), None)) is not None:
            start = int.from_bytes(key[1:9], "big")
            self.opened(start)
            at = b"\x02" + _pack(start + 1)

    def due(self) -> list[Due]:
        found: list[Due] = []
        for start in sorted(self.open_starts):
            if self.windows.end(start) + self.grace_ms > self.stream_time:
                break
            window = self.windows.window(start)
            of_start = [
                Due(entry, entry[1], window, place)
                for place, entry in self._after_cursor(start, DUE_MAX - len(found))
            ]
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

    def _after_cursor(self, start: int, count: int) -> list[tuple[bytes, Any]]:
        """The window's first ``count`` entries after the cursor, in key order."""
        cursor = self.cursor()
        prefix = b"\x02" + _pack(start)
        overlay: dict[bytes, Any] = {}
        for source in (self.committing, self.dirty):
            for entry in source:
                if entry[0] == start:
                    overlay[self.encode_key(entry)] = entry
        here = [(k, e) for k, e in overlay.items() if k > cursor and self.exists(e)]
        first = max(prefix, cursor + b"\x00")
        stored = (k for k in self.store.keys(first, b"\x02" + _pack(start + 1)) if k not in overlay)
        here += [(k, self.decode_key(k)) for k in islice(stored, count)]
        return sorted(here, key=lambda pair: pair[0])[:count]

    # expiry ---------------------------------------------------------------------------------------

    def _expiry_limit(self) -> int:
        return self.lasting_time - self.windows.retention_ms

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


def index_key(store_key: bytes) -> bytes | None:
    """The local index entry that goes with a key of a sliding or session table's store, or None."""
    if store_key[:1] != b"\x03":
        return None
    return b"\x04" + store_key[-16:-8] + store_key


class KeyedPart(WindowedPart):
    """Sliding windows and sessions. Entries are ``(key, end, start)``.

    A record looks at the windows of its key that it may touch, so these are listed in memory (``_known``): a list
    holds at least every window of its key that can still change. Lists are made from the store, and those
    of keys with entries that are not there yet are never dropped. What is listed and not there is passed over.

    In a shard with journals, who reads or changes a key's windows touches the key itself, as a pseudo entry:
    which windows there are depends on all that was done to the key before.

    The value of a sliding window is kept as ``(newest, value)``.
    """

    __slots__ = (
        "_heap",
        "_known",
        "_known_old",
        "_merge",
        "_new",
        "_popped",
        "_quantum",
        "_stamped",
        "windows",
    )

    cursor_entry = (None, -1, -1)
    first_key = b"\x04"

    def __init__(
        self,
        name: str,
        *,
        windows: Sliding | Session,
        merge: Callable[[Any, Any], Any] | None,
        store: TableStore,
        encode_key: Callable[[Any], bytes],
        decode_key: Callable[[bytes], Any],
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
        mutable: bool,
        check: Callable[[Any], None],
        clock: Clock,
        closes: bool = False,
        type_name: str = "value",
        cache_size: int = 32_768,
    ) -> None:
        """Arguments as for `TablePart`, where keys are those of the program.

        Args:
            merge: makes one value of two sessions, the earlier one first.
        """

        def encode_entry(entry: tuple[Any, int, int]) -> bytes:
            key, end, start = entry
            return (
                CLOSED_KEY if end < 0 else b"\x03" + encode_key(key) + _two_numbers.pack(end, start)
            )

        def decode_entry(data: bytes) -> tuple[Any, int, int]:
            end, start = _two_numbers.unpack_from(data, len(data) - 16)
            return decode_key(data[1:-16]), end, start

        def check_entry(entry: tuple[Any, int, int]) -> None:
            if entry[1] >= 0:
                check(entry[0])

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
        self._merge = merge
        self._stamped = isinstance(windows, Sliding)
        span = windows.width_ms if isinstance(windows, Sliding) else windows.gap_ms
        self._quantum = max(1, span)
        self._known: dict[Any, list[tuple[int, int]]] = {}
        self._known_old: dict[Any, list[tuple[int, int]]] = {}
        self._new: set[Any] = set()
        """Entries made since the last cut; if they are gone before the next, it need not know of them."""
        self._heap: list[tuple[bytes, Any]] = []
        """Open windows that may not be in the store's index yet, by place."""
        self._popped: dict[bytes, Any] = {}
        """Of these, those that are final."""

    def _encode(self, key: Any, value: Any) -> bytes:
        if self._stamped and key[1] >= 0:
            return _pack(value[0]) + super()._encode(key, value[1])
        return super()._encode(key, value)

    def decode(self, key: Any, data: bytes) -> Any:
        if self._stamped and key[1] >= 0:
            return _number.unpack_from(data)[0], super().decode(key, data[8:])
        return super().decode(key, data)

    def undo(self, key: Any, before: PreImage) -> None:
        super().undo(key, before)
        if key[1] >= 0:
            self._remember(key)

    # the windows of a key -------------------------------------------------------------------------

    def _enter(self, key: Any, scope: Scope) -> None:
        """The event depends on which windows the key has."""
        if scope.journal is not None:
            self.touch((key, -2, -2), scope)

    def _windows_of(self, key: Any) -> list[tuple[int, int]]:
        """``(end, start)`` of at least all of the key's windows that can still change, ascending."""
        known = self._known.get(key)
        floor = self._floor()
        if known is None:
            known = self._known_old.pop(key, None)
            if known is None:
                self._check((key, 0, 0))
                prefix = self.encode_key((key, 0, 0))[:-16]
                stored = self.store.keys(prefix + _pack(max(0, floor)), prefix + b"\x80")
                known = [_two_numbers.unpack(data[-16:]) for data in stored]
            self._known[key] = known
        if known and known[0][0] < floor:
            del known[: bisect_left(known, (floor, -1))]
        return known

    def _floor(self) -> int:
        """The lowest end of a window that can still change."""
        if isinstance(self.windows, Session):
            return self.lasting_time - self.windows.retention_ms
        return self.lasting_time - self.windows.grace_ms - 2 * self.windows.width_ms

    def _remember(self, entry: tuple[Any, int, int]) -> None:
        known = self._windows_of(entry[0])
        pair = entry[1:]
        at = bisect_left(known, pair)
        if at == len(known) or known[at] != pair:
            known.insert(at, pair)
        if self.closes:
            place = self._place(entry)
            heapq.heappush(self._heap, (place, entry))
            if not self.closing_due:
                self.due_at = min(self.due_at, self._final_at(entry))

    def _put(self, entry: tuple[Any, int, int], value: Any, scope: Scope, *, new: bool) -> None:
        if new:
            if entry not in self.dirty and entry not in self.committing:
                self._new.add(entry)
            self._remember(entry)
        self.set(entry, value, scope)

    def _remove(self, entry: tuple[Any, int, int], scope: Scope) -> None:
        self.delete(entry, scope)
        known = self._windows_of(entry[0])
        at = bisect_left(known, entry[1:])
        if at < len(known) and known[at] == entry[1:]:
            del known[at]

    def _expires_at(self, end: int, start: int) -> int:
        return self.windows.expires_at(end if isinstance(self.windows, Session) else start)

    # updates --------------------------------------------------------------------------------------

    def update(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
    ) -> None:
        if self._stamped:
            self._update_sliding(key, operation, operand, initial, scope)
        else:
            self._update_session(key, operation, operand, initial, scope)

    def _update_session(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
    ) -> Window | None:
        windows = self.windows
        assert isinstance(windows, Session)
        stream_time = self.seen(scope)
        self._enter(key, scope)
        lowest_end, highest_start = windows.reach(scope.timestamp)
        values: dict[Window, Any] = {}
        for end, start in self._windows_of(key):
            if end >= lowest_end and start <= highest_start:
                expires_at = windows.expires_at(end)
                if expires_at <= stream_time:
                    self._tie(expires_at, scope)
                    continue
                value = self.get((key, end, start), scope)
                if value is not MISSING:
                    values[Window(start, end)] = value
        change = windows.touch(sorted(values), scope.timestamp, stream_time)
        if change is None:
            self.late(scope.timestamp, windows.final_at(Window(0, scope.timestamp)), scope)
            return None
        window, merged = change.window, change.merged
        if merged:
            value = values[merged[0]]
            if len(merged) > 1:
                assert self._merge is not None
                value = functools.reduce(self._merge, [values[one] for one in merged])
        else:
            value = initial(key, self)
        value = operation(value, operand)
        for one in merged:
            if one != window:
                self._remove((key, one.end, one.start), scope)
        self._put((key, window.end, window.start), value, scope, new=window not in merged)
        return window

    def _update_sliding(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
    ) -> list[Window]:
        windows = self.windows
        assert isinstance(windows, Sliding)
        stream_time, timestamp, width = self.seen(scope), scope.timestamp, windows.width_ms
        self._enter(key, scope)
        lowest, highest = windows.reach(timestamp)
        existing: list[tuple[int, int]] = []
        for end, start in self._windows_of(key):
            if lowest <= start <= highest:
                expires_at = windows.expires_at(start)
                if expires_at <= stream_time:
                    self._tie(expires_at, scope)
                    continue
                newest = self._newest((key, end, start), scope)
                if newest is not None:
                    existing.append((start, newest))
        changes = windows.touch(existing, timestamp, stream_time)
        if not changes:
            if not windows.accepts(Window(timestamp, timestamp + width), stream_time):
                final_at = timestamp + width + windows.grace_ms + 1
                self.late(timestamp, final_at, scope)
            return []
        values: list[Any] = []
        for change in changes:
            base = change.base
            if base is None:
                values.append(initial(key, self))
            elif change.adds and base == change.window.start:
                values.append(self.get((key, base + width, base), scope)[1])
            else:
                values.append(self.copy(self.peek((key, base + width, base), scope)[1]))
        there = {start for start, _ in existing}
        for change, value in zip(changes, values, strict=True):
            start, end = change.window
            changed = operation(value, operand) if change.adds else value
            self._put((key, end, start), (change.timestamp, changed), scope, new=start not in there)
        return [change.window for change in changes if change.adds]

    def _newest(self, entry: tuple[Any, int, int], scope: Scope) -> int | None:
        """The newest timestamp in a sliding window, without decoding its value."""
        if scope.journal is not None:
            self.touch(entry, scope)
        if entry in self.dirty:
            value = self.dirty[entry]
            return None if value is DELETED else cast("int", value[0])
        if self.mutable:
            data = self._bytes_of(entry)
            return None if data is None else cast("int", _number.unpack_from(data)[0])
        value = self.load(entry)
        return None if value is MISSING or value is DELETED else cast("int", value[0])

    def event_windows(
        self, key: Any, initial: Callable[[Any, TablePart], Any], scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        if not self.mutable:
            self.seen(scope)
            for window, value in self._holding(key, scope.timestamp, scope):
                yield window, value
            return
        if self._stamped:
            windows = self._update_sliding(key, _keep, None, initial, scope)
            for window in dict.fromkeys(windows):
                yield window, self.get((key, window.end, window.start), scope)[1]
            return
        session = self._update_session(key, _keep, None, initial, scope)
        if session is not None:
            yield session, self.get((key, session.end, session.start), scope)

    def discard(self, key: Any, scope: Scope) -> None:
        stream_time, windows = self.seen(scope), self.windows
        self._enter(key, scope)
        for end, start in list(self._windows_of(key)):
            window = Window(start, end)
            if not start <= scope.timestamp <= end:
                continue
            if not windows.accepts(window, stream_time):
                self.late(start, windows.final_at(window), scope)
            elif self.contains((key, end, start), scope):
                self._remove((key, end, start), scope)

    # reads ----------------------------------------------------------------------------------------

    def _holding(self, key: Any, moment: int, scope: Scope) -> list[tuple[Window, Any]]:
        """Windows that hold a moment, ascending by start."""
        self._enter(key, scope)
        if moment >= self._floor():
            pairs = self._windows_of(key)
        else:
            pairs = self._all_of(key, max(0, moment))
        found = []
        for end, start in sorted(pairs, key=lambda pair: pair[1]):
            if start <= moment <= end:
                value = self.read((key, end, start), scope)
                if value is not MISSING:
                    found.append((Window(start, end), value))
        return found

    def read(self, entry: tuple[Any, int, int], scope: Scope) -> Any:
        expires_at = self._expires_at(*entry[1:])
        if expires_at <= self.stream_time:
            self._tie(expires_at, scope)
            return MISSING
        value = self.peek(entry, scope)
        return value if value is MISSING else self.value_of(value)

    def value_of(self, stored: Any) -> Any:
        return stored[1] if self._stamped else stored

    def _all_of(self, key: Any, lowest_end: int) -> list[tuple[int, int]]:
        """``(end, start)`` of a key's windows from an end on: the store, and what is not there yet."""
        self._check((key, 0, 0))
        prefix = self.encode_key((key, 0, 0))[:-16]
        stored = self.store.keys(prefix + _pack(lowest_end), prefix + b"\x80")
        pairs: set[tuple[int, int]] = {_two_numbers.unpack(data[-16:]) for data in stored}
        for source in (self.committing, self.dirty):
            pairs.update(e[1:] for e in source if e[1] >= lowest_end and e[0] == key)
        return sorted(pairs)

    def at(self, key: Any, moment: int, scope: Scope) -> Any:
        self.seen(scope)
        holding = self._holding(key, moment, scope) if moment >= 0 else []
        return holding[-1][1] if holding else MISSING

    def of_key(
        self, key: Any, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        self.seen(scope)
        self._enter(key, scope)
        for at_end, at_start in self._all_of(key, max(0, start or 0)):
            if (start is None or at_start >= start) and (end is None or at_start < end):
                value = self.read((key, at_end, at_start), scope)
                if value is not MISSING:
                    yield Window(at_start, at_end), value

    def of_shard(
        self, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Any, Window, Any]]:
        self.seen(scope)
        for entry in self.keys(b"\x03", b"\x04"):
            key, at_end, at_start = entry
            if (start is None or at_start >= start) and (end is None or at_start < end):
                if self._expires_at(at_end, at_start) > self.stream_time:
                    yield key, Window(at_start, at_end), entry

    # closing --------------------------------------------------------------------------------------

    def _place(self, entry: Any) -> bytes:
        place = index_key(self.encode_key(entry))
        assert place is not None
        return place

    def _final_at(self, entry: Any) -> int:
        return self.windows.final_at(Window(entry[2], entry[1]))

    def _last_final_end(self) -> int:
        """The highest end of a window that is final now."""
        return self.stream_time - self.windows.final_at(Window(0, 0))

    def _find_open(self) -> None:
        place = self._next_stored()
        if place is not None:
            self.due_at = self._final_at(self.decode_key(place[9:]))

    def _next_stored(self) -> bytes | None:
        """The first place after the cursor in the store's index, most of the deleted ones left out."""
        first = max(b"\x04", self.cursor() + b"\x00")
        place = None
        for place in islice(self.store.keys(first, b"\x05"), STALE_MAX):
            entry = self.decode_key(place[9:])
            if self.dirty.get(entry, self.committing.get(entry)) is not DELETED:
                return place
        return place

    def due(self) -> list[Due]:
        cursor, last = self.cursor(), self._last_final_end()
        after = b"\x04" + _pack(last + 1) if last >= 0 else b"\x04"
        while self._heap and self._heap[0][0] < after:
            place, entry = heapq.heappop(self._heap)
            self._popped[place] = entry
        self._popped = {p: e for p, e in self._popped.items() if p > cursor and self.exists(e)}
        places = dict(self._popped)
        stored = self.store.keys(max(b"\x04", cursor + b"\x00"), after)
        count = 0
        for place in stored:
            entry = self.decode_key(place[9:])
            if self.exists(entry):
                places[place] = entry
                count += 1
                if count == DUE_MAX:
                    break
        found = [
            Due(entry, entry[0], Window(entry[2], entry[1]), place)
            for place, entry in sorted(places.items(), key=lambda pair: pair[0])[:DUE_MAX]
        ]
        if not found:
            self.closing_due = False
            self._look_ahead()
        return found

    def _look_ahead(self) -> None:
        """Find out when a window may be due next."""
        heap = self._heap
        while heap and self.dirty.get(heap[0][1], self.committing.get(heap[0][1])) in (
            None,
            DELETED,
        ):
            heapq.heappop(heap)
        self.due_at = self._final_at(heap[0][1]) if heap else NEVER
        place = self._next_stored()
        if place is not None:
            self.due_at = min(self.due_at, self._final_at(self.decode_key(place[9:])))

    # expiry and the commit ------------------------------------------------------------------------

    def _expiry_limit(self) -> int:
        windows = self.windows
        if isinstance(windows, Session):
            return self.lasting_time - windows.expires_at(0)
        return self.lasting_time - windows.expires_at(0) + windows.width_ms

    def _closed_limit(self) -> int:
        return int.from_bytes(self._cut_cursor[1:9], "big") - 1

    def _expiry_moves(self, limit: int) -> bool:
        return limit >= self._expired_to + self._quantum

    def _is_expired(self, entry: Any, limit: int) -> bool:
        return 0 <= entry[1] <= limit

    def _expired_keys(self, limit: int) -> Iterable[bytes]:
        end = b"\x04" + _pack(limit + 1)
        places = list(islice(self.store.keys(self._scan_from, end), EXPIRE_KEYS_MAX))
        self._expiring = len(places) == EXPIRE_KEYS_MAX
        self._scan_from = places[-1] + b"\x00" if self._expiring else end
        return [place[9:] for place in places]

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        super().cut(excluded)
        for entry in self._new:
            if self.committing.get(entry) is DELETED:
                del self.committing[entry]
        self._new.clear()

    def settle(self) -> None:
        """The store holds ``committing`` now: lists and heap of what is there may go."""
        super().settle()
        if len(self._known) > self._cache_size:
            kept = {}
            for key in {entry[0] for entry in self.dirty}:
                known = self._known.pop(key, None) or self._known_old.pop(key, None)
                if known is not None:
                    kept[key] = known
            self._known, self._known_old = kept, self._known
        if len(self._heap) > 2 * self._cache_size:
            self._heap = [item for item in self._heap if item[1] in self.dirty]
            heapq.heapify(self._heap)


def _keep(value: Any, _: Any) -> Any:
    return value


def _nothing() -> None:
    return None

"""Windowed tables in one shard: a `TablePart` that keeps time, forgets old windows, and tells which are final.

Theory of operation
-------------------
**Layout.** Aligned windows (tumbling, hopping, calendar) lie by time, then key; sliding windows and sessions by
key, then time, with a local index by time::

    02 start(8) key             entry (start, key)
    03 key end(8) start(8)      entry (key, end, start)
    04 end(8) start(8) 03 key end start   index of the line above: in the store alone, see `_keyed_part.index_key`
    00 time                     operator stream time
    00 closed                   the closing cursor: the place of the last window that was closed

So what expires is one range of keys, and what closes is a scan in order of window end, start (sessions differ in it), then key. Numbers are
big endian. A sliding window's value begins with 8 bytes: the newest timestamp that contributed to it.

**Stream time** is the operator's: see `_timed_part`.

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

import asyncio
from abc import abstractmethod
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._timed_part import NEVER, TIME_KEY, Due, TimedPart

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.context import IncomingRecord, PreImage, Scope
    from millstream.state.base import TableStore
    from millstream.windows import Window

__all__ = [
    "CLOSED_KEY",
    "DUE_MAX",
    "EXPIRE_KEYS_MAX",
    "NEVER",
    "TIME_KEY",
    "WAITS",
    "Due",
    "WindowedPart",
    "advance",
    "drive",
]

STORE_TIME_KEY: Final = b"\x00store"
CLOSED_KEY: Final = b"\x00closed"

WAITS: Final = frozenset({CoroutineType, asyncio.Future, asyncio.Task})
"""Types of what a function returns whose result is still to come."""
EXPIRE_KEYS_MAX: Final = 1_000
"""Entries of the store that expire with one cut."""
DUE_MAX: Final = 1_000
"""Windows that are listed for closing at once."""


def drive(steps: Generator[Any, Any, Any]) -> Any:
    """Take all steps of an update, whose functions return what they make."""
    try:
        made = next(steps)
        while True:
            made = steps.send(made)
    except StopIteration as end:
        return end.value


def advance(steps: Generator[Any, Any, Any], made: Any = None) -> Any:
    """Take steps until what a function has returned is still to come.

    Args:
        made: what the step before has given, once it is there; None to begin with.

    Returns:
        What is to be awaited, or None where all steps are taken.
    """
    try:
        made = steps.send(made)
        while made.__class__ not in WAITS:
            made = steps.send(made)
    except StopIteration:
        return None
    return made


class WindowedPart(TimedPart):
    """What parts of windowed tables have in common. Reads give values that the caller may keep."""

    __slots__ = (
        "_cut_cursor",
        "_expired_to",
        "_expiring",
        "_late_record",
        "_late_windows",
        "_recheck",
        "_scan_from",
        "busy",
        "clock",
        "clocks",
        "closed_at",
        "closed_value",
        "closes",
        "flat",
        "keeps_old",
        "late_records",
        "on_late",
        "reads_bring_time",
        "store_retention_ms",
        "store_time",
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
        self.clocks: Sequence[TimedPart] = ()
        """Where several inputs are late by times of their own: these times. What the slowest may still change is kept."""
        self.closes = closes
        self.reads_bring_time = True
        """Whether a read is a use that advances stream time: not where a stream alone makes the windows."""
        self.busy = 0
        """Updates that wait for something."""
        self.store_retention_ms = 0
        """Where Kafka Streams' answers are wanted: how long its store would keep windows; else 0. What has expired
        there is not seen by updates, although the grace rule still accepts them."""
        self.store_time = -1
        """The highest window start (of sessions: end) that was ever put; kept for that alone."""
        self.closed_at = -1
        """Timestamp of the window that was closed last; see `stamp_of`."""
        self.closed_value: Any = None
        """What is kept of it, see `plain`."""
        self.flat = 0
        """For the hot path: 1 tumbling, 2 hopping, both without offset and with immutable values; else 0."""
        self.keeps_old = False
        """Whether what a window had is handed on beside an update: a value that changes in place is copied before."""
        self.late_records = 0
        """Updates dropped because their window takes no more, once for each record and window."""
        self.on_late: Callable[[int], None] | None = None
        """Called with the record's event time for each update that is dropped."""
        self._late_record: IncomingRecord | None = None
        self._late_windows: set[int] = set()
        self._cut_cursor = b""
        self._expired_to = -1
        self._expiring = False
        self._recheck = False
        self._scan_from = self.first_key

    # time -----------------------------------------------------------------------------------------

    def late(self, window: int, moment: int, scope: Scope) -> None:
        """Count an update for a window, told by a number, that was final at ``moment``."""
        self.tie(moment, scope)
        if scope.record is not self._late_record or scope.record is None:
            self._late_record = scope.record
            self._late_windows.clear()
        elif window in self._late_windows:
            return
        self._late_windows.add(window)
        self.late_records += 1
        if self.on_late is not None:
            self.on_late(scope.timestamp)

    def looked(self, scope: Scope) -> int:
        """Stream time, for an event that reads."""
        return self.seen(scope) if self.reads_bring_time else self.stream_time

    def used_by(self, agent: str) -> None:
        """Note that an agent uses the part: who reads and brings no time is not waited for either."""
        if self.reads_bring_time:
            super().used_by(agent)

    def fed_by(self, streams: Iterable[str]) -> None:
        """These streams use the part: where a stream makes it, nobody else feeds it."""
        if not self.reads_bring_time:
            self.feeders.clear()
        super().fed_by(streams)

    @property
    def keeping_time(self) -> int:
        """The time by which windows expire, as far as it lasts."""
        if self.clocks:
            return min(clock.lasting_time for clock in self.clocks)
        return self.lasting_time

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
        value = self.plain(stored)
        return value if self.show is None else self.show(value)

    def plain(self, stored: Any) -> Any:
        """What is kept of a window, without the timestamp beside it."""
        return stored

    def result(
        self, key: Any, window: Window, scope: Scope, *, closed: bool
    ) -> tuple[Any, int] | None:
        """What is kept of a window, and its timestamp; None where there is nothing, or it has expired.

        Args:
            closed: nothing, too, as long as the window is not closed.
        """
        entry = self.entry_of(key, window)
        stored = self.read_stored(entry, scope)
        if stored is MISSING:
            return None
        if closed:
            if scope.journal is not None:
                self.touch(self.cursor_entry, scope)
            if self._place(entry) > self.cursor():
                return None
        return self.plain(stored), self.stamp_of(entry, stored)

    def read(self, entry: Any, scope: Scope) -> Any:
        """The program's value of an entry, or `MISSING`, also where it has expired."""
        stored = self.read_stored(entry, scope)
        return stored if stored is MISSING else self.value_of(stored)

    def read_stored(self, entry: Any, scope: Scope) -> Any:
        """What `peek` gives, or `MISSING` where the entry has expired."""
        expires_at = self._expires_at(entry)
        if expires_at <= self.stream_time:
            self.tie(expires_at, scope)
            return MISSING
        return self.peek(entry, scope)

    # what kinds of windows differ in --------------------------------------------------------------

    @abstractmethod
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
        """Put ``operation(value, operand)`` into every window that takes the event.

        Args:
            initial: makes the value of a window that has none, from key and part.
            changed: collects what has changed, in order: window, stored value, and the one before. A
                value is `MISSING` where the window was not there, or is not any more.
            stream_time: decides which windows take the event, where it is not the part's own.
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
    def of_key(
        self, key: Any, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        """Windows of a key with ``start <= window.start < end``, in order of time."""

    @abstractmethod
    def of_shard(
        self, start: int | None, end: int | None, scope: Scope, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Window, Any]]:
        """Keys, windows and entries of the shard with ``start <= window.start < end``."""

    @abstractmethod
    def window_of(self, entry: Any) -> Window:
        """The window of an entry."""

    @abstractmethod
    def entry_of(self, key: Any, window: Window) -> Any:
        """The entry of a key and a window."""

    @abstractmethod
    def _expires_at(self, entry: Any) -> int:
        """The stream time from which on an entry is not read any more."""

    @abstractmethod
    def _place(self, entry: Any) -> bytes:
        """Where the entry stands in the order of closing."""

    @abstractmethod
    def due(self) -> list[Due]:
        """Final windows that are not closed, in order of end, start, key: the first `DUE_MAX` of them.

        Empty when there are none; the part then tells again when there are.
        """

    @abstractmethod
    def _final_at(self, entry: Any) -> int: ...

    @abstractmethod
    def _find_open(self) -> None:
        """After a recovery: find what is still to close."""

    @abstractmethod
    def _expiry_limit(self) -> int:
        """What has expired at `keeping_time` ends up to here; in the unit of the part's layout."""

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

    def begin_work(self) -> None:
        """An update waits for something: nothing is closed meanwhile that it may still change."""
        self.busy += 1

    def end_work(self) -> None:
        """It is done."""
        self.busy -= 1
        if not self.busy and self.closing_due:
            self.on_due()

    def cursor(self) -> bytes:
        """The place of the last window that was closed, committed or not."""
        return cast("bytes", self.dirty.get(self.cursor_entry, self._cut_cursor))

    def close(self, due: Due, scope: Scope) -> Any:
        """Read a final window and move the cursor past it, in one event; `MISSING` if it is gone."""
        self.tie(self._final_at(due.entry), scope)
        value = self.peek(due.entry, scope)
        if value is MISSING:
            return MISSING
        self.set(self.cursor_entry, due.place, scope)
        self.closed_at, self.closed_value = self.stamp_of(due.entry, value), self.plain(value)
        return self.value_of(value)

    def is_gone(self, at: int) -> bool:
        """Whether Kafka Streams' store would not show a window that starts (a session that ends) at ``at``."""
        return 0 < self.store_retention_ms <= self.store_time - at

    def is_dropped(self, window: Window) -> bool:
        """Whether Kafka Streams' scan for final windows would not find this one."""
        return self.is_gone(window.start + 1)

    def stamp_of(self, entry: Any, stored: Any) -> int:
        """The highest timestamp that contributed to a window's value; its end where that is not kept."""
        return self.window_of(entry).end

    def close_unread(self, due: Due, scope: Scope) -> bytes | None:
        """Move the cursor past a final window, whatever is the matter with it.

        Returns:
            The program's value, encoded; None where that cannot be had.
        """
        self.tie(self._final_at(due.entry), scope)
        try:
            value = self.peek(due.entry, scope)
            # what is shown is of another type than what is kept, and so not for the table's codec
            dumps = self.dumps if self.show is None else msgspec.json.encode
            data = None if value is MISSING else dumps(self.value_of(value))
        except Exception:  # it is because of something like that that nobody reads it
            data = None
        self.set(self.cursor_entry, due.place, scope)
        return data

    def stored(self) -> Iterator[tuple[bytes, bytes]]:
        return self.store.items(b"\x02", b"\x04")

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
        super().recovered()
        self.store_time = int.from_bytes(self.store.get(STORE_TIME_KEY) or b"", "big") - 1
        self._cut_cursor = self.store.get(CLOSED_KEY) or b""
        if self.closes:
            self._find_open()
            if self.stream_time >= self.due_at:
                self.became_due()

    def is_dirty(self) -> bool:
        """Whether the next cut takes something from here."""
        return self._expiring or super().is_dirty()

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        """Move what is dirty to ``committing``, with stream time, and what expires."""
        if self.store_retention_ms:
            self.changed_system[STORE_TIME_KEY] = (self.store_time + 1).to_bytes(8, "big")
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

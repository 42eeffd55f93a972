"""Sliding windows and sessions in one shard; the theory of operation is in `_windowed_base`."""

from __future__ import annotations

import heapq
import struct
from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._windowed_base import (
    CLOSED_KEY,
    DUE_MAX,
    EXPIRE_KEYS_MAX,
    NEVER,
    Due,
    WindowedPart,
    drive,
)
from millstream.windows import Session, Sliding, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.context import PreImage, Scope
    from millstream.state.base import TableStore

__all__ = ["KeyedPart", "index_key"]

KAFKA_SEGMENT_MS_MIN: Final = 60_000
"""Kafka Streams' session stores forget in stretches of at least so much event time."""
STALE_MAX: Final = 64
"""Index entries of deleted windows that are passed over when the next due moment is looked for."""

_number = struct.Struct(">Q")
_pack = _number.pack
_two_numbers = struct.Struct(">QQ")


def index_key(store_key: bytes) -> bytes | None:
    """The local index entry that goes with a key of a sliding or session table's store, or None."""
    if store_key[:1] != b"\x03":
        return None
    return b"\x04" + store_key[-16:] + store_key


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

    def shown(self, key: Any) -> Any:
        return key[0], Window(key[2], key[1])

    def window_of(self, entry: tuple[Any, int, int]) -> Window:
        return Window(entry[2], entry[1])

    def entry_of(self, key: Any, window: Window) -> Any:
        return key, window.end, window.start

    def stamp_of(self, entry: Any, stored: Any) -> int:
        return cast("int", stored[0]) if self._stamped else super().stamp_of(entry, stored)

    def undo(self, key: Any, before: PreImage) -> None:
        super().undo(key, before)
        if key[1] >= 0:
            self._remember(key)

    def is_dropped(self, window: Window) -> bool:
        if not isinstance(self.windows, Session) or not self.store_retention_ms:
            return super().is_dropped(window)
        # its scan of sessions shows all that is there, and what is there goes in segments
        segment_ms = max(self.store_retention_ms // 2, KAFKA_SEGMENT_MS_MIN)
        oldest = (self.store_time - self.store_retention_ms) // segment_ms
        return window.end // segment_ms < oldest

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

    def entries_of(self, keys: Sequence[Any], timestamps: Sequence[int]) -> Iterable[Any]:
        return ()  # which windows there are is looked up for each key

    def _floor(self) -> int:
        """The lowest end of a window that can still change."""
        if isinstance(self.windows, Session):
            return self.keeping_time - self.windows.retention_ms
        return self.keeping_time - self.windows.grace_ms - 2 * self.windows.width_ms

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
        if scope.journal is None and entry in self._new:
            self._new.discard(entry)
            del self.dirty[entry]
        else:
            self.delete(entry, scope)
        known = self._windows_of(entry[0])
        at = bisect_left(known, entry[1:])
        if at < len(known) and known[at] == entry[1:]:
            del known[at]

    def _expires_at(self, entry: tuple[Any, int, int]) -> int:
        return self.windows.expires_at(entry[1] if isinstance(self.windows, Session) else entry[2])

    # updates --------------------------------------------------------------------------------------

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
        drive(self.updating(key, operation, operand, initial, scope, changed, stream_time))

    def updating(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
        changed: list[tuple[Window, Any, Any]] | None = None,
        stream_time: int | None = None,
    ) -> Generator[Any, Any, Any]:
        """`update` step by step: gives what ``operation`` has returned, and is sent what goes on with.

        Stamped values are their own here, without the stamp.
        """
        update = self._update_sliding if self._stamped else self._update_session
        return update(key, operation, operand, initial, scope, changed, stream_time)

    def _update_session(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
        changed: list[tuple[Window, Any, Any]] | None = None,
        stream_time: int | None = None,
    ) -> Generator[Any, Any, Window | None]:
        windows = self.windows
        assert isinstance(windows, Session)
        own_time = self.seen(scope)
        if stream_time is None:
            stream_time = own_time
        self._enter(key, scope)
        lowest_end, highest_start = windows.reach(scope.timestamp)
        values: dict[Window, Any] = {}
        known = self._windows_of(key)
        # sessions that are still there are apart; only what has expired for some may overlap with others
        apart = scope.journal is None and not self.clocks and not self.store_retention_ms
        for at in range(bisect_left(known, (lowest_end, -1)), len(known)):
            end, start = known[at]
            if start > highest_start:
                if apart:
                    break
            else:
                expires_at = windows.expires_at(end)
                if expires_at <= stream_time:
                    self.tie(expires_at, scope)
                    continue
                if self.is_gone(end):
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
            own = {one: self.copy(values[one]) for one in merged} if self.keeps_old else values
            value = own[merged[0]]
            for one in merged[1:]:
                assert self._merge is not None
                value = yield self._merge(value, own[one])
        else:
            value = initial(key, self)
        value = yield operation(value, operand)
        for one in merged:
            if one != window:
                self._remove((key, one.end, one.start), scope)
        self._put((key, window.end, window.start), value, scope, new=window not in merged)
        self.store_time = max(self.store_time, window.end)
        if changed is not None:
            changed += [(one, MISSING, values[one]) for one in change.replaced]
            gone = window in change.replaced or window not in values
            changed.append((window, value, MISSING if gone else values[window]))
        return window

    def _update_sliding(
        self,
        key: Any,
        operation: Callable[[Any, Any], Any],
        operand: Any,
        initial: Callable[[Any, TablePart], Any],
        scope: Scope,
        changed: list[tuple[Window, Any, Any]] | None = None,
        stream_time: int | None = None,
    ) -> Generator[Any, Any, list[Window]]:
        windows = self.windows
        assert isinstance(windows, Sliding)
        timestamp, width = scope.timestamp, windows.width_ms
        own_time = self.seen(scope)
        if stream_time is None:
            stream_time = own_time
        self._enter(key, scope)
        lowest, highest = windows.reach(timestamp)
        existing: list[tuple[int, int]] = []
        known = self._windows_of(key)
        for at in range(bisect_left(known, (lowest + width, -1)), len(known)):
            end, start = known[at]
            if start > highest:
                break
            expires_at = windows.expires_at(start)
            if expires_at <= stream_time:
                self.tie(expires_at, scope)
                continue
            if self.is_gone(start):
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
            elif change.adds and base == change.window.start and not self.keeps_old:
                values.append(self.get((key, base + width, base), scope)[1])
            else:
                values.append(self.copy(self.peek((key, base + width, base), scope)[1]))
        there = {start for start, _ in existing}
        for change, value in zip(changes, values, strict=True):
            start, end = change.window
            made = (yield operation(value, operand)) if change.adds else value
            stored = change.timestamp, made
            before = MISSING if changed is None else self.get((key, end, start), scope)
            self._put((key, end, start), stored, scope, new=start not in there)
            self.store_time = max(self.store_time, start)
            if changed is not None:
                changed.append((change.window, stored, before))
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
            windows = drive(self._update_sliding(key, _keep, None, initial, scope))
            for window in dict.fromkeys(windows):
                yield window, self.get((key, window.end, window.start), scope)[1]
            return
        session = drive(self._update_session(key, _keep, None, initial, scope))
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

    def plain(self, stored: Any) -> Any:
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
        self.looked(scope)
        holding = self._holding(key, moment, scope) if moment >= 0 else []
        return holding[-1][1] if holding else MISSING

    def of_key(
        self, key: Any, start: int | None, end: int | None, scope: Scope
    ) -> Iterator[tuple[Window, Any]]:
        self.looked(scope)
        self._enter(key, scope)
        for at_end, at_start in self._all_of(key, max(0, start or 0)):
            if (start is None or at_start >= start) and (end is None or at_start < end):
                value = self.read((key, at_end, at_start), scope)
                if value is not MISSING:
                    yield Window(at_start, at_end), value

    def of_shard(
        self, start: int | None, end: int | None, scope: Scope, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Window, Any]]:
        self.looked(scope)
        for entry in self.keys(b"\x03", b"\x04", reverse=reverse):
            key, at_end, at_start = entry
            wanted = (start is None or at_start >= start) and (end is None or at_start < end)
            if wanted and self._expires_at(entry) > self.stream_time:
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
            self.due_at = self._final_at(self.decode_key(place[17:]))

    def _next_stored(self) -> bytes | None:
        """The first place after the cursor in the store's index, most of the deleted ones left out."""
        first = max(b"\x04", self.cursor() + b"\x00")
        place = None
        for place in islice(self.store.keys(first, b"\x05"), STALE_MAX):
            entry = self.decode_key(place[17:])
            if self.dirty.get(entry, self.committing.get(entry)) is not DELETED:
                return place
        return place

    def due(self) -> list[Due]:
        if self.busy:
            return []
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
            entry = self.decode_key(place[17:])
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
            self.due_at = min(self.due_at, self._final_at(self.decode_key(place[17:])))

    # expiry and the commit ------------------------------------------------------------------------

    def _expiry_limit(self) -> int:
        windows = self.windows
        if isinstance(windows, Session):
            return self.keeping_time - windows.expires_at(0)
        return self.keeping_time - windows.expires_at(0) + windows.width_ms

    def _closed_limit(self) -> int:
        return int.from_bytes(self._cut_cursor[1:9], "big") - 1

    def _expiry_moves(self, limit: int) -> bool:
        return limit >= self._expired_to + self._quantum

    def _is_expired(self, entry: Any, limit: int) -> bool:
        return bool(0 <= entry[1] <= limit)

    def _expired_keys(self, limit: int) -> Iterable[bytes]:
        end = b"\x04" + _pack(limit + 1)
        places = list(islice(self.store.keys(self._scan_from, end), EXPIRE_KEYS_MAX))
        self._expiring = len(places) == EXPIRE_KEYS_MAX
        self._scan_from = places[-1] + b"\x00" if self._expiring else end
        return [place[17:] for place in places]

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

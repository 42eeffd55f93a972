"""Rows that wait for event time, and leave in order of their timestamps.

Theory of operation
-------------------
Entries are ``(is left, timestamp, key, number)``, so the rows of a side lie in the store in the order in which they are
due. In memory there is only the near end of that order, so that many waiting rows cost no memory, and looking whether
one is due costs nothing: the rows that were put lately, by their timestamps, and the next few that the store has, up to a
position ``known``. Every row below ``known`` is in one of the two. Whatever is found there is looked up again before
it counts: its row may be gone, because it has met its partner or because the event that put it was undone. Only rows
that are due are brought into the order of their positions. As long as all of the store's rows are among those that
were put lately, ``known`` is the end, and the store is not asked.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from millstream.serialization import key_layout
from millstream.streams._due import has_room
from millstream.streams._join_filter import KeyFilters
from millstream.streams._join_rows import (
    FIRST_NUMBER,
    HEADERS,
    Row,
    RowsPart,
    first_segment,
    layout_of_int,
    rows_of,
    value_in,
)
from millstream.tables import DELETED, NEVER, Due, DueFirstError, DueRow
from millstream.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from millstream.context import PreImage, Scope
    from millstream.records import Headers
    from millstream.serialization import Codec
    from millstream.state.base import TableStore

__all__ = ["Waiting", "WaitingPart"]

AHEAD_KEYS: Final = 1_000
"""Rows that are read ahead from the store at once."""
STEPS: Final = 64
"""Into so many steps the time that a row waits is divided when the store is asked for what comes next."""
STEP_MS_MIN: Final = 1_000
LATE_MAX: Final = 8_192
"""Rows in memory, besides those that are not in the store yet."""
STRETCH_MS: Final = 60_000
"""Of event time, for which the places of rows that wait are known together."""

_layout_of_side = key_layout(bool).encode
_SIDES = {left: _layout_of_side(left) for left in (True, False)}
_number = struct.Struct(">I")
_headers = msgspec.msgpack.Decoder(list[tuple[str, bytes | None]])


class Waiting(NamedTuple):
    """A row that waits no longer."""

    left: bool
    timestamp: int
    key: Any
    value: Any
    headers: Headers
    entry: Any
    """Of the segment where it was."""
    number: int
    """Its place there."""
    data: bytes
    """The value, encoded."""


class _Order:
    """The order in which the rows of one side are due."""

    __slots__ = (
        "_ahead",
        "_complete_from",
        "_count",
        "_encode",
        "_known",
        "_known_time",
        "_lately",
        "_moments",
        "_prefix",
        "_ready",
        "_step_ms",
        "hold_ms",
    )

    def __init__(self, left: bool, hold_ms: int, encode: Callable[[Any], bytes]) -> None:
        """
        Args:
            hold_ms: a row is due when stream time is above its timestamp plus this.
            encode: an entry's position.
        """
        self.hold_ms = hold_ms
        self._encode = encode
        self._prefix = _layout_of_side(left)
        self._step_ms = max(hold_ms // STEPS, STEP_MS_MIN)
        self._lately: dict[int, dict[Any, None]] = {}
        """Entries that were put lately and are not due, by timestamp; those of one in order, any of which may go."""
        self._moments: list[int] = []
        """A heap of these timestamps."""
        self._count = 0
        self._ready: list[tuple[bytes, Any]] = []
        """A heap of those that are due, by position."""
        self._ahead: deque[bytes] = deque()
        self._known = self._position(0)
        self._known_time = 0
        self._complete_from = NEVER
        """The store's rows with this timestamp or a later one are all among those that were put lately."""

    def _position(self, timestamp: int) -> bytes:
        return self._prefix + layout_of_int(max(timestamp, 0))

    @staticmethod
    def _time(position: bytes) -> int:
        return int.from_bytes(position[2:10], "big") - (1 << 63)

    def put(self, entry: Any) -> None:
        """A row is there, perhaps for the first time."""
        moment = entry[1]
        there = self._lately.get(moment)
        if there is None:
            self._lately[moment] = {entry: None}
            heapq.heappush(self._moments, moment)
        elif entry in there:
            return
        else:
            there[entry] = None
        self._count += 1

    def _know_until(self, moment: int) -> None:
        self._known, self._known_time = self._position(moment), moment

    def _first(self) -> bytes | None:
        """Position of the first row that is known, and due if it was put lately."""
        ready, ahead = self._ready, self._ahead
        if ready and (not ahead or ready[0][0] <= ahead[0]):
            return ready[0][0]
        return ahead[0] if ahead else None

    def pop(self, position: bytes) -> Any:
        """Forget the first row; its entry, or None where only the store has told of it."""
        entry = None
        while self._ready and self._ready[0][0] == position:
            entry = heapq.heappop(self._ready)[1]
        if self._ahead and self._ahead[0] == position:
            self._ahead.popleft()
        return entry

    def drop(self, entry: Any) -> None:
        """A row is gone before its time."""
        there = self._lately.get(entry[1])
        if there is not None and entry in there:
            del there[entry]
            self._count -= 1
            if not there:
                del self._lately[entry[1]]  # and the heap's top is passed over when it comes

    def _bring(self, limit: int) -> None:
        """Make rows ready whose timestamps are below ``limit``."""
        moments, lately = self._moments, self._lately
        while moments and (moments[0] < limit or moments[0] not in lately):
            for entry in lately.pop(heapq.heappop(moments), ()):
                self._count -= 1
                heapq.heappush(self._ready, (self._encode(entry), entry))

    def peek(self, stream_time: int, store: TableStore) -> bytes | None:
        """Position of the first row that is due, if it is there."""
        limit = stream_time - self.hold_ms
        self._bring(limit)
        while True:
            first = self._first()
            if first is not None and first < self._known:
                return first if self._time(first) < limit else None
            if self._known_time >= limit:
                return None
            if self._known_time >= self._complete_from:
                self._know_until(NEVER)
                continue
            goal = self._position(limit + self._step_ms)
            found = list(islice(store.keys(self._known, goal), AHEAD_KEYS))
            self._ahead.extend(found)
            self._known = goal if len(found) < AHEAD_KEYS else found[-1] + b"\x00"
            self._known_time = self._time(self._known)

    def next(self, stream_time: int, store: TableStore) -> tuple[bytes | None, Any]:
        """Position and entry of the first row that is due, which is then forgotten.

        Either may be None: the entry where only the store has told of it, the position where it was not needed.
        """
        if self._known_time == NEVER and not self._ready and not self._ahead:
            # A row that is alone in its moment needs no place among others.
            limit = stream_time - self.hold_ms
            moments, lately = self._moments, self._lately
            while moments and moments[0] < limit:
                there = lately.get(moments[0], ())
                if len(there) > 1:
                    break
                moment = heapq.heappop(moments)
                if there:
                    del lately[moment]
                    self._count -= 1
                    return None, next(iter(there))
            else:
                return None, None
        position = self.peek(stream_time, store)
        return position, None if position is None else self.pop(position)

    def recovered(self, store: TableStore) -> int:
        """See how far the store goes.

        Returns:
            The highest timestamp of a row in the store; -1 where there is none.
        """
        end = self._position(NEVER)
        last = next(iter(store.items(self._prefix, end, reverse=True)), None)
        newest = -1 if last is None else self._time(last[0])
        self._complete_from = newest + 1
        return newest

    def due_at(self) -> int:
        """Stream time at which a row may be due; it need not be there."""
        first = self._first()
        moment = self._known_time
        if first is not None and first < self._known:
            moment = self._time(first)
        if self._moments and self._moments[0] < moment:
            moment = self._moments[0]
        return moment + self.hold_ms + 1

    def trim(self, dirty: Mapping[Any, Any]) -> None:
        """Forget what the store has and what is far off."""
        if self._count <= LATE_MAX + len(dirty):
            return
        if self._known_time == NEVER:
            # the nearer ones stay; of the others the store tells when their time comes
            near, room = 0, LATE_MAX // 2
            for near in sorted(self._lately):
                room -= len(self._lately[near])
                if room <= 0:
                    break
            self._know_until(near)
        near = self._known_time
        kept: dict[int, dict[Any, None]] = {}
        for moment, entries in self._lately.items():
            if moment > near:
                there = {e: None for e in entries if dirty.get(e, DELETED) is not DELETED}
                if len(there) < len(entries) and moment >= self._complete_from:
                    self._complete_from = moment + 1
                entries = there
            if entries:
                kept[moment] = entries
        self._lately, self._moments = kept, sorted(kept)
        self._count = sum(map(len, kept.values()))


class WaitingPart(RowsPart):
    """Rows that wait, of one or both sides of a join."""

    __slots__ = (
        "_codecs",
        "_encode_plain",
        "_filters",
        "_hold_ms",
        "_new",
        "_orders",
        "next_due",
        "releases",
    )

    @property
    def kept_as(self) -> str:
        return "rows that wait"

    def __init__(
        self,
        name: str,
        *,
        codecs: Mapping[bool, Codec[Any]],
        holds_ms: Mapping[bool, int],
        encode_plain: Callable[[Any], bytes],
        releases: bool = True,
        **arguments: Any,
    ) -> None:
        """
        Args:
            codecs: by side, for the values of its rows.
            holds_ms: by side, left or not: a row is due when stream time is above its timestamp plus this.
            encode_plain: a key alone to its order-preserving bytes.
            releases: whether rows leave when they are due, rather than when somebody says so.
        """
        super().__init__(name, values=codecs[True], **arguments)
        self._codecs = codecs
        self._encode_plain = encode_plain
        self._orders = {
            left: _Order(left, hold_ms, self.place) for left, hold_ms in holds_ms.items()
        }
        self._filters = KeyFilters()
        """Of hashes of places, by stretches of time: most rows are the first of their place."""
        self._hold_ms = max(holds_ms.values())
        self._new: set[Any] = set()
        """Entries made since the last cut; if they are gone before the next, it need not know of them."""
        self.releases = releases
        self.next_due = NEVER
        """Stream time at which a row may be due."""

    # rows -----------------------------------------------------------------------------------------

    def put(
        self, left: bool, timestamp: int, key: Any, data: bytes, headers: Headers, scope: Scope
    ) -> None:
        """Have a row wait."""
        if headers:
            packed = msgspec.msgpack.encode(headers)
            data = _number.pack(len(packed)) + packed + data
        first = (left, timestamp, key, 0)
        mark = HEADERS if headers else 0
        stretch, place = timestamp // STRETCH_MS, hash(first)
        known = place in self._filters[stretch]
        if not known:
            self._filters.add(stretch, place)
            if scope.journal is None:
                self.dirty[first] = first_segment(timestamp, mark, data)
                self._new.add(first)
                self._remember(first)
                return
        unknown = scope.journal is None and first not in self.dirty and first not in self.committing
        entry = self.append((left, timestamp, key), timestamp, mark, data, scope, known=known)
        if entry is not None:
            if unknown and entry == first:
                self._new.add(entry)
            self._remember(entry)

    def _remember(self, entry: Any) -> None:
        order = self._orders[entry[0]]
        order.put(entry)
        if self.releases:
            due_at = entry[1] + order.hold_ms + 1
            if due_at < self.next_due:
                self.next_due = due_at

    def remove(self, left: bool, timestamp: int, key: Any, scope: Scope) -> None:
        """Take out what waits of a key and a moment, if it is still there."""
        number = 0
        while segment := self.segment((left, timestamp, key, number), scope):
            self._drop_entry((left, timestamp, key, number), scope)
            if not segment[0]:
                return
            number += 1

    def _drop_entry(self, entry: Any, scope: Scope) -> None:
        if scope.journal is None and entry in self._new:
            self._new.discard(entry)
            del self.dirty[entry]
            self._orders[entry[0]].drop(entry)
        elif scope.journal is None:
            self.dirty[entry] = DELETED
        else:
            self.delete(entry, scope)

    def codec_of(self, entry: Any) -> Codec[Any]:
        return self._codecs[entry[0]]

    def place(self, entry: Any) -> bytes:
        left, timestamp, key, number = entry
        return (
            _SIDES[left]
            + layout_of_int(timestamp)
            + self._encode_plain(key)
            + (layout_of_int(number) if number else FIRST_NUMBER)
        )

    def _rows(self, entry: Any, segment: bytes) -> list[Waiting]:
        return [self._waiting(entry, n, row) for n, row in enumerate(rows_of(segment))]

    def due_row(self, row: Waiting) -> DueRow:
        """How failures know a row."""
        place = self.encode_key(row.entry) + _number.pack(row.number)
        return DueRow(self.name, place, row.key, row.timestamp, None, row.data)

    def held_rows(self) -> Iterator[tuple[Any, int, bytes]]:
        for entry in self.keys(b"\x01", None):
            yield entry[2], entry[1], self.encode_key(entry)

    def _waiting(self, entry: Any, number: int, row: Row) -> Waiting:
        left, timestamp, key, _ = entry
        _, mark, payload = row
        headers: Headers = []
        data = payload
        if mark & HEADERS:
            headers = _headers.decode(payload[4 : 4 + _number.unpack_from(payload)[0]])
            data = value_in(mark, payload)
        value = self.load_value(entry, data)
        return Waiting(left, timestamp, key, value, headers, entry, number, data)

    def undo(self, key: Any, before: PreImage) -> None:
        super().undo(key, before)
        self._remember(key)

    # what is due ----------------------------------------------------------------------------------

    def release(self, scope: Scope, *, first: bool = False) -> Iterator[Waiting]:
        """Take out the rows that are due, in order of time; right before left, then by key.

        What is due beyond what one event lets out leaves between this event and the next.

        Args:
            first: the record at hand may only go on when all of it is out.

        Raises:
            DueFirstError: that is not so; while iterating.
        """
        let_out = 0
        while has_room(scope, let_out):
            entry = self._next()
            if entry is None:
                self._look_ahead()
                return
            segment = self.segment(entry, scope)
            if segment:
                let_out += 1
                if scope.journal is not None:
                    self.tie(self._due_at(entry), scope)
                self._drop_entry(entry, scope)
                yield from self._rows(entry, segment)
        if first and scope.tp is not None:
            raise DueFirstError(self.name, self.stream_time)
        self.became_due()

    def _due_at(self, entry: Any) -> int:
        due_at: int = entry[1] + self._orders[entry[0]].hold_ms + 1
        return due_at

    def _next(self) -> Any:
        """The entry that is due first, which is then forgotten; None where there is none."""
        if len(self._orders) == 1:
            (order,) = self._orders.values()
            position, entry = order.next(self.stream_time, self.store)
            if entry is None and position is not None:
                return self.decode_key(position)
            return entry
        best, where = None, None
        for order in self._orders.values():
            position = order.peek(self.stream_time, self.store)
            # the side comes first in the store, and second in time
            if position is not None and (
                best is None or (position[1:10], position) < (best[1:10], best)
            ):
                best, where = position, order
        if best is None or where is None:
            return None
        entry = where.pop(best)
        return self.decode_key(best) if entry is None else entry

    def _look_ahead(self) -> None:
        self.next_due = min([order.due_at() for order in self._orders.values()])

    def waiting_in_order(self) -> list[Any]:
        """Entries of all rows that wait, in order of time; right before left, then by key: walks over all."""
        return sorted(
            self.keys(b"\x01", None), key=lambda entry: (entry[1], self.encode_key(entry))
        )

    def take(self, entry: Any, scope: Scope) -> list[Waiting]:
        """Take out the rows of an entry."""
        segment = self.segment(entry, scope)
        self._drop_entry(entry, scope)
        return self._rows(entry, segment)

    # what is due without a record -------------------------------------------------------------------

    def advance(self, by: int) -> None:
        super().advance(by)
        if self.stream_time >= self.next_due:
            self.became_due()

    def recovered(self) -> None:
        super().recovered()
        newest = max(order.recovered(self.store) for order in self._orders.values())
        self._filters.begin(newest // STRETCH_MS + 1)
        if self.releases:
            self._look_ahead()
            if self.stream_time >= self.next_due:
                self.became_due()

    def due(self) -> list[Due]:
        """One for all rows of the next entries: they leave in one event."""
        self.closing_due = False
        if not self.releases:
            return []
        if all(order.peek(self.stream_time, self.store) is None for order in self._orders.values()):
            self._look_ahead()
            return []
        return [Due(None, None, Window(self.stream_time, self.stream_time), b"")]

    def close(self, due: Due, scope: Scope) -> Any:
        """The next rows that are due."""
        return self.release(scope)

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        super().cut(excluded)
        self._new.clear()
        self._filters.forget((self.lasting_time - self._hold_ms) // STRETCH_MS - 1)

    def settle(self) -> None:
        """The store holds ``committing`` now: what is known of it and far off may go."""
        super().settle()
        for order in self._orders.values():
            order.trim(self.dirty)

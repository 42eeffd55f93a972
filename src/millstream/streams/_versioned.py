"""Tables that remember what their values were.

Theory of operation
-------------------
The latest value of a key lies where any table has it. What was before lies beside it, under reserved keys, as versions
``[from, to)`` that follow one another without a gap: each ends where the next one begins, a deletion is a version
without a value. A version lies in the bucket of its *end*, so what was the value at a moment is found in the bucket of
that moment or in the next one that has something: the bucket of the latest's own time, that of the beginning of the
first version there, and so on backwards, by lookups alone. A bucket whose time is over holds nothing that is still
needed.

What a bucket has of a key is one segment of versions, until it is full. It is divided by time then, and so are its
parts in their turn: an update costs as much where a key has many versions as where it has few, and a search reads one
or two segments::

    key                               timestamp(8) value       the latest
    00 'g' key                        timestamp(8)             the latest is a deletion
    00 'v' bucket(8) key node(8)      00 version ...           a segment, in any order
                                      01 parts(8)              divided: a bit for each part that has something
    version                           from(8) to(8) length(4, -1 for none) value

Node 0 is the whole of the bucket; part ``i`` of node ``n`` is node ``n * 64 + 1 + i``.

An update that is older than the latest value changes history alone: it splits the version that it falls into. One that is
older than the history is dropped. Values are kept as bytes, so who reads one has an object of its own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from typing_extensions import TypeVar

from millstream.clock import timestamp_ms
from millstream.errors import RecordTooLargeError
from millstream.streams._derived import DerivedTable
from millstream.streams._operator import Context, Done, Operator
from millstream.tables import DELETED, MISSING, Expiry, TimedPart, require_scope, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from millstream.agents import Topic
    from millstream.context import PreImage, Scope

__all__ = ["VersionedPart", "VersionedSource", "VersionedTable"]

K = TypeVar("K")
V = TypeVar("V")

BUCKETS: Final = 1_024
"""Into so many buckets the history is divided."""
SEGMENT_BYTES: Final = 2_048
"""A segment with so many is divided by the next version that comes."""
PARTS: Final = 64
"""Into so many a full segment is divided."""

_head = struct.Struct(">QQi")
_long = struct.Struct(">Q")
_place = struct.Struct(">2sQ")
_SEGMENT, _DIVIDED = b"\x00", b"\x01"


class _Kind:
    """Stands first in the part's own entries, where no key of a program can."""


PAST, GONE = _Kind(), _Kind()


class Version(NamedTuple):
    """What a key's value was in ``[start, end)``; None where it had none."""

    start: int
    end: int
    data: bytes | None


def _dump(version: Version) -> bytes:
    data = version.data
    size = -1 if data is None else len(data)
    return _head.pack(version.start, version.end, size) + (data or b"")


def _load(segment: bytes) -> list[Version]:
    versions, at, end = [], 1, len(segment)
    while at < end:
        version = _load_one(segment, at)
        versions.append(version)
        at += _head.size + len(version.data or b"")
    return versions


def _load_one(segment: bytes, at: int) -> Version:
    start, until, size = _head.unpack_from(segment, at)
    at += _head.size
    return Version(start, until, None if size < 0 else segment[at : at + size])


def _place_of_first(segment: bytes, lowest: int) -> int | None:
    """Where in a segment the version is that ends first, at ``lowest`` or later."""
    first, place = 0, None
    at, end = 1, len(segment)
    while at < end:
        _, until, size = _head.unpack_from(segment, at)
        if until >= lowest and (place is None or until < first):
            first, place = until, at
        at += _head.size + max(size, 0)
    return place


def _part_widths(width: int) -> tuple[int, ...]:
    """How many ms a part has, of a bucket, of its parts, and so on, until there is nothing to divide."""
    widths: list[int] = []
    while width > 1:
        width = -(-width // PARTS)
        widths.append(width)
    return tuple(widths)


def _part_of(entry: Any, part: int) -> Any:
    """The entry of a node's part."""
    mark, bucket, key, node = entry
    return mark, bucket, key, node * PARTS + 1 + part


class _Found(NamedTuple):
    """A version, and where it is."""

    entry: Any
    segment: bytes
    at: int
    version: Version

    def without(self) -> bytes:
        """The segment without it."""
        size = _head.size + len(self.version.data or b"")
        return self.segment[: self.at] + self.segment[self.at + size :]


class VersionedPart(TimedPart):
    """The latest values and their history in one shard. What the dictionaries hold are bytes."""

    __slots__ = ("_bucket_ms", "_expiry", "_key_of", "_widths", "history_ms")

    @property
    def kept_as(self) -> str:
        return f"values and their history in stretches of {self._bucket_ms} ms and parts of these"

    def __init__(self, name: str, *, history_ms: int, **arguments: Any) -> None:
        """
        Args:
            history_ms: how far back the past is known.
        """
        encode, check = arguments["encode_key"], arguments["check"]

        def encode_entry(entry: Any) -> Any:
            if type(entry) is tuple and entry and type(entry[0]) is _Kind:
                if entry[0] is GONE:
                    return b"\x00g" + encode(entry[1])
                _, bucket, key, node = entry
                return _place.pack(b"\x00v", bucket) + encode(key) + _long.pack(node)
            return cast("bytes", encode(entry))

        def check_entry(entry: Any) -> None:
            own = type(entry) is tuple and entry and type(entry[0]) is _Kind
            check(entry[1 if entry[0] is GONE else 2] if own else entry)

        own = {"encode_key": encode_entry, "check": check_entry, "mutable": False}
        super().__init__(name, **{**arguments, **own})
        self._key_of: Callable[[bytes], Any] = arguments["decode_key"]
        self.history_ms = history_ms
        self._bucket_ms = max(1, history_ms // BUCKETS)
        self._widths = _part_widths(self._bucket_ms)
        self._expiry = Expiry(
            bucket_ms=self._bucket_ms,
            retention_ms=history_ms,
            bucket_of=lambda entry: (
                entry[1] if type(entry) is tuple and entry and entry[0] is PAST else None
            ),
            start_of=lambda bucket: _place.pack(b"\x00v", bucket),
        )

    # values ---------------------------------------------------------------------------------------

    def value_of(self, stored: Any) -> Any:
        value = TimedPart.decode(self, None, stored[8:])
        return value if self.show is None else self.show(value)

    def decode(self, key: Any, data: bytes) -> Any:
        return data

    def check_stored(self, known: str | None) -> Iterator[int]:
        """Decode what is stored, with its history; see `TablePart.check_stored`."""
        if known != self.schema:
            for place, segment in self.store.items(b"\x00v", b"\x00w"):
                if segment.startswith(_DIVIDED):
                    continue
                key, values = self._key_of(place[_place.size : -_long.size]), _load(segment)
                for version in values:
                    if version.data is not None:
                        TimedPart.decode(self, key, version.data)
                yield len(values)
        yield from super().check_stored(known)

    def check_entry(self, key: Any, data: bytes) -> None:
        TimedPart.decode(self, key, data[8:])

    def _encode(self, key: Any, value: Any) -> bytes:
        data: bytes = value
        if len(data) > self.value_bytes_max:
            raise RecordTooLargeError(
                f"table {self.name!r}, key {key!r}",
                size=len(data),
                limit=self.value_bytes_max,
                setting="record_bytes_max",
            )
        return data

    def _bytes(self, entry: Any, scope: Scope) -> bytes | None:
        found = self.get(entry, scope)
        return None if found is MISSING else found

    def latest(self, key: Any, scope: Scope) -> tuple[int, bytes | None] | None:
        """Time and bytes of the latest update, None instead of bytes where it deleted; None without any."""
        stored = self._bytes(key, scope)
        if stored is not None:
            return _long.unpack_from(stored)[0], stored[8:]
        gone = self._bytes((GONE, key), scope)
        return None if gone is None else (_long.unpack(gone)[0], None)

    def value_at(self, key: Any, moment: int, scope: Scope) -> Any:
        """The value that was the latest at a moment, or `MISSING`: there was none, or it is beyond history."""
        latest = self.latest(key, scope)
        if latest is None:
            return MISSING
        data = latest[1]
        if latest[0] > moment:
            data = None
            if moment < self.stream_time - self.history_ms:
                self.tie(moment + self.history_ms + 1, scope)
                return MISSING
            found = self._after(key, moment, latest[0], scope)
            if found is not None and found.version.start <= moment:
                data = found.version.data
        return MISSING if data is None else TimedPart.decode(self, key, data)

    # updates --------------------------------------------------------------------------------------

    def put(self, key: Any, value: Any, timestamp: int, scope: Scope) -> bool | None:
        """Give the key a value as of a time, or none where it is None.

        Returns:
            Whether that is now the latest; None where it is older than the history, and dropped.
        """
        data = None if value is None else TimedPart._encode(self, key, value)
        if timestamp < self.stream_time - self.history_ms:
            self.tie(timestamp + self.history_ms + 1, scope)
            return None
        self.reached(timestamp, scope)
        latest = self.latest(key, scope)
        if latest is None or timestamp >= latest[0]:
            if latest is not None and timestamp > latest[0]:
                self._add(key, Version(latest[0], timestamp, latest[1]), scope)
            self._set_latest(key, timestamp, data, latest, scope)
            return True
        self._put_before(key, timestamp, data, latest[0], scope)
        return False

    def _set_latest(
        self,
        key: Any,
        timestamp: int,
        data: bytes | None,
        latest: tuple[int, bytes | None] | None,
        scope: Scope,
    ) -> None:
        if data is not None:
            self.set(key, stamp(timestamp, data), scope)
            if latest is not None and latest[1] is None:
                self.delete((GONE, key), scope)
            return
        self.set((GONE, key), _long.pack(timestamp), scope)
        if latest is not None and latest[1] is not None:
            self.delete(key, scope)
        # when this segment expires, so does the mark of the deletion
        entry = (PAST, timestamp // self._bucket_ms, key, 0)
        if self._bytes(entry, scope) is None:
            self.set(entry, _SEGMENT, scope)

    def _put_before(
        self, key: Any, timestamp: int, data: bytes | None, latest: int, scope: Scope
    ) -> None:
        end, found = latest, self._after(key, timestamp, latest, scope)
        if found is not None:
            start, end, old = found.version
            if start > timestamp:
                end = start
            else:
                self.set(found.entry, found.without(), scope)
                if start < timestamp:
                    self._add(key, Version(start, timestamp, old), scope)
        self._add(key, Version(timestamp, end, data), scope)

    def _after(self, key: Any, moment: int, latest: int, scope: Scope) -> _Found | None:
        """The version that ends first after a moment; None where no one but the latest was after it.

        Args:
            latest: when the latest update was, which is later than the moment.
        """
        bucket_ms = self._bucket_ms
        of_moment = moment // bucket_ms
        found = self._first_of(key, of_moment, moment + 1, scope)
        if found is not None:
            return found
        bucket = latest // bucket_ms
        while bucket > of_moment:
            first = self._first_of(key, bucket, bucket * bucket_ms, scope)
            if first is None:
                break  # nothing that is still known was before
            found = first
            if found.version.start <= moment or found.version.start // bucket_ms == bucket:
                break
            bucket = found.version.start // bucket_ms
        return found

    def _first_of(self, key: Any, bucket: int, lowest: int, scope: Scope) -> _Found | None:
        """The version of a bucket that ends first, at ``lowest`` or later."""
        return self._first_in((PAST, bucket, key, 0), bucket * self._bucket_ms, 0, lowest, scope)

    def _first_in(
        self, entry: Any, begin: int, depth: int, lowest: int, scope: Scope
    ) -> _Found | None:
        segment = self._bytes(entry, scope)
        if segment is None:
            return None
        if segment.startswith(_SEGMENT):
            at = _place_of_first(segment, lowest)
            return None if at is None else _Found(entry, segment, at, _load_one(segment, at))
        width = self._widths[depth]
        part = max(lowest - begin, 0) // width
        parts = _long.unpack_from(segment, 1)[0] >> part
        while parts:
            if parts & 1:
                node = _part_of(entry, part)
                found = self._first_in(node, begin + part * width, depth + 1, lowest, scope)
                if found is not None:
                    return found
            parts >>= 1
            part += 1
        return None

    def _add(self, key: Any, version: Version, scope: Scope) -> None:
        if version.end <= self.stream_time - self.history_ms:
            return  # nobody can ask for it
        bucket = version.end // self._bucket_ms
        entry, begin, data = (PAST, bucket, key, 0), bucket * self._bucket_ms, _dump(version)
        segment = self._bytes(entry, scope) or _SEGMENT
        for width in self._widths:
            if segment.startswith(_SEGMENT) and self._has_room(segment, data):
                break
            part = (version.end - begin) // width
            known = self._parts(entry, segment, begin, width, scope)
            parts = _DIVIDED + _long.pack(known | 1 << part)
            if parts != segment:
                self.set(entry, parts, scope)
            entry, begin = _part_of(entry, part), begin + part * width
            segment = self._bytes(entry, scope) or _SEGMENT
        self.set(entry, segment + data, scope)

    def _has_room(self, segment: bytes, data: bytes) -> bool:
        size = len(segment)
        return size == 1 or (size < SEGMENT_BYTES and size + len(data) <= self.value_bytes_max)

    def _parts(self, entry: Any, segment: bytes, begin: int, width: int, scope: Scope) -> int:
        """The parts of a node that have something, as bits; it is divided where it is not."""
        if segment.startswith(_DIVIDED):
            parts: int = _long.unpack_from(segment, 1)[0]
            return parts
        divided: dict[int, bytes] = {}
        for version in _load(segment):
            part = (version.end - begin) // width
            divided[part] = divided.get(part, _SEGMENT) + _dump(version)
        for part, own in divided.items():
            self.set(_part_of(entry, part), own, scope)
        return sum(1 << part for part in divided)

    # the commit -----------------------------------------------------------------------------------

    def is_dirty(self) -> bool:
        return self._expiry.active or super().is_dirty()

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        super().cut(excluded)
        for place in self._expiry.take(self, excluded=bool(excluded)):
            self.committing_system[place] = None
            self._forget_deletion(place[_place.size : -_long.size])

    def _forget_deletion(self, key_bytes: bytes) -> None:
        """Drop the mark of a key's deletion, if it is as old as what expires."""
        entry = (GONE, self._key_of(key_bytes))
        if entry in self.dirty:
            return
        known = self.committing.get(entry)
        if known is DELETED:
            return
        data = self.store.get(b"\x00g" + key_bytes) if known is None else known
        if data is not None and _long.unpack(data)[0] <= self.lasting_time - self.history_ms:
            if known is None:
                self.committing_system[b"\x00g" + key_bytes] = None
            else:
                self.committing[entry] = DELETED


class VersionedSource(Operator):
    """A topic that is read as a table with history. Hands on what becomes the latest value of its key."""

    kind = "table"
    changes = True

    def __init__(
        self, topic: Topic[Any, Any], *, name: str, value_type: Any, history_ms: int
    ) -> None:
        super().__init__(name=name)
        self.history_ms = history_ms
        self._topic = topic
        self.key_type = topic.key_type
        self.value_type = value_type
        self.codec = topic.value_codec
        self.stores.append(name)

    @property
    def topics(self) -> tuple[Topic[Any, Any], ...]:
        return (self._topic,)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part: VersionedPart = context.parts[self.name]
        counters, old_wanted = context.counters, self.old_wanted

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None:
                counters["null_keys_dropped"] += 1
                return None
            scope = context.scope
            stored = part.get(key, scope) if old_wanted else MISSING
            is_latest = part.put(key, value, timestamp, scope)
            if not is_latest:
                if is_latest is None:
                    counters["late_updates_dropped"] += 1
                return None
            old = None if stored is MISSING else part.value_of(stored)
            return forward(key, value, old, timestamp)

        return [take]

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        part: VersionedPart = context.parts[self.name]

        def get(key: Any) -> tuple[Any, int] | None:
            stored = part.get(key, context.scope)
            if stored is MISSING:
                return None
            return part.value_of(stored), _long.unpack_from(stored)[0]

        return get

    def getter_as_of(self, context: Context) -> Callable[[Any, int], Any]:
        part: VersionedPart = context.parts[self.name]

        def get(key: Any, moment: int) -> Any:
            found = part.value_at(key, moment, context.scope)
            return None if found is MISSING else found

        return get


class VersionedTable(DerivedTable[K, V]):
    """A table that remembers what its values were; made with ``app.table(..., versioned=...)``.

    ``table[key]`` is the latest value, by event time: an update that is older changes history alone. What is
    assigned counts from the event's time on. Values that are read are the caller's own: a change in place is not kept.
    """

    def as_of(self, key: K, time: datetime | float, default: Any = None) -> V | Any:
        """The value that was the latest at a time, as far as history goes back; ``default`` where there is none.

        Args:
            time: an aware datetime, or ms since the epoch.

        Raises:
            OutsideEventError, WrongShardError, TypeError: as any use of a table.
        """
        scope = require_scope(f"table {self.name!r}")
        part = cast("VersionedPart", self._part(scope))
        found = part.value_at(key, timestamp_ms(time), scope)
        return default if found is MISSING else part.show(found) if part.show else found

    def __setitem__(self, key: K, value: V) -> None:
        if self.read_only:
            super().__setitem__(key, value)  # raises
        self._put(key, value)

    def __delitem__(self, key: K) -> None:
        if not self.read_only and key not in self:
            raise KeyError(key)
        if self.read_only:
            super().__setitem__(key, cast("V", None))  # raises
        self._put(key, None)

    def _put(self, key: K, value: V | None) -> None:
        scope = require_scope(f"table {self.name!r}")
        cast("VersionedPart", self._part(scope)).put(key, value, scope.timestamp, scope)

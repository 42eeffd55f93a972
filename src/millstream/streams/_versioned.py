"""Tables that remember what their values were.

Theory of operation
-------------------
The latest value of a key lies where any table has it. What was before lies beside it, under reserved keys, as versions
``[from, to)`` that follow one another without a gap: each ends where the next one begins, a deletion is a version
without a value. A version lies in the bucket of its *end*, so the one before the latest is found in the bucket of the
latest's own time, the one before that in the bucket of *its* beginning, and so on, by lookups alone; and a bucket
whose time is over holds nothing that is still needed::

    key                               timestamp(8) value       the latest
    00 'g' key                        timestamp(8)             the latest is a deletion
    00 'v' bucket(8) key number(4)    00|01 version ...        01: segment number + 1 follows
    version                           from(8) to(8) length(4, -1 for none) value

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
SEGMENT_BYTES: Final = 4_096

_head = struct.Struct(">QQi")
_long = struct.Struct(">Q")
_place = struct.Struct(">2sQ")
_number = struct.Struct(">I")


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
        start, until, size = _head.unpack_from(segment, at)
        at += _head.size
        versions.append(Version(start, until, None if size < 0 else segment[at : at + size]))
        at += max(size, 0)
    return versions


class VersionedPart(TimedPart):
    """The latest values and their history in one shard. What the dictionaries hold are bytes."""

    __slots__ = ("_bucket_ms", "_expiry", "_key_of", "history_ms")

    @property
    def kept_as(self) -> str:
        return f"values and their history in stretches of {self._bucket_ms} ms"

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
                _, bucket, key, number = entry
                return _place.pack(b"\x00v", bucket) + encode(key) + _number.pack(number)
            return cast("bytes", encode(entry))

        def check_entry(entry: Any) -> None:
            own = type(entry) is tuple and entry and type(entry[0]) is _Kind
            check(entry[1 if entry[0] is GONE else 2] if own else entry)

        own = {"encode_key": encode_entry, "check": check_entry, "mutable": False}
        super().__init__(name, **{**arguments, **own})
        self._key_of: Callable[[bytes], Any] = arguments["decode_key"]
        self.history_ms = history_ms
        self._bucket_ms = max(1, history_ms // BUCKETS)
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
                key, values = self._key_of(place[_place.size : -_number.size]), _load(segment)
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
            for *_, version in self._before(key, latest[0], scope):
                if version.start <= moment:
                    data = version.data
                    break
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
            self.set(entry, b"\x00", scope)

    def _put_before(
        self, key: Any, timestamp: int, data: bytes | None, end: int, scope: Scope
    ) -> None:
        for entry, index, version in self._before(key, end, scope):
            end = version.start
            if version.start > timestamp:
                continue
            segment = self._bytes(entry, scope)
            assert segment is not None
            versions = _load(segment)
            versions[index] = Version(timestamp, version.end, data)
            self.set(entry, segment[:1] + b"".join(map(_dump, versions)), scope)
            if version.start < timestamp:
                self._add(key, Version(version.start, timestamp, version.data), scope)
            return
        self._add(key, Version(timestamp, end, data), scope)

    def _before(self, key: Any, end: int, scope: Scope) -> Iterator[tuple[Any, int, Version]]:
        """Versions that end at or before ``end``, the latest first: entry, place in its segment, version."""
        while True:
            began = end
            for entry, index, version in self._in_bucket(key, end // self._bucket_ms, scope):
                if version.end == end:
                    yield entry, index, version
                    end = version.start
            if end // self._bucket_ms == began // self._bucket_ms:
                return

    def _in_bucket(self, key: Any, bucket: int, scope: Scope) -> list[tuple[Any, int, Version]]:
        """Versions that end in a bucket, the latest first."""
        found: list[tuple[Any, int, Version]] = []
        number = 0
        while (segment := self._bytes((PAST, bucket, key, number), scope)) is not None:
            entry = (PAST, bucket, key, number)
            found += [(entry, index, one) for index, one in enumerate(_load(segment))]
            if not segment[0]:
                break
            number += 1
        return sorted(found, key=lambda one: one[2].end, reverse=True)

    def _add(self, key: Any, version: Version, scope: Scope) -> None:
        if version.end <= self.stream_time - self.history_ms:
            return  # nobody can ask for it
        bucket, number = version.end // self._bucket_ms, 0
        while True:
            entry = (PAST, bucket, key, number)
            segment = self._bytes(entry, scope) or b"\x00"
            if not segment[0]:
                break
            number += 1
        if len(segment) >= SEGMENT_BYTES:
            self.set(entry, b"\x01" + segment[1:], scope)
            entry, segment = (PAST, bucket, key, number + 1), b"\x00"
        self.set(entry, segment + _dump(version), scope)

    # the commit -----------------------------------------------------------------------------------

    def is_dirty(self) -> bool:
        return self._expiry.active or super().is_dirty()

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        super().cut(excluded)
        for place in self._expiry.take(self, excluded=bool(excluded)):
            self.committing_system[place] = None
            self._forget_deletion(place[_place.size : -_number.size])

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

    def __init__(self, topic: Topic[Any, Any], *, name: str, value_type: Any) -> None:
        super().__init__(name=name)
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

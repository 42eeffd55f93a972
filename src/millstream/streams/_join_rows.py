"""What joins keep: rows of records that wait for their partners, or for event time.

Theory of operation
-------------------
Rows of one place (a stretch of time, and a key) lie one behind the other, in the order of their arrival, as bytes in
*segments*. Bytes never change in place, so the part hands them out without copying; a row is decoded only when it
matches. A segment that has reached `SEGMENT_BYTES` is closed by the next row, which begins another one, so that a busy
place costs no more for each row than a quiet one::

    entry (..., key, number)     00 row row ...      the last segment of its place
                                 01 row row ...      a closed one: number + 1 follows
    row                          timestamp(8) mark(1) length(4) payload
    payload                      value, or, where the mark has HEADERS, length(4) headers value

An empty segment, ``b""``, means that there is none; it is cached like others, because most lookups of a join find
nothing.

`BufferPart` holds what one side of a join of streams has brought lately, in buckets of event time as wide as the join's
reach. So a record looks up its own bucket or two, by key, and what is over expires bucket by bucket.
"""

from __future__ import annotations

import struct
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from millstream.errors import DecodeError, EncodeError, RecordTooLargeError
from millstream.serialization import key_layout
from millstream.streams._join_filter import KeyFilters
from millstream.tables import DELETED, Expiry, TimedPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from millstream.context import PreImage, Scope
    from millstream.serialization import Codec

__all__ = [
    "FIRST_NUMBER",
    "HEADERS",
    "WAITS",
    "BufferPart",
    "Row",
    "RowsCodec",
    "RowsPart",
    "first_segment",
    "rows_of",
    "value_in",
]

HEADERS: Final = 1
"""Marks a row whose payload begins with headers."""
WAITS: Final = 2
"""Marks a row that waits for a partner elsewhere as well, or did."""

SEGMENT_BYTES: Final = 2_048
CACHED_SEGMENTS: Final = 4_096
"""Clean segments that a part keeps in memory, at most twice this many."""
CHECKED_SEGMENTS: Final = 100
"""Stored segments whose values are decoded before the first event."""

Row = tuple[int, int, bytes]
"""Timestamp, mark, payload."""

_head = struct.Struct(">QBI")
_first_row = struct.Struct(">BQBI").pack
_length = struct.Struct(">I")
_pack, _unpack = _head.pack, _head.unpack_from
_HEAD_BYTES = _head.size
_OPEN, _CLOSED = b"\x00", b"\x01"

layout_of_int = key_layout(int).encode
FIRST_NUMBER = layout_of_int(0)


def first_segment(timestamp: int, mark: int, payload: bytes) -> bytes:
    """The segment of a place's first row."""
    return _first_row(0, timestamp, mark, len(payload)) + payload


def rows_of(segment: bytes) -> Iterator[Row]:
    """The rows of a segment."""
    at, end = 1, len(segment)
    while at < end:
        timestamp, mark, size = _unpack(segment, at)
        at += _HEAD_BYTES + size
        yield timestamp, mark, segment[at - size : at]


def value_in(mark: int, payload: bytes) -> bytes:
    """The value's bytes in a row's payload."""
    return payload[4 + _length.unpack_from(payload)[0] :] if mark & HEADERS else payload


class RowsCodec:
    """Segments as they are stored, and as queries show them: lists of timestamps and values."""

    name = "rows"

    def __init__(self, values: Codec[Any]) -> None:
        self._values = values
        self.type_name = f"rows of {values.type_name}"

    def dumps(self, segment: bytes) -> bytes:
        """As it is."""
        return segment

    def loads(self, data: bytes) -> list[tuple[int, Any]]:
        """Timestamps and values."""
        return [
            (timestamp, self._values.loads(value_in(mark, payload)))
            for timestamp, mark, payload in rows_of(data)
        ]


class RowsPart(TimedPart):
    """Rows in segments. Entries are tuples that end with the key and the segment's number."""

    __slots__ = ("_last", "_shown", "values")

    def __init__(self, name: str, *, values: Codec[Any], **arguments: Any) -> None:
        """
        Args:
            values: of the rows.
            arguments: as for `TablePart`.
        """
        bounds = {"mutable": False, "cache_size": CACHED_SEGMENTS}
        super().__init__(name, **{**arguments, **bounds})
        self.values = values
        self._shown = arguments["loads"]
        self._last: dict[tuple[Any, ...], int] = {}
        """Of places that have several segments the number of the last one, as it was lately."""

    # values ---------------------------------------------------------------------------------------

    def dump(self, key: Any, value: Any) -> bytes:
        """A row's value as bytes.

        Raises:
            EncodeError: it is not of the stream's type.
            RecordTooLargeError: it would not fit into a record.
        """
        try:
            data = self.values.dumps(value)
        except Exception as exc:
            where = f"join {self.name!r}, key {key!r}"
            raise EncodeError(where, value=value, reason=str(exc)) from exc
        if len(data) + _HEAD_BYTES >= self.value_bytes_max:
            raise RecordTooLargeError(
                f"join {self.name!r}, key {key!r}",
                size=len(data) + _HEAD_BYTES,
                limit=self.value_bytes_max,
                setting="record_bytes_max",
            )
        return data

    def load_value(self, entry: Any, data: bytes) -> Any:
        """A row's value from its bytes.

        Raises:
            DecodeError: names join and key.
        """
        codec = self.codec_of(entry)
        try:
            return codec.loads(data)
        except Exception as exc:
            raise DecodeError(
                f"join {self.name!r}, key {entry[-2]!r}",
                part="stored value",
                type_name=codec.type_name,
                reason=f"{exc}. The program has changed: give the join another name=",
            ) from exc

    def codec_of(self, entry: Any) -> Codec[Any]:
        """The codec for the values of an entry's rows."""
        return self.values

    def check_stored(self, known: str | None) -> Iterator[int]:
        for data, segment in islice(self.stored(), CHECKED_SEGMENTS):
            entry = self.decode_key(data)
            rows = list(rows_of(segment))
            for _, mark, payload in rows:
                self.load_value(entry, value_in(mark, payload))
            yield len(rows)

    def _encode(self, key: Any, value: Any) -> bytes:
        segment: bytes = value
        return segment

    def decode(self, key: Any, data: bytes) -> Any:
        return data

    def value_of(self, stored: Any) -> Any:
        return self._shown(stored)

    # segments -------------------------------------------------------------------------------------

    def load(self, key: Any) -> Any:
        """The segment of an entry that is not dirty; ``b""`` or `DELETED` where there is none."""
        value = self.committing.get(key)
        if value is None:
            value = self.cache.get(key)
            if value is None:
                value = self._load_clean(key)
        return value

    def _load_clean(self, entry: Any) -> Any:
        """The segment of an entry that is in none of the newer dictionaries."""
        value = self.cache[entry] = self._fetch(entry)
        self.trim()
        return value

    def _fetch(self, entry: Any) -> Any:
        """The same, for one who is about to replace it: it is not kept among the clean ones."""
        value = self._cache_old.pop(entry, None) if self._cache_old else None
        return self.store.get(self.place(entry)) or b"" if value is None else value

    def place(self, entry: Any) -> bytes:
        """An entry's bytes in the store: `encode_key`, which parts have in a quicker way."""
        return self.encode_key(entry)

    def segment(self, entry: Any, scope: Scope) -> bytes:
        """The segment of an entry, or ``b""``."""
        if scope.journal is not None:
            self.touch(entry, scope)
        found = self.dirty.get(entry)
        if found is None and self.committing:
            found = self.committing.get(entry)
        if found is None:
            found = self.cache.get(entry)
            if found is None:
                found = self._load_clean(entry)
        return b"" if found is DELETED else found

    def _encode_values(self, entries: list[tuple[Any, Any]]) -> dict[bytes, bytes | None]:
        place = self.place
        return {place(entry): None if value is DELETED else value for entry, value in entries}

    def _put(self, entry: Any, segment: bytes, scope: Scope) -> None:
        if scope.journal is None:
            self.dirty[entry] = segment
        else:
            self.set(entry, segment, scope)

    def append(
        self,
        place: tuple[Any, ...],
        timestamp: int,
        mark: int,
        payload: bytes,
        scope: Scope,
        *,
        known: bool = True,
    ) -> Any:
        """Put a row behind the others of a place.

        Args:
            known: False where it is certain that the place has none.

        Returns:
            The entry of a segment that is new; None where the row went into one that was there.
        """
        row = _pack(timestamp, mark, len(payload)) + payload
        entry = (*place, 0)
        found = self.segment(entry, scope) if known else b""
        if found and found[0]:
            entry, found = self._last_segment(place, scope)
        if not found:
            self._put(entry, _OPEN + row, scope)
            return entry
        if len(found) < SEGMENT_BYTES and len(found) + len(row) <= self.value_bytes_max:
            self._put(entry, found + row, scope)
            return None
        self._put(entry, _CLOSED + found[1:], scope)
        entry = (*place, entry[-1] + 1)
        self._put(entry, _OPEN + row, scope)
        return entry

    def _last_segment(self, place: tuple[Any, ...], scope: Scope) -> tuple[Any, bytes]:
        """The last segment of a place whose first one is closed: its entry, and what it has."""
        number = self._last.get(place, 1)
        found = self.segment((*place, number), scope)
        if not found and number > 1:
            # what was known has been taken out, or undone
            number = 1
            found = self.segment((*place, number), scope)
        while found and found[0]:
            number += 1
            found = self.segment((*place, number), scope)
        if len(self._last) >= CACHED_SEGMENTS:
            self._last.clear()
        self._last[place] = number
        return (*place, number), found


class BufferPart(RowsPart):
    """What one side of a join has brought: entries ``(bucket, key, number)``."""

    __slots__ = ("_encode_plain", "_expiry", "_filters", "bucket_ms", "retention_ms")

    @property
    def kept_as(self) -> str:
        return f"rows of a join in stretches of {self.bucket_ms} ms"

    def __init__(
        self,
        name: str,
        *,
        bucket_ms: int,
        retention_ms: int,
        encode_plain: Callable[[Any], bytes],
        **arguments: Any,
    ) -> None:
        """
        Args:
            retention_ms: a row is found as long as its timestamp is above the side's stream time minus this.
            encode_plain: a key alone to its order-preserving bytes.
        """
        super().__init__(name, **arguments)
        self._encode_plain = encode_plain
        self.bucket_ms = bucket_ms
        self.retention_ms = retention_ms
        self._expiry = Expiry(
            bucket_ms=bucket_ms,
            retention_ms=retention_ms,
            bucket_of=itemgetter(0),
            start_of=layout_of_int,
        )
        self._filters = KeyFilters()

    def add(self, key: Any, timestamp: int, mark: int, data: bytes, scope: Scope) -> None:
        """Take a row in, and the event time that it brings."""
        plain = scope.journal is None
        stream_time = self.stream_time
        if not plain or timestamp > stream_time:
            stream_time = self.reached(timestamp, scope)
        if stream_time - self.retention_ms >= timestamp:
            self.tie(timestamp + self.retention_ms, scope)
            return  # nobody would find it
        bucket = timestamp // self.bucket_ms
        if key in self._filters[bucket]:
            if plain:
                # the hot path of `append`, in one piece
                entry = (bucket, key, 0)
                segment = self.dirty.get(entry) or self.committing.get(entry)
                if segment is None:
                    segment = self.cache.get(entry)
                    if segment is None:
                        segment = self._fetch(entry)
                if not segment or segment is DELETED:
                    self.dirty[entry] = first_segment(timestamp, mark, data)
                    return
                size = len(segment) + len(data) + _HEAD_BYTES
                if not segment[0] and size <= SEGMENT_BYTES and size <= self.value_bytes_max:
                    self.dirty[entry] = segment + _pack(timestamp, mark, len(data)) + data
                    return
            self.append((bucket, key), timestamp, mark, data, scope)
            return
        self._filters.add(bucket, key)
        segment = first_segment(timestamp, mark, data)
        if plain:
            self.dirty[bucket, key, 0] = segment
        else:
            self.set((bucket, key, 0), segment, scope)

    def between(self, key: Any, first: int, last: int, scope: Scope) -> list[Row]:
        """A key's rows with ``first <= timestamp <= last``, in order of time, then of arrival."""
        stream_time, bucket_ms = self.stream_time, self.bucket_ms
        if last > stream_time:
            last = stream_time
        if first <= stream_time - self.retention_ms:
            if scope.journal is not None:
                self.tie(first + self.retention_ms, scope)
            first = stream_time - self.retention_ms + 1
        if first < 0:
            first = 0
        found: list[Row] = []
        filters = self._filters
        for bucket in range(first // bucket_ms, last // bucket_ms + 1):
            if key in filters[bucket]:
                self._collect(bucket, key, first, last, scope, found)
        if len(found) > 1:
            found.sort(key=itemgetter(0))
        return found

    def _collect(
        self, bucket: int, key: Any, first: int, last: int, scope: Scope, found: list[Row]
    ) -> None:
        number = 0
        while segment := self.segment((bucket, key, number), scope):
            at, end = 1, len(segment)
            while at < end:
                timestamp, mark, size = _unpack(segment, at)
                at += _HEAD_BYTES + size
                if first <= timestamp <= last:
                    found.append((timestamp, mark, segment[at - size : at]))
            if not segment[0]:
                break
            number += 1

    def place(self, entry: Any) -> bytes:
        bucket, key, number = entry
        tail = layout_of_int(number) if number else FIRST_NUMBER
        return layout_of_int(bucket) + self._encode_plain(key) + tail

    def _encode_values(self, entries: list[tuple[Any, Any]]) -> dict[bytes, bytes | None]:
        # entries of a bucket have their beginnings in common
        encode_plain = self._encode_plain
        last, head = -1, b""
        slice_: dict[bytes, bytes | None] = {}
        for (bucket, key, number), segment in entries:
            if bucket != last:
                last, head = bucket, layout_of_int(bucket)
            tail = layout_of_int(number) if number else FIRST_NUMBER
            slice_[head + encode_plain(key) + tail] = None if segment is DELETED else segment
        return slice_

    def recovered(self) -> None:
        super().recovered()
        newest = next(iter(self.store.items(b"\x01", reverse=True)), None)
        if newest is not None:
            self._filters.begin(self.decode_key(newest[0])[0] + 1)

    def is_dirty(self) -> bool:
        return self._expiry.active or super().is_dirty()

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        super().cut(excluded)
        gone = self._expiry.take(self, excluded=bool(excluded))
        self.committing_system.update(dict.fromkeys(gone))
        self._filters.forget(self._expiry.end)

"""Reading the entries that a question wants out of one shard's store.

Theory of operation
-------------------
A store has the entries of a windowed table under keys of its own (`TableInfo.state_key`)::

    02 start key          tumbling, hopping, calendar: by window, then by key
    03 key end start      sliding, session: by key, then by end

What is wanted is one stretch of such keys. It is walked in order, from the place where the last page ended;
what it holds besides is left out one by one, up to a bound, and so a page may hold few entries, or none, and
yet not be the last one. The windows of one key are in no stretch in the first layout: they are looked up
start by start, and where a long row of starts has nothing, the store is asked for the next one that exists.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, cast

from millstream.tables._query import Entry
from millstream.tables._windowed_part import TIME_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.state.base import TableStore
    from millstream.tables._query import Read, TableInfo
    from millstream.windows import AlignedWindows

__all__ = ["SCANNED_MAX", "read_store"]

SCANNED_MAX = 5_000
"""Entries of a store that one question looks at, at most: a few ms."""

LOOKED_UP = 64
"""Windows of one key that are looked up at once."""

_START = struct.Struct(">Q")
_TIME_MAX = (1 << 63) - 1


def read_store(
    store: TableStore,
    info: TableInfo,
    read: Read,
    *,
    stream_time: int = -1,
    scanned_max: int = SCANNED_MAX,
) -> tuple[list[Entry], bytes | None]:
    """Up to ``read.limit`` entries in the order of their state keys, and where the next page begins.

    Args:
        stream_time: the shard's; decides which entries with a time to live are over.

    Returns:
        The entries, and the state key up to which everything was looked at; None when that is all.
    """
    entries: list[Entry] = []
    last = None
    if info.windows is not None:
        stream_time = _stream_time(store)
    for scanned, (state_key, stored) in enumerate(_candidates(store, info, read)):
        if scanned == scanned_max:
            return entries, last
        parsed = info.parse_state_key(state_key)
        if parsed is not None and stored is not None:
            key, window = parsed
            if (
                _has_key(read, key)
                and read.takes(window, info.windows)
                and not info.expired(window, stored, stream_time)
            ):
                if len(entries) == read.limit:
                    return entries, last
                entries.append(Entry(key, window, info.state_value(stored)))
        last = state_key
    return entries, None


def _stream_time(store: TableStore) -> int:
    """The stream time of the windows' operator, as it was committed with the entries."""
    data = store.get(TIME_KEY)
    return -1 if data is None else int(_START.unpack(data)[0])


def _has_key(read: Read, key: bytes) -> bool:
    if read.key is not None:
        return key == read.key
    return read.start <= key and (read.end is None or key < read.end)


def _candidates(
    store: TableStore, info: TableInfo, read: Read
) -> Iterator[tuple[bytes, bytes | None]]:
    """State keys in order, and what is there; a superset of what is wanted."""
    if read.key is not None and info.windows is not None and not info.keyed_windows:
        yield from _windows_of(store, cast("AlignedWindows", info.windows), read, read.key)
        return
    start, end = _stretch(info, read)
    if read.after is not None:
        if read.reverse:
            end = read.after if end is None else min(end, read.after)
        else:
            start = max(start, read.after + b"\x00")
    if end is None or start < end:
        yield from store.items(start, end, reverse=read.reverse)


def _stretch(info: TableInfo, read: Read) -> tuple[bytes, bytes | None]:
    """The state keys that have to be looked at: from the first one on, and before the second one."""
    key = read.key
    if info.windows is None:
        if key is not None:
            return key, key + b"\x00"
        return max(read.start, b"\x01"), read.end
    if info.keyed_windows:
        if key is not None:
            # no key's bytes begin another key's, and no time has a first byte as high as that
            return b"\x03" + key, b"\x03" + key + b"\x80"
        return b"\x03" + read.start, b"\x04" if read.end is None else b"\x03" + read.end
    first, after = _starts(cast("AlignedWindows", info.windows), read)
    if read.at is not None:
        at = b"\x02" + _START.pack(first)
        return at + read.start, b"\x02" + _START.pack(after) if read.end is None else at + read.end
    return b"\x02" + _START.pack(first), b"\x02" + _START.pack(after)


def _starts(windows: AlignedWindows, read: Read) -> tuple[int, int]:
    """The windows that are wanted begin at the first time or later, and before the second one."""
    if read.at is not None:
        if read.at < 0:
            return 0, 0
        start = windows.latest(read.at)
        return start, start + 1
    return max(read.from_ or 0, 0), _TIME_MAX if read.to is None else max(read.to, 0)


def _windows_of(
    store: TableStore, windows: AlignedWindows, read: Read, key: bytes
) -> Iterator[tuple[bytes, bytes | None]]:
    """A key's windows in order of their start."""
    first, after = _starts(windows, read)
    if read.after is not None:
        (at,) = _START.unpack_from(read.after, 1)
        first, after = (first, min(after, at)) if read.reverse else (max(first, at + 1), after)
    while first < after:
        found = store.items(
            b"\x02" + _START.pack(first), b"\x02" + _START.pack(after), reverse=read.reverse
        )
        existing = next(found, None)
        if existing is None:
            return
        (at,) = _START.unpack_from(existing[0], 1)
        for starts in _rows(windows, at, first, after, read.reverse):
            row = [b"\x02" + _START.pack(start) + key for start in starts]
            values = store.get_many(row)
            yield from zip(row, values, strict=True)
            first, after = (first, starts[-1]) if read.reverse else (starts[-1] + 1, after)
            if not any(values):
                break
        else:
            return


def _rows(
    windows: AlignedWindows, at: int, first: int, after: int, reverse: bool
) -> Iterator[list[int]]:
    """Starts from ``at`` on, or down from there, a few at a time."""
    if not reverse:
        starts = iter(windows.starts_between(at, after))
        while row := list(itertools.islice(starts, LOOKED_UP)):
            yield row
        return
    end = at + 1
    while row := _last(windows, max(first, 0), end):
        yield row
        end = row[-1]


def _last(windows: AlignedWindows, first: int, end: int) -> list[int]:
    """The last starts before ``end``, in descending order."""
    found: list[int] = []
    while end > first and len(found) < LOOKED_UP:
        start = windows.latest(end - 1)
        if start < first:
            break
        found.append(start)
        end = start
    return found

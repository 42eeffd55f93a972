"""Questions about committed tables, and their answers: plain data, and what answers them.

A question is about bytes: keys in the table's layout, values in its codec. So the same question can be asked
of a store in this process, of a worker across the network and of a dict in a test, and `View` alone knows
Python's types.

Entries of a table have one order everywhere, that of their *state keys*: keys in key order; in a table with
aligned windows by the windows' start first; in one with sliding windows or sessions by key, then by end. A
page goes on after a state key, which callers pass back as they got it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from millstream.errors import BadQueryError
from millstream.windows import Session, Sliding, Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from millstream.serialization.base import Codec
    from millstream.serialization.keys import KeyLayout
    from millstream.serialization.partitioners import Partitioner
    from millstream.windows import AnyWindows

__all__ = [
    "LIMIT_MAX",
    "Change",
    "Changes",
    "Entry",
    "Page",
    "Peer",
    "Queries",
    "Read",
    "TableInfo",
    "merge_pages",
]

LIMIT_MAX = 1_000
"""Entries that one page holds at most."""

_ALIGNED, _BY_KEY = b"\x02", b"\x03"
_START = struct.Struct(">Q")
_BOUNDS = struct.Struct(">QQ")
_TIME_BYTES = 8
"""A sliding window's value begins with the timestamp of its newest record, so do those of tables that streams
make, and an entry's with a time to live with the stream time of its last write."""


class Read(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which entries of a table are wanted. All bounds are ``from <= x < to``, all times in ms."""

    table: str
    key: bytes | None = None
    """The entries of one key: one, or one for each window."""
    start: bytes = b"\x01"
    end: bytes | None = None
    """Bounds of the keys, where ``key`` is None; no upper bound where None."""
    prefix: Any = None
    """What the bounds were made from, for those who ask in other words than bytes."""
    from_: int | None = None
    to: int | None = None
    """Bounds of the windows' starts."""
    at: int | None = None
    """A moment that the windows contain; of aligned windows only the latest-starting one."""
    after: bytes | None = None
    """The state key after which to go on."""
    reverse: bool = False
    """From the last one to the first one."""
    limit: int = 100
    at_least: tuple[tuple[str, int, int], ...] = ()
    """Records (topic, partition, offset) that the answer has to reflect."""
    stale_ms: int | None = None
    """How old the answer may be; None where it has to be current."""
    shards: tuple[int, ...] = ()
    """Numbers of the shards to read; for those who answer, never empty."""

    def check(self, info: TableInfo) -> None:
        """Refuse a question that the table cannot answer.

        Raises:
            BadQueryError: it has no windows, or the limit is wrong.
        """
        if not 1 <= self.limit <= LIMIT_MAX:
            raise BadQueryError(f"limit={self.limit}: a page holds 1 to {LIMIT_MAX} entries.")
        if info.windows is None and (self.at, self.from_, self.to) != (None, None, None):
            raise BadQueryError(f"Table {self.table!r} has no windows that one could ask for.")

    def takes(self, window: Window | None, windows: AnyWindows | None) -> bool:
        """Whether a window is among those that are wanted."""
        if window is None or windows is None:
            return True
        start, end = window
        if self.at is not None:
            if isinstance(windows, (Sliding, Session)):
                return start <= self.at <= end
            return self.at >= 0 and start == windows.latest(self.at)
        return (self.from_ is None or start >= self.from_) and (self.to is None or start < self.to)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A key in its layout, its window where the table has any, and a value in its codec."""

    key: bytes
    window: Window | None
    value: bytes


class Page(msgspec.Struct, kw_only=True):
    """An answer: some entries, in the order of their state keys."""

    entries: list[Entry]
    position: dict[str, int]
    """Committed offsets of the inputs that the answer reflects, by ``topic/partition``."""
    next: bytes | None = None
    """All entries up to this state key are in; None where there are no more."""
    stale_ms: int | None = None
    """How old the answer may be, at most; None where it is current."""


class Change(msgspec.Struct, frozen=True, array_like=True):
    """An entry that was committed; ``value`` is None where it was deleted."""

    key: bytes
    window: Window | None
    value: bytes | None


class Changes(msgspec.Struct, kw_only=True):
    """What was committed since the last ones, the last value of each entry.

    ``missed`` tells that others were too many to be kept: read the table again.
    """

    changes: list[Change]
    missed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A worker of the group: where it answers, and the shards (count, number) that it owns, or has copies of."""

    member: str
    url: str
    shards: frozenset[tuple[int, int]]
    copies: frozenset[tuple[int, int]] = frozenset()
    here: bool = False
    """Whether it is this process."""


class Queries(Protocol):
    """What answers questions about tables, with committed data only."""

    @property
    def tables(self) -> Mapping[str, TableInfo]:
        """Every table that can be asked for, by name."""
        ...

    async def read(self, read: Read) -> Page:
        """The entries that are wanted, ``limit`` at most.

        Raises:
            UnknownTableError, BadQueryError: the question is wrong.
            UnavailableError: nobody can answer now.
        """
        ...

    def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        """Changes as they are committed, of all keys or of one.

        The first item is empty, and comes as soon as nothing more can escape. A slow reader gets the last
        value of each entry.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """A table as those who ask need it."""

    name: str
    layout: KeyLayout[Any]
    codec: Codec[Any]
    windows: AnyWindows | None = None
    partitions: int = 1
    place: Callable[[Any], bytes]
    """A key to the bytes that decide its shard."""
    partitioner: Partitioner
    loads: Callable[[bytes], Any] | None = None
    """Reads stored values where they may have an older form, or programs see other ones than are kept."""
    ttl_ms: int | None = None
    """Entries that were not written for so long, by stream time, are gone."""
    stamped: bool = False
    """Each value begins with the newest timestamp that contributed to it."""
    everywhere: bool = False
    """Each worker holds all of it."""
    source: str | None = None
    """The topic that it is read from."""
    help: str = ""

    def shard_of(self, key: bytes) -> int:
        """The number of the shard that owns a key, given in its layout."""
        return self.partitioner(self.place(self.layout.decode(key)), self.partitions)

    def load(self, value: bytes) -> Any:
        """A value from its bytes."""
        return (self.loads or self.codec.loads)(value)

    @property
    def keyed_windows(self) -> bool:
        """Whether windows have bounds of their own for each key."""
        return isinstance(self.windows, (Sliding, Session))

    def state_key(self, key: bytes, window: Window | None) -> bytes:
        """Where the store has an entry."""
        if window is None:
            return key
        if self.keyed_windows:
            return b"".join((_BY_KEY, key, _BOUNDS.pack(window.end, window.start)))
        return b"".join((_ALIGNED, _START.pack(window.start), key))

    def parse_state_key(self, state_key: bytes) -> tuple[bytes, Window | None] | None:
        """Key and window of an entry of the store; None for what the table keeps for itself."""
        if self.windows is None:
            return None if state_key[:1] == b"\x00" else (state_key, None)
        first = state_key[:1]
        if first == _ALIGNED and not isinstance(self.windows, (Sliding, Session)):
            (start,) = _START.unpack_from(state_key, 1)
            return state_key[9:], self.windows.window(start)
        if first == _BY_KEY and self.keyed_windows:
            end, start = _BOUNDS.unpack_from(state_key, len(state_key) - 16)
            return state_key[1:-16], Window(start, end)
        return None

    def expired(self, window: Window | None, stored: bytes, stream_time: int) -> bool:
        """Whether the time of an entry is over, although the store may still have it.

        Args:
            stored: what the store has for the entry.
            stream_time: that of the windows' operator, or of the shard where entries have a time to live.
        """
        windows = self.windows
        if self.ttl_ms is not None:
            return int.from_bytes(stored[:_TIME_BYTES], "big") + self.ttl_ms <= stream_time
        if window is None or windows is None:
            return False
        at = window.end if isinstance(windows, Session) else window.start
        return windows.expires_at(at) <= stream_time

    def state_value(self, stored: bytes) -> bytes:
        """The bytes of the value itself, in what the store has for an entry."""
        if self.ttl_ms is not None or self.stamped or isinstance(self.windows, Sliding):
            return stored[_TIME_BYTES:]
        return stored


def merge_pages(
    info: TableInfo, pages: Iterable[Page], *, limit: int, reverse: bool = False
) -> Page:
    """One page out of those of several shards, which have no entry in common.

    What lies beyond the place where one of the pages ends is left for the next one.
    """
    pages = list(pages)
    found = [
        (info.state_key(entry.key, entry.window), entry) for page in pages for entry in page.entries
    ]
    found.sort(key=lambda pair: pair[0], reverse=reverse)
    ends = [page.next for page in pages if page.next is not None]
    bound = (max(ends) if reverse else min(ends)) if ends else None
    if bound is not None:
        found = [pair for pair in found if (pair[0] >= bound if reverse else pair[0] <= bound)]
    more = found[limit:]
    found = found[:limit]
    ages = [page.stale_ms for page in pages if page.stale_ms is not None]
    return Page(
        entries=[entry for _, entry in found],
        position=dict(
            sorted({tp: at for page in pages for tp, at in page.position.items()}.items())
        ),
        next=found[-1][0] if more else bound,
        stale_ms=max(ages) if ages else None,
    )

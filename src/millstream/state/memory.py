"""State in memory: the backend of tests, and of apps that need nothing to survive their process."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import msgspec

from millstream.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["MemoryBackend", "MemoryStore", "MemoryTable"]

_CHECKPOINT_FILE = "tables.msgpack"

_checkpoint = msgspec.msgpack.Decoder(dict[str, dict[bytes, bytes]])


class MemoryBackend:
    """Stores in dicts. A store that is closed keeps its bytes in this object until it is destroyed."""

    def __init__(self) -> None:
        self._stores: dict[str, MemoryStore] = {}

    @property
    def durable(self) -> bool:
        return False

    def open(self, shard: str) -> MemoryStore:
        """Open a shard's store with the bytes that it held when it was closed, or an empty one.

        Raises:
            StateError: the store is open already.
        """
        before = self._stores.get(shard)
        if before is not None and not before.closed:
            raise StateError(f"the state of shard {shard} is open already in this process")
        store = MemoryStore(shard, {} if before is None else before.release())
        self._stores[shard] = store
        return store

    def destroy(self, shard: str) -> None:
        """Forget a shard's bytes.

        Raises:
            StateError: the store is open.
        """
        store = self._stores.get(shard)
        if store is not None and not store.closed:
            raise StateError(f"the state of shard {shard} is open: close it before destroying it")
        self._stores.pop(shard, None)

    def shards(self) -> list[str]:
        return sorted(self._stores)

    def restore(self, shard: str, path: Path) -> None:
        """Make a shard's store from a checkpoint that a `MemoryStore` wrote.

        Raises:
            StateError: the shard has a store, or there is no checkpoint in ``path``.
        """
        if shard in self._stores:
            raise StateError(f"shard {shard} has state already: destroy it before restoring it")
        try:
            tables = _checkpoint.decode((path / _CHECKPOINT_FILE).read_bytes())
        except (OSError, msgspec.DecodeError) as problem:
            raise StateError(
                f"{path} is not a checkpoint of state in memory: {problem}"
            ) from problem
        store = MemoryStore(shard, {})
        store.write(tables)
        for name in tables:
            store.table(name)
        store.close()
        self._stores[shard] = store


class MemoryStore:
    """The tables of one shard, in dicts."""

    def __init__(self, shard: str, tables: dict[str, _Rows]) -> None:
        self.shard = shard
        self.closed = False
        self._rows = tables
        self._tables: dict[str, MemoryTable] = {}

    def release(self) -> dict[str, _Rows]:
        """The bytes of a closed store, for the next one that opens the shard."""
        return self._rows

    def table(self, name: str) -> MemoryTable:
        self._check_open()
        table = self._tables.get(name)
        if table is None:
            rows = self._rows.setdefault(name, _Rows())
            table = self._tables[name] = MemoryTable(name, self.shard, rows)
        return table

    def tables(self) -> list[str]:
        self._check_open()
        return sorted(self._rows)

    def write(
        self,
        changes: Mapping[str, Mapping[bytes, bytes | None]],
        *,
        delete_ranges: Mapping[str, tuple[bytes, bytes]] = {},
    ) -> None:
        self._check_open()
        for name, (start, end) in delete_ranges.items():
            self._rows.setdefault(name, _Rows()).delete_range(start, end)
        for name, values in changes.items():
            self._rows.setdefault(name, _Rows()).update(values)

    def drop(self, name: str) -> None:
        self._check_open()
        self._rows.pop(name, None)
        table = self._tables.pop(name, None)
        if table is not None:
            table.cut_off("was dropped")

    def checkpoint(self, path: Path) -> None:
        """Write all tables into one file in ``path``; `MemoryBackend.restore` reads it."""
        self._check_open()
        tables = {name: rows.values for name, rows in self._rows.items()}
        try:
            path.mkdir(parents=True)
            (path / _CHECKPOINT_FILE).write_bytes(msgspec.msgpack.encode(tables))
        except OSError as problem:
            raise StateError(f"no checkpoint of shard {self.shard}: {problem}") from problem

    def disk_bytes(self) -> int:
        """Bytes of all keys and values, without what Python adds to them."""
        self._check_open()
        return sum(
            sum(map(len, rows.values)) + sum(map(len, rows.values.values()))
            for rows in self._rows.values()
        )

    def flush(self) -> None:
        self._check_open()

    def close(self) -> None:
        self.closed = True
        for table in self._tables.values():
            table.cut_off("is closed")

    def _check_open(self) -> None:
        if self.closed:
            raise StateError(f"the state of shard {self.shard} is closed")


class MemoryTable:
    """One table of a `MemoryStore`."""

    def __init__(self, name: str, shard: str, rows: _Rows) -> None:
        self.name = name
        self.shard = shard
        self._rows: _Rows | None = rows
        self._gone = ""

    def cut_off(self, reason: str) -> None:
        """Refuse every later use; running iterations fail at their next row."""
        self._rows = None
        self._gone = reason

    def get(self, key: bytes) -> bytes | None:
        return self._open().values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self._open().values.get, keys))

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self._open()
        return self._items(start, end, reverse)

    def keys(self, start: bytes = b"", end: bytes | None = None) -> Iterator[bytes]:
        return (key for key, _ in self.items(start, end))

    def count(self) -> int:
        return len(self._open().values)

    def _items(
        self, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        ordered = self._open().ordered()
        first = bisect_left(ordered, start)
        after = len(ordered) if end is None else bisect_left(ordered, end)
        for at in range(after - 1, first - 1, -1) if reverse else range(first, after):
            key = ordered[at]
            value = self._open().values.get(key)
            if value is not None:
                yield key, value

    def _open(self) -> _Rows:
        if self._rows is None:
            raise StateError(f"the state of shard {self.shard}: table {self.name!r} {self._gone}")
        return self._rows


class _Rows:
    """A dict with its keys in order, put in order only when somebody asks.

    ``_ordered`` holds every key of ``values`` but those in ``_new``, and also keys that were deleted since:
    these are passed over by the reader, and are not added a second time when they come back. A list that
    was given out is never changed, so an iteration goes on undisturbed by later writes.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._ordered: list[bytes] = []
        self._new: list[bytes] = []
        self._deleted: set[bytes] = set()

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Write values, and delete the keys whose value is None."""
        for key, value in changes.items():
            if value is None:
                if self.values.pop(key, None) is not None:
                    self._deleted.add(key)
            else:
                if key not in self.values:
                    if key in self._deleted:
                        self._deleted.remove(key)
                    else:
                        self._new.append(key)
                self.values[key] = value

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Delete the keys with ``start <= key < end``."""
        ordered = self.ordered()
        first, after = bisect_left(ordered, start), bisect_left(ordered, end)
        for at in range(first, after):
            self.values.pop(ordered[at], None)
            self._deleted.discard(ordered[at])
        if first < after:
            self._ordered = ordered[:first] + ordered[after:]

    def ordered(self) -> list[bytes]:
        """Every key in order, and perhaps keys that ``values`` no longer holds."""
        if len(self._deleted) > len(self.values) + 1_000:
            self._ordered = sorted(self.values)
            self._new, self._deleted = [], set()
        elif self._new:
            # Two sorted runs: timsort merges them in linear time.
            self._ordered = sorted(self._ordered + sorted(self._new))
            self._new = []
        return self._ordered

"""The contract of local state: bytes in, bytes out, one store for each shard.

A store is a cache of the shard's changelogs: it may lose its newest writes when the process dies, and what it
lost is replayed. Each table is then as it was after some `ShardStore.write`, not all tables after the same one:
so each keeps its position in its changelog among its own entries. Every implementation passes
``tests/state/conformance.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ShardStore", "StateBackend", "TableStore"]


class TableStore(Protocol):
    """The bytes of one table in one shard, in the order of their keys (unsigned bytes)."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < end``, in ascending order, or descending when ``reverse``.

        Reflects the store as it was when the iteration began, or later writes too: callers that need
        one moment do not write meanwhile. ``end`` None means no upper bound.
        """
        ...

    def keys(self, start: bytes = b"", end: bytes | None = None) -> Iterator[bytes]:
        """Keys alone, ascending; cheaper than `items`."""
        ...

    def count(self) -> int:
        """About how many keys there are; exact in memory."""
        ...


class ShardStore(Protocol):
    """All tables of one shard, written together."""

    def table(self, name: str) -> TableStore:
        """The table's bytes; an empty one is made where there was none. The same object each time."""
        ...

    def tables(self) -> list[str]:
        """Names of the tables that exist, sorted."""
        ...

    def write(
        self,
        changes: Mapping[str, Mapping[bytes, bytes | None]],
        *,
        delete_ranges: Mapping[str, tuple[bytes, bytes]] = {},
    ) -> None:
        """Write values, or delete where the value is None, in all tables at once.

        Ranges ``[start, end)`` are deleted before the changes are written. Readers see all of it or nothing.
        Blocks the caller for a few us per key: callers pass at most a few thousand keys.
        """
        ...

    def drop(self, name: str) -> None:
        """Remove a table and all of its bytes; unknown names are ignored."""
        ...

    def checkpoint(self, path: Path) -> None:
        """Write a copy that can be opened later into the new directory ``path``."""
        ...

    def disk_bytes(self) -> int:
        """Size on disk, or in memory, in bytes."""
        ...

    def flush(self) -> None:
        """Bring what is in memory to disk."""
        ...

    def close(self) -> None:
        """Release files and locks. Idempotent; any later use raises StateError."""
        ...


class StateBackend(Protocol):
    """Opens the stores of a worker's shards, all within one memory budget."""

    @property
    def durable(self) -> bool:
        """Whether a store survives its process."""
        ...

    def open(self, shard: str) -> ShardStore:
        """Open a shard's store, or make a new one.

        Raises:
            StateError: the files are damaged, or another process holds them.
        """
        ...

    def destroy(self, shard: str) -> None:
        """Remove a shard's store, which must not be open."""
        ...

    def shards(self) -> list[str]:
        """The shards that have a store on disk, sorted."""
        ...

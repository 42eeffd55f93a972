"""Tables that forget: entries that were not written for so long, by their shard's stream time.

Each value is stored behind eight bytes: the stream time (ms, big endian) at which it was last written. A read
hides what has expired. What nobody reads is found by a sweep over the store, which goes on by a slice with each
cut and begins anew after a tenth of the time to live; what it finds becomes a tombstone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from millstream.context import current
from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._table import Table, require_scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.context import PreImage, Scope

__all__ = ["TIME_BYTES", "TtlPart", "TtlTable"]

K = TypeVar("K")
V = TypeVar("V")

TIME_BYTES = 8
SWEEP_KEYS = 1_000
"""Entries that a sweep looks at with one cut."""
SWEEPS_PER_TTL = 10


class TtlPart(TablePart):
    """Entries with the stream time of their last write. Values are treated as if they could change in place."""

    __slots__ = ("_assigned", "_now", "_sweep_at", "_swept_until", "_times", "_ttl_ms")

    def __init__(self, name: str, *, ttl_ms: int, **arguments: Any) -> None:
        super().__init__(name, **{**arguments, "mutable": True})
        self._ttl_ms = ttl_ms
        self._now = -1
        self._times: dict[Any, int] = {}
        self._assigned: set[Any] = set()
        self._sweep_at: bytes | None = None
        self._swept_until = -1

    def get(self, key: Any, scope: Scope) -> Any:
        self._see(scope)
        value = super().get(key, scope)
        if value is not MISSING and self._is_over(self._times.get(key, self._now)):
            self.set(key, DELETED, scope)
            return MISSING
        return value

    def set(self, key: Any, value: Any, scope: Scope) -> None:
        self._see(scope)
        super().set(key, value, scope)
        self._times[key] = self._now
        self._assigned.add(key)

    def contains(self, key: Any, scope: Scope) -> bool:
        return self.get(key, scope) is not MISSING

    def load(self, key: Any) -> Any:
        data = self._bytes_of(key)
        if data is None:
            return MISSING
        written = int.from_bytes(data[:TIME_BYTES], "big")
        if self._is_over(written):
            self.dirty[key] = DELETED
            return DELETED
        self._times[key] = written
        return self._hand_out(key, data)

    def decode(self, key: Any, data: bytes) -> Any:
        return super().decode(key, data[TIME_BYTES:])

    def _encode(self, key: Any, value: Any) -> bytes:
        body = super()._encode(key, value)
        for base in (self.base.get(key), self.committing_base.get(key)):
            if base is not None and key not in self._assigned and base[TIME_BYTES:] == body:
                return base
        written = self._now if key not in self._assigned else self._times.get(key, self._now)
        self._times[key] = written
        return max(written, 0).to_bytes(TIME_BYTES, "big") + body

    def _see(self, scope: Scope) -> None:
        self._now = max(self._now, scope.timestamp, getattr(scope.subtopology, "stream_time", -1))

    def _is_over(self, written: int) -> bool:
        scope = current.get(None)
        if scope is not None:
            self._see(scope)
        return written + self._ttl_ms <= self._now

    def advance(self, by: int) -> None:
        self._now = max(self._now, 0) + by

    def is_dirty(self) -> bool:
        return super().is_dirty() or self._sweep_is_due()

    def _sweep_is_due(self) -> bool:
        return self._sweep_at is not None or (
            self._now >= self._ttl_ms
            and self._now >= self._swept_until + max(1, self._ttl_ms // SWEEPS_PER_TTL)
        )

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        if self._sweep_is_due():
            self._sweep()
        super().cut(excluded)
        self._assigned &= set(self.dirty)

    def settle(self) -> None:
        super().settle()
        if len(self._times) > self._cache_size:
            self._times = {key: self._times[key] for key in self.dirty if key in self._times}

    def _sweep(self) -> None:
        if self._sweep_at is None:
            self._sweep_at = b"\x01"
            self._swept_until = self._now
        for seen, (data, value) in enumerate(self.store.items(self._sweep_at, None)):
            if seen == SWEEP_KEYS:
                self._sweep_at = data
                return
            if int.from_bytes(value[:TIME_BYTES], "big") + self._ttl_ms <= self._now:
                key = self.decode_key(data)
                if key not in self.dirty and key not in self.committing:
                    self.dirty[key] = DELETED
        self._sweep_at = None


class TtlTable(Table[K, V]):
    """A table whose entries expire; see `millstream.App.table`."""

    def __getitem__(self, key: K) -> V:
        scope = require_scope(f"table {self.name!r}")
        part = self._part(scope)
        value = part.get(key, scope)
        if value is MISSING:
            return self._missing(key, part)
        return cast("V", value)

    def __setitem__(self, key: K, value: V) -> None:
        scope = require_scope(f"table {self.name!r}")
        self._part(scope).set(key, value, scope)

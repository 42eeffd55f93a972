"""Knowing which keys a stretch of time has, without asking the store.

Most lookups of a join find nothing: a key is new in its stretch, or has no partner yet. A bit for each key's hash
says so in memory; a bit that is set by another key costs a lookup, nothing more. What was stored before this process has
no bits: there the store is asked.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["KeyFilters"]

BITS_PER_KEY: Final = 16
BITS_MIN: Final = 1 << 16


class _KeyFilter:
    """The keys of one bucket: more bits are put beside the first ones when these are full."""

    __slots__ = ("count", "layers", "room")

    def __init__(self, bits: int) -> None:
        self.layers: list[tuple[bytearray, int]] = []
        self.count = 0
        self.room = 0
        self._grow(bits)

    def _grow(self, bits: int) -> None:
        self.layers.insert(0, (bytearray(bits >> 3), bits - 1))
        self.room = self.count + bits // BITS_PER_KEY

    def add(self, key: Any) -> None:
        found = hash(key)
        bits, mask = self.layers[0]
        place = found & mask
        bit = 1 << (place & 7)
        if not bits[place >> 3] & bit:
            bits[place >> 3] |= bit
            self.count += 1
            if self.count >= self.room:
                self._grow(4 * (mask + 1))


class KeyFilters:
    """The keys of each bucket of a part, as far as this process has put them there."""

    __slots__ = ("_bits", "_filters", "_first")

    def __init__(self) -> None:
        self._filters: dict[int, _KeyFilter] = {}
        self._first = 0
        """Buckets from here on were empty when the part was made."""
        self._bits = BITS_MIN

    def begin(self, first: int) -> None:
        """Buckets from ``first`` on are empty in the store."""
        self._first = first

    def add(self, bucket: int, key: Any) -> None:
        """The key is in the bucket."""
        found = self._filters.get(bucket)
        if found is None:
            if bucket < self._first:
                return
            found = self._filters[bucket] = _KeyFilter(self._bits)
        found.add(key)

    def may_have(self, bucket: int, key: Any) -> bool:
        """Whether the bucket has the key, perhaps; never false where it has."""
        found = self._filters.get(bucket)
        if found is None:
            return bucket < self._first
        number = hash(key)
        for bits, mask in found.layers:
            place = number & mask
            if bits[place >> 3] & (1 << (place & 7)):
                return True
        return False

    def forget(self, end: int) -> None:
        """Buckets before ``end`` are over."""
        for bucket in [bucket for bucket in self._filters if bucket < end]:
            gone = self._filters.pop(bucket)
            # the next ones begin with as many bits as this one has come to need
            self._bits = max(BITS_MIN, gone.layers[0][1] + 1)

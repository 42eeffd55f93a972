"""Knowing which keys a stretch of time has, without asking the store.

Most lookups of a join find nothing: a key is new in its stretch, or has no partner yet. A set of the stretch's keys
says so in memory. Where these become many, a bit for each key's hash stands for them; a bit that is set by another key
costs a lookup, nothing more. Of the latest few stretches alone this is known, however far back rows are kept: what comes
into an older one is late, and there the store is asked, as it is about what was stored before this process.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["KeyFilters"]

KEYS_MAX: Final = 16_384
"""Keys of a stretch that are kept as they are."""
BITS_PER_KEY: Final = 16
BITS_MIN: Final = 1 << 19
BITS_MAX: Final = 1 << 25
"""Of the largest layer of a stretch; with more keys than these are for, the store is asked more often."""
BUCKETS_MAX: Final = 8
"""Stretches whose keys are known."""


class _KeyFilter:
    """The keys of one bucket: more bits are put beside the first ones when these are full."""

    __slots__ = ("count", "full", "layers", "room")

    def __init__(self, bits: int) -> None:
        self.layers: list[tuple[bytearray, int]] = []
        self.count = 0
        self.room = 0
        self.full = False
        """Whether no more bits come."""
        self._grow(bits)

    def _grow(self, bits: int) -> None:
        self.layers.insert(0, (bytearray(bits >> 3), bits - 1))
        self.room = self.count + bits // BITS_PER_KEY
        self.full = 4 * bits > BITS_MAX

    def add(self, key: Any) -> None:
        found = hash(key)
        bits, mask = self.layers[0]
        place = found & mask
        bit = 1 << (place & 7)
        if not bits[place >> 3] & bit:
            bits[place >> 3] |= bit
            self.count += 1
            if self.count >= self.room and not self.full:
                self._grow(4 * (mask + 1))

    def __contains__(self, key: Any) -> bool:
        number = hash(key)
        for bits, mask in self.layers:
            place = number & mask
            if bits[place >> 3] & (1 << (place & 7)):
                return True
        return False


class _Everything:
    """Stands for keys that nobody has counted."""

    def __contains__(self, key: Any) -> bool:
        return True

    def add(self, key: Any) -> None:
        """It is there."""


class KeyFilters(dict[int, "set[Any] | _KeyFilter | _Everything"]):
    """The keys of each bucket of a part, as far as this process has put them there.

    ``key in filters[bucket]`` says whether the bucket has the key, perhaps; it is never false where it has.
    """

    __slots__ = ("_bits", "_first", "_large", "_unknown")

    def __init__(self) -> None:
        super().__init__()
        self._first = 0
        """Of buckets before this one nothing is known."""
        self._bits = BITS_MIN
        self._large = False
        """Whether buckets have come to have more than `KEYS_MAX` keys."""
        self._unknown = _Everything()

    def __missing__(self, bucket: int) -> set[Any] | _KeyFilter | _Everything:
        if bucket < self._first:
            return self._unknown
        return _NONE

    def begin(self, first: int) -> None:
        """Buckets from ``first`` on are empty in the store."""
        self._first = first

    def add(self, bucket: int, key: Any) -> None:
        """The key is in the bucket."""
        found = self.get(bucket)
        if found is None:
            if bucket < self._first:
                return
            found = self[bucket] = _KeyFilter(self._bits) if self._large else set()
            if len(self) > BUCKETS_MAX:
                oldest = min(self)
                self._drop(oldest)
                self._first = oldest + 1
        found.add(key)
        if type(found) is set and len(found) > KEYS_MAX:
            self._large = True
            bits = self[bucket] = _KeyFilter(self._bits)
            for one in found:
                bits.add(one)

    def forget(self, end: int) -> None:
        """Buckets before ``end`` are over."""
        for bucket in [bucket for bucket in self if bucket < end]:
            self._drop(bucket)

    def _drop(self, bucket: int) -> None:
        gone = self.pop(bucket)
        if type(gone) is _KeyFilter:
            # the next ones begin with as many bits as this one has come to need
            self._bits = max(BITS_MIN, gone.layers[0][1] + 1)
            self._large = gone.count > KEYS_MAX // 2


_NONE: Final[set[Any]] = set()

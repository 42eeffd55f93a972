"""Dropping the entries of a part whose event time is over, a bucket of time after the other.

Some entries of a part lie in buckets of event time. A bucket has expired when stream time has passed its last moment by
the retention. Whether an entry is still *read* is for the part to decide, to the millisecond; here its bytes are
dropped. Each cut takes tombstones for a bounded number of entries, in proportion to what the cut itself
writes, so that expiry keeps up: entries of this epoch are deleted where they stand, those in the store are found by
a keys-only scan, and go as bytes. The bound follows from the committed stream time, so it needs no key of its own, and
the first scan after a recovery begins at the oldest entry.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from millstream.tables._part import DELETED

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.tables._timed_part import TimedPart

__all__ = ["Expiry"]

EXPIRE_KEYS_MIN: Final = 1_000
"""Entries of the store that expire with one cut, and twice as many as the cut has of its own."""


class Expiry:
    """The expiry of one part. Buckets are numbered: ``[number * bucket_ms, (number + 1) * bucket_ms)``."""

    __slots__ = (
        "_bucket_of",
        "_recheck",
        "_scan_from",
        "_start_of",
        "active",
        "bucket_ms",
        "end",
        "retention_ms",
    )

    def __init__(
        self,
        *,
        bucket_ms: int,
        retention_ms: int,
        bucket_of: Callable[[Any], int | None],
        start_of: Callable[[int], bytes],
    ) -> None:
        """
        Args:
            retention_ms: what is of a moment up to stream time minus this is not needed any more.
            bucket_of: number of an entry's bucket; None for one that does not expire.
            start_of: where a bucket begins in the store.
        """
        self.bucket_ms = bucket_ms
        self.retention_ms = retention_ms
        self._bucket_of = bucket_of
        self._start_of = start_of
        self.end = 0
        """The first bucket that has not expired."""
        self._recheck = False
        self._scan_from = start_of(0)
        self.active = False
        """Whether the next cut has something to drop, whatever else it has."""

    def take(self, part: TimedPart, *, excluded: bool) -> list[bytes]:
        """Called with the end of a cut: delete what has expired of it.

        Args:
            excluded: whether the cut left something out, which may have expired when it comes.

        Returns:
            Store keys that go as well, in order.
        """
        end = (part.lasting_time - self.retention_ms + 1) // self.bucket_ms
        moved = end > self.end
        if moved:
            self.end = end
            self.active = True
        if moved or self._recheck:
            bucket_of, first = self._bucket_of, self.end
            for entry in part.committing:
                number = bucket_of(entry)
                if number is not None and number < first:
                    part.committing[entry] = DELETED
        self._recheck = excluded
        if not self.active:
            return []
        last = self._start_of(self.end)
        count = EXPIRE_KEYS_MIN + 2 * len(part.committing)
        keys = list(islice(part.store.keys(self._scan_from, last), count))
        self.active = len(keys) == count
        self._scan_from = keys[-1] + b"\x00" if self.active else last
        return keys

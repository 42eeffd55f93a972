"""Sliding windows: for every record of a key, what lies within a width before it.

Theory of operation. A window ``[s, s + width]``, both ends inclusive, is worth keeping only where its
contents differ from those of its neighbours: where a record enters at its end, or has just left at its
start. So a record at ``t`` has two windows of its own:

- its left window ``[t - width, t]``, which it is the last to enter;
- its right window ``[t + 1, t + 1 + width]``, which it has just left; kept only once it holds something,
  which is when a later record comes (that record makes it, as "the right window of the record before"),
  or at once when the record itself is out of order and later ones are already there.

Every window that exists and contains ``t`` takes the record. A window that has to be made starts from the
value of a neighbour that holds the same records, or from the default:

- the right window of the record before holds this record alone, or it would exist already;
- the left window holds what the highest window that ends before ``t`` holds, if that window's newest
  record is in it: nothing lies between that record and ``t``;
- the record's own right window holds what the highest window that contains ``t`` held before this
  record, if that has a record after ``t``: all that it holds are after ``t``, or a window that begins
  later would exist.

There are no windows that begin before 0: all records with ``t < width`` share ``[0, width]`` as their left
window, which therefore says nothing about how its records are ordered, and is treated apart.

The algorithm is that of Kafka Streams (KIP-450; `KStreamSlidingWindowAggregate`), with the order of its
results. Two of its habits stay visible. Where the record before is exactly ``width + 1`` earlier, its right
window and this record's left window are one, and that result comes twice, with the same value. And a record
that is late for its own left window, while no other window takes it, leaves no trace, so that windows which
are made later lack it although they would still have been open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from millstream.clock import Duration, duration_ms, format_duration
from millstream.windows._bounds import (
    checked_length,
    checked_retention,
    declared_retention,
    described,
)
from millstream.windows.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Held", "Sliding", "SlidingChange", "sliding"]


class Held(NamedTuple):
    """A window that is kept for a key; a plain tuple in this order serves as well.

    Attributes:
        start: where it begins.
        newest: the highest timestamp of its records, which is its result's timestamp.
    """

    start: int
    newest: int


class SlidingChange(NamedTuple):
    """One window that a record updates or makes.

    Attributes:
        window: the window.
        base: start of the kept window whose value this one starts from; None for the default. It is
            ``window.start`` when the window exists already.
        adds: whether the record is added to that value; otherwise the value is copied as it is.
        timestamp: the result's timestamp: the window's newest record.
    """

    window: Window
    base: int | None
    adds: bool
    timestamp: int


@dataclass(frozen=True, slots=True)
class Sliding:
    """Windows ``[start, start + width]``, both ends inclusive, where the records of a key need them.

    Attributes:
        width_ms: the longest time between two records of one window.
        grace_ms: how long after its end a window takes late records, in stream time.
        retention_ms: how long after its start a window is kept; 0 stands for 2 * width + grace, which
            is what the algorithm looks back on.

    Raises:
        ConfigurationError: a negative width or grace, a retention below 2 * width + grace.
    """

    width_ms: int
    grace_ms: int = 0
    retention_ms: int = 0

    def __post_init__(self) -> None:
        checked_length("sliding", "width", self.width_ms, at_least_ms=0)
        retention_ms = checked_retention(
            "sliding",
            self.retention_ms,
            grace_ms=self.grace_ms,
            shortest_ms=2 * self.width_ms + self.grace_ms,
            because="2 * width + grace",
        )
        object.__setattr__(self, "retention_ms", retention_ms)

    def reach(self, timestamp: int) -> tuple[int, int]:
        """``(lowest_start, highest_start)``, both inclusive, of the windows that `touch` looks at."""
        return max(0, timestamp - 2 * self.width_ms), timestamp + 1

    def touch(
        self, existing: Sequence[tuple[int, int]], timestamp: int, stream_time: int
    ) -> list[SlidingChange]:
        """What a record does, in the order in which the results come out; empty when it is late.

        Read the values of all bases before writing any: a base may itself be updated by an earlier
        change of the list. Where ``base`` is another window's start, and values are changed in place,
        work on a copy.

        Args:
            existing: ``(start, newest)`` of the key's windows in `reach`, ascending; see `Held`. Others
                are passed over.
            timestamp: the record's.
            stream_time: the operator's, this record included.
        """
        if timestamp + self.width_ms < stream_time - self.grace_ms:
            return []
        if timestamp < self.width_ms:
            return self._touch_early(existing, timestamp, stream_time - self.grace_ms)
        return self._touch_later(existing, timestamp, stream_time - self.grace_ms)

    def _touch_later(
        self, existing: Sequence[tuple[int, int]], timestamp: int, close: int
    ) -> list[SlidingChange]:
        width = self.width_ms
        lowest, left_start, right_start = timestamp - 2 * width, timestamp - width, timestamp + 1
        changes: list[SlidingChange] = []
        seen: list[int] = []
        before: int | None = None  # the record before this one
        left_base: int | None = None
        right_base: tuple[int, int] | None = None
        left_exists = False

        for start, newest in reversed(existing):
            if start > right_start:
                continue
            if start < lowest:
                break
            seen.append(start)
            if start == right_start:
                continue
            if start < left_start:
                left_base, before = start, newest
                break
            if start + width >= close:
                changes.append(self._updated(start, newest, timestamp))
            if start > left_start:
                right_base = right_base or (start, newest)
                continue
            if newest >= timestamp:
                return changes  # a record of this moment was here and has made what was missing
            left_exists, before = True, newest

        if (
            before is not None
            and before + 1 not in seen
            and max(timestamp, close) <= before + 1 + width
        ):
            changes.append(self._made(before + 1, None, timestamp))
        if not left_exists and timestamp >= close:
            shares = before is not None and before >= left_start
            changes.append(self._made(left_start, left_base if shares else None, timestamp))
        if right_start not in seen and right_base is not None and right_base[1] > timestamp:
            changes.append(self._copied(right_start, right_base))
        return changes

    def _touch_early(
        self, existing: Sequence[tuple[int, int]], timestamp: int, close: int
    ) -> list[SlidingChange]:
        width = self.width_ms
        right_start = timestamp + 1
        changes: list[SlidingChange] = []
        seen: list[int] = []
        before: int | None = None
        shared: int | None = None  # the newest record of [0, width]
        right_base: tuple[int, int] | None = None

        for start, newest in existing:
            if start > right_start:
                break
            seen.append(start)
            if start == 0:
                shared = newest
                if newest < timestamp:
                    before = newest
            elif start < right_start:
                right_base = (start, newest)
                if start + width >= close:
                    changes.append(self._updated(start, newest, timestamp))

        if right_base is None and shared is not None:
            right_base = (0, shared)
        if right_start not in seen and right_base is not None and right_base[1] > timestamp:
            changes.append(self._copied(right_start, right_base))
        if before is not None and before + 1 not in seen and before + 1 + width >= close:
            changes.append(self._made(before + 1, None, timestamp))
        if width >= close:
            if shared is None:
                changes.append(self._made(0, None, timestamp))
            else:
                changes.append(self._updated(0, shared, timestamp))
        return changes

    def _updated(self, start: int, newest: int, timestamp: int) -> SlidingChange:
        return SlidingChange(self.window(start), start, True, max(newest, timestamp))

    def _made(self, start: int, base: int | None, timestamp: int) -> SlidingChange:
        return SlidingChange(self.window(start), base, True, timestamp)

    def _copied(self, start: int, base: tuple[int, int]) -> SlidingChange:
        return SlidingChange(self.window(start), base[0], False, base[1])

    def window(self, start: int) -> Window:
        """The window that begins at ``start``."""
        return Window(start, start + self.width_ms)

    def final_at(self, window: Window) -> int:
        """The stream time from which on the window takes no record."""
        return window.end + self.grace_ms + 1

    def accepts(self, window: Window, stream_time: int) -> bool:
        """Whether the window takes records at that stream time."""
        return window.end >= stream_time - self.grace_ms

    def expires_at(self, start: int) -> int:
        """The stream time from which on the window need not be kept.

        2 ms after the retention, because ends are inclusive and a right window begins 1 ms after its
        record: until then the window's newest record may lack a right window that is still open.
        """
        return start + self.retention_ms + 2

    def __str__(self) -> str:
        return described(
            "sliding",
            format_duration(self.width_ms),
            grace_ms=self.grace_ms,
            retention_ms=self.retention_ms,
            shortest_ms=2 * self.width_ms + self.grace_ms,
        )


def sliding(width: Duration, *, grace: Duration = 0, retention: Duration | None = None) -> Sliding:
    """Windows around the records of a key, no longer than ``width``.

    Args:
        width: the longest time between two records of one window.
        grace: how long after its end a window takes late records.
        retention: how long after its start a window can be read; 2 * width + grace unless given.

    Raises:
        ConfigurationError: not durations, or lengths that cannot work together.
    """
    return Sliding(
        duration_ms(width, what="width"),
        grace_ms=duration_ms(grace, what="grace"),
        retention_ms=declared_retention("sliding", retention),
    )

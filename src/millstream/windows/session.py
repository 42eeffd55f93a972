"""Sessions: bursts of records of one key, parted by silence."""

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
    from collections.abc import Iterable

__all__ = ["Session", "SessionChange", "session"]


class SessionChange(NamedTuple):
    """What one record does to the sessions of its key.

    The new value is the merged sessions' values merged in order, starting from the default, and then
    the record added.

    Attributes:
        merged: sessions that become one, ascending; empty when the record begins a session.
        window: the session that they become; its end is the result's timestamp.
    """

    merged: tuple[Window, ...]
    window: Window

    @property
    def replaced(self) -> tuple[Window, ...]:
        """Sessions to delete, each with a tombstone before the new result.

        All that were merged, also one with the very bounds of the new session; but none when a session
        of a single moment takes another record of that moment (as in Kafka Streams).
        """
        return () if self.window.start == self.window.end else self.merged


@dataclass(frozen=True, slots=True)
class Session:
    """Windows ``[first record, last record]`` of one key, without a silence longer than the gap.

    Two records belong to one session when they are at most ``gap_ms`` apart.

    Attributes:
        gap_ms: the longest silence inside of a session.
        grace_ms: how long after its end + gap a session takes late records, in stream time.
        retention_ms: how long after its end a session is kept; 0 stands for gap + grace.

    Raises:
        ConfigurationError: a gap below 1 ms, a negative grace, a retention below gap + grace.
    """

    gap_ms: int
    grace_ms: int = 0
    retention_ms: int = 0

    def __post_init__(self) -> None:
        checked_length("session", "gap", self.gap_ms, at_least_ms=1)
        retention_ms = checked_retention(
            "session",
            self.retention_ms,
            grace_ms=self.grace_ms,
            shortest_ms=self.gap_ms + self.grace_ms,
            because="gap + grace",
        )
        object.__setattr__(self, "retention_ms", retention_ms)

    def reach(self, timestamp: int) -> tuple[int, int]:
        """``(lowest_end, highest_start)`` of the sessions that a record touches."""
        return timestamp - self.gap_ms, timestamp + self.gap_ms

    def touch(
        self, existing: Iterable[Window], timestamp: int, stream_time: int
    ) -> SessionChange | None:
        """What a record does; None when it is late.

        A late record that merges with a session which is still open counts.

        Args:
            existing: the key's sessions in `reach`, ascending; others are passed over.
            timestamp: the record's.
            stream_time: the operator's, this record included.
        """
        lowest_end, highest_start = timestamp - self.gap_ms, timestamp + self.gap_ms
        merged = tuple(
            window for window in existing if window[1] >= lowest_end and window[0] <= highest_start
        )
        start = end = timestamp
        for window in merged:
            start, end = min(start, window[0]), max(end, window[1])
        if end < stream_time - self.grace_ms - self.gap_ms:
            return None
        return SessionChange(merged, Window(start, end))

    def final_at(self, window: Window) -> int:
        """The stream time from which on the session takes no record that does not bridge."""
        return window.end + self.gap_ms + self.grace_ms + 1

    def accepts(self, window: Window, stream_time: int) -> bool:
        """Whether the session, as a result of merging, takes records at that stream time."""
        return window.end >= stream_time - self.grace_ms - self.gap_ms

    def expires_at(self, end: int) -> int:
        """The stream time from which on a session that ended at ``end`` need not be kept.

        Until then a late record may still join it to a later session, so a longer retention can
        change results.
        """
        return end + self.retention_ms + 1

    def __str__(self) -> str:
        return described(
            "session",
            format_duration(self.gap_ms),
            grace_ms=self.grace_ms,
            retention_ms=self.retention_ms,
            shortest_ms=self.gap_ms + self.grace_ms,
        )


def session(gap: Duration, *, grace: Duration = 0, retention: Duration | None = None) -> Session:
    """Windows from a key's first record to its last before a silence longer than ``gap``.

    Args:
        gap: the longest silence inside of a session.
        grace: how long after its end + gap a session takes late records.
        retention: how long after its end a session can be read; gap + grace unless given.

    Raises:
        ConfigurationError: not durations, or lengths that cannot work together.
    """
    return Session(
        duration_ms(gap, what="gap"),
        grace_ms=duration_ms(grace, what="grace"),
        retention_ms=declared_retention("session", retention),
    )

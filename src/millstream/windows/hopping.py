"""Hopping windows: windows of one size that begin at a regular step and overlap."""

from __future__ import annotations

from dataclasses import dataclass

from millstream.clock import Duration, duration_ms, format_duration
from millstream.errors import ConfigurationError
from millstream.windows._bounds import (
    checked_length,
    checked_retention,
    declared_retention,
    described,
)
from millstream.windows.window import Window

__all__ = ["Hopping", "hopping"]


@dataclass(frozen=True, slots=True)
class Hopping:
    """Windows of one size, one beginning at each multiple of ``advance_ms``.

    A hot loop does without the call: where ``offset_ms`` is 0 the starts of a record's windows are
    ``range(max(0, t - size_ms + advance_ms) // advance_ms * advance_ms, t + 1, advance_ms)``, and a
    window takes the record when ``start + size_ms + grace_ms > ST``.

    Attributes:
        size_ms: length of a window.
        advance_ms: from one start to the next; the size need not be a multiple of it.
        offset_ms: where after the epoch a window begins; kept modulo the advance.
        grace_ms: how long after its end a window takes late records, in stream time.
        retention_ms: how long after its start a window is kept; 0 stands for size + grace.

    Raises:
        ConfigurationError: an advance below 1 ms or above the size, a negative grace, a retention
            below size + grace.
    """

    size_ms: int
    advance_ms: int
    offset_ms: int = 0
    grace_ms: int = 0
    retention_ms: int = 0

    def __post_init__(self) -> None:
        checked_length("hopping", "size", self.size_ms, at_least_ms=1)
        checked_length("hopping", "advance", self.advance_ms, at_least_ms=1)
        if self.advance_ms > self.size_ms:
            raise ConfigurationError(
                f"hopping windows: advance {format_duration(self.advance_ms)} is longer than size"
                f" {format_duration(self.size_ms)}, so that some records would be in no window"
            )
        retention_ms = checked_retention(
            "hopping",
            self.retention_ms,
            grace_ms=self.grace_ms,
            shortest_ms=self.size_ms + self.grace_ms,
            because="size + grace",
        )
        object.__setattr__(self, "retention_ms", retention_ms)
        object.__setattr__(self, "offset_ms", self.offset_ms % self.advance_ms)

    def starts(self, timestamp: int) -> range | tuple[int, ...]:
        """Starts of the windows that contain ``timestamp``, ascending."""
        advance, offset = self.advance_ms, self.offset_ms
        first = (timestamp - offset - self.size_ms) // advance * advance + advance + offset
        if first >= 0:
            return range(first, timestamp + 1, advance)
        on_grid = range(offset, timestamp + 1, advance)
        return (0, *on_grid) if offset else on_grid

    def latest(self, timestamp: int) -> int:
        """The highest of `starts`."""
        start = timestamp - (timestamp - self.offset_ms) % self.advance_ms
        return start if start > 0 else 0

    def starts_between(self, start: int, end: int) -> range | tuple[int, ...]:
        """Starts ``s`` with ``start <= s < end``, ascending."""
        offset, advance = self.offset_ms, self.advance_ms
        first = max(offset, start + (offset - start) % advance)
        on_grid = range(first, end, advance)
        return (0, *on_grid) if offset and start <= 0 < end else on_grid

    def end(self, start: int) -> int:
        """Where the window that begins at ``start`` ends."""
        if start >= self.offset_ms:
            return start + self.size_ms
        return self.offset_ms - self.advance_ms + self.size_ms

    def window(self, start: int) -> Window:
        """The window that begins at ``start``."""
        return Window(start, self.end(start))

    def final_at(self, window: Window) -> int:
        """The stream time from which on the window takes no record."""
        return window.end + self.grace_ms

    def accepts(self, window: Window, stream_time: int) -> bool:
        """Whether the window takes records at that stream time."""
        return window.end > stream_time - self.grace_ms

    def expires_at(self, start: int) -> int:
        """The stream time from which on the window need not be kept."""
        return start + self.retention_ms

    def __str__(self) -> str:
        lengths = [format_duration(self.size_ms), format_duration(self.advance_ms)]
        if self.offset_ms:
            lengths.append(f"offset={format_duration(self.offset_ms)}")
        return described(
            "hopping",
            *lengths,
            grace_ms=self.grace_ms,
            retention_ms=self.retention_ms,
            shortest_ms=self.size_ms + self.grace_ms,
        )


def hopping(
    size: Duration,
    advance: Duration,
    *,
    offset: Duration = 0,
    grace: Duration = 0,
    retention: Duration | None = None,
) -> Hopping:
    """Windows of ``size``, one beginning every ``advance``, so that a record is in several.

    Args:
        size: length of a window.
        advance: from one start to the next; at most ``size``.
        offset: shifts the starts, which are multiples of ``advance`` otherwise; may be negative.
        grace: how long after its end a window takes late records.
        retention: how long after its start a window can be read; size + grace unless given.

    Raises:
        ConfigurationError: not durations, or lengths that cannot work together.
    """
    return Hopping(
        duration_ms(size, what="size"),
        duration_ms(advance, what="advance"),
        offset_ms=duration_ms(offset, what="offset"),
        grace_ms=duration_ms(grace, what="grace"),
        retention_ms=declared_retention("hopping", retention),
    )

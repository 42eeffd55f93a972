"""Tumbling windows: time cut into pieces of one size."""

from __future__ import annotations

from dataclasses import dataclass

from millstream.clock import Duration, duration_ms, format_duration
from millstream.windows._bounds import (
    checked_length,
    checked_retention,
    declared_retention,
    described,
)
from millstream.windows.window import Window

__all__ = ["Tumbling", "tumbling"]


@dataclass(frozen=True, slots=True)
class Tumbling:
    """Windows of one size, each beginning where the one before ends.

    A hot loop does without the call: the start of a record's window is ``t - t % size_ms`` where
    ``offset_ms`` is 0, and the window takes the record when ``start + size_ms + grace_ms > ST``.

    Attributes:
        size_ms: length of a window.
        offset_ms: where after the epoch a window begins; kept modulo the size.
        grace_ms: how long after its end a window takes late records, in stream time.
        retention_ms: how long after its start a window is kept; 0 stands for size + grace.

    Raises:
        ConfigurationError: a size below 1 ms, a negative grace, a retention below size + grace.
    """

    size_ms: int
    offset_ms: int = 0
    grace_ms: int = 0
    retention_ms: int = 0

    def __post_init__(self) -> None:
        checked_length("tumbling", "size", self.size_ms, at_least_ms=1)
        retention_ms = checked_retention(
            "tumbling",
            self.retention_ms,
            grace_ms=self.grace_ms,
            shortest_ms=self.size_ms + self.grace_ms,
            because="size + grace",
        )
        object.__setattr__(self, "retention_ms", retention_ms)
        object.__setattr__(self, "offset_ms", self.offset_ms % self.size_ms)

    @property
    def advance_ms(self) -> int:
        """From one start to the next: the size."""
        return self.size_ms

    def starts(self, timestamp: int) -> tuple[int]:
        """The start of the one window that contains ``timestamp``."""
        start = timestamp - (timestamp - self.offset_ms) % self.size_ms
        return (start if start > 0 else 0,)

    def latest(self, timestamp: int) -> int:
        """The start of the one window that contains ``timestamp``."""
        start = timestamp - (timestamp - self.offset_ms) % self.size_ms
        return start if start > 0 else 0

    def starts_between(self, start: int, end: int) -> range | tuple[int, ...]:
        """Starts ``s`` with ``start <= s < end``, ascending."""
        offset, size = self.offset_ms, self.size_ms
        first = max(offset, start + (offset - start) % size)
        on_grid = range(first, end, size)
        return (0, *on_grid) if offset and start <= 0 < end else on_grid

    def end(self, start: int) -> int:
        """Where the window that begins at ``start`` ends."""
        return start + self.size_ms if start >= self.offset_ms else self.offset_ms

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
        lengths = [format_duration(self.size_ms)]
        if self.offset_ms:
            lengths.append(f"offset={format_duration(self.offset_ms)}")
        return described(
            "tumbling",
            *lengths,
            grace_ms=self.grace_ms,
            retention_ms=self.retention_ms,
            shortest_ms=self.size_ms + self.grace_ms,
        )


def tumbling(
    size: Duration,
    *,
    offset: Duration = 0,
    grace: Duration = 0,
    retention: Duration | None = None,
) -> Tumbling:
    """Windows of ``size``, each beginning where the one before ends.

    Args:
        size: length of a window.
        offset: shifts the starts, which are multiples of ``size`` otherwise; may be negative.
        grace: how long after its end a window takes late records.
        retention: how long after its start a window can be read; size + grace unless given.

    Raises:
        ConfigurationError: not durations, or lengths that cannot work together.
    """
    return Tumbling(
        duration_ms(size, what="size"),
        offset_ms=duration_ms(offset, what="offset"),
        grace_ms=duration_ms(grace, what="grace"),
        retention_ms=declared_retention("tumbling", retention),
    )

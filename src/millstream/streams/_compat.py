"""What Kafka Streams does, where it is another thing than what is right (``compat="kafka-streams"``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.windows import Calendar, Session, Sliding

if TYPE_CHECKING:
    from millstream.windows import AnyWindows

__all__ = ["closes_early_ms", "store_retention_ms"]


def store_retention_ms(windows: AnyWindows) -> int:
    """How long Kafka Streams' window store keeps a window after its start, of sessions after their end."""
    if isinstance(windows, Session):
        shortest = windows.gap_ms + windows.grace_ms
    elif isinstance(windows, Sliding):
        shortest = 2 * windows.width_ms + windows.grace_ms
    elif isinstance(windows, Calendar):
        return 0  # Kafka Streams has none
    else:
        shortest = windows.size_ms + windows.grace_ms
    return max(shortest, windows.retention_ms)


def closes_early_ms(windows: AnyWindows) -> int:
    """By how much its suppress takes a window for final before the aggregate does."""
    return 1 if isinstance(windows, Session | Sliding) else 0

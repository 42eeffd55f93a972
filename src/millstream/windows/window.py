"""One window: a stretch of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from millstream.clock import format_timestamp

__all__ = ["Window"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Window(NamedTuple):
    """A stretch of time, in ms since the epoch; written ``start/end`` in ISO 8601.

    ``end`` is outside of an aligned window (tumbling, hopping, calendar), and inside of a sliding
    window or a session.
    """

    start: int
    end: int

    def times(self, timezone: tzinfo = UTC) -> tuple[datetime, datetime]:
        """Start and end as aware datetimes.

        Raises:
            OverflowError: a bound after the year 9999.
        """
        return (
            (_EPOCH + timedelta(milliseconds=self.start)).astimezone(timezone),
            (_EPOCH + timedelta(milliseconds=self.end)).astimezone(timezone),
        )

    def __str__(self) -> str:
        return f"{format_timestamp(self.start)}/{format_timestamp(self.end)}"

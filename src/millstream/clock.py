"""Time: the only reader of the wall clock, and durations as users write them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from millstream.errors import ConfigurationError

__all__ = [
    "Clock",
    "Duration",
    "ManualClock",
    "SystemClock",
    "duration_ms",
    "format_duration",
    "format_timestamp",
    "timestamp_ms",
]

Duration = timedelta | float | str
"""A length of time: a timedelta, seconds as a number, or ``"250ms"``, ``"10s"``, ``"5m"``, ``"1h"``, ``"7d"``."""

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration_ms(value: Duration, *, what: str = "duration") -> int:
    """A duration in whole milliseconds.

    Raises:
        ConfigurationError: not a duration; the message names ``what``.
    """
    if isinstance(value, timedelta):
        return round(value / timedelta(milliseconds=1))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return round(value * 1_000)
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is not None:
            return round(float(found[1]) * _UNITS_MS[found[2]])
    raise ConfigurationError(
        f"{what}: {value!r} is not a duration; write a timedelta, seconds as a number, or text such"
        f' as "250ms", "10s", "5m", "1h", "7d"'
    )


def format_duration(milliseconds: int) -> str:
    """A duration as users write it, in the largest unit that divides it: ``"90m"``."""
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _UNITS_MS[unit] == 0:
            return f"{milliseconds // _UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms"


def timestamp_ms(value: datetime | float) -> int:
    """A moment in ms since the epoch, from an aware datetime or from ms.

    Raises:
        ConfigurationError: a datetime without a time zone, or something else.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(
                f"{value!r} has no time zone; write for example"
                f" datetime(..., tzinfo=UTC), or ms since the epoch"
            )
        return (value - _EPOCH) // timedelta(milliseconds=1)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return int(value)
    raise ConfigurationError(
        f"{value!r} is not a time; give an aware datetime or ms since the epoch"
    )


def format_timestamp(milliseconds: int) -> str:
    """A moment as ISO 8601 in UTC, to the millisecond."""
    try:
        return (_EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{milliseconds} ms"


class Clock(Protocol):
    """Tells wall-clock time and waits for it."""

    def now(self) -> int:
        """The wall clock, in ms since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean something."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for that long."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is moved, for tests."""

    def __init__(self, start: int = 1_700_000_000_000) -> None:
        self._now = start
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._now / 1_000

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._now + max(1, round(seconds * 1_000))
        heapq.heappush(self._sleepers, (due, next(self._order), future))
        await future

    def next_due(self) -> int | None:
        """When the next sleeper wakes, in ms since the epoch; None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def move_to(self, now: int) -> None:
        """Set the clock to ``now`` (never back) and wake those whose time has come."""
        self._now = max(self._now, now)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    def advance(self, by: Duration) -> None:
        """Move the clock forward."""
        self.move_to(self._now + duration_ms(by))

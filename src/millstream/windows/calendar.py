"""Calendar windows: hours, days, weeks, months, quarters and years of a time zone.

Theory of operation. Windows are made of moments, not of readings of a clock, so they never overlap and
leave nothing out, whatever the clocks do:

- A day begins at the first moment at which the local clock shows midnight. Where midnight is skipped (summer
  time begins at 0:00), it begins when the clock goes forward; where midnight comes twice, it begins at the
  first one. So a day has 23, 24 or 25 hours (31 once, in Antarctica), and a date that a country skipped has none and no window.
- Weeks (from Monday), months, quarters and years begin where their first day begins.
- An hour begins at each full hour of the local clock, and whenever the clock is changed: the hour that comes
  twice in autumn is two windows, and where clocks move by half an hour (Lord Howe) one window has 30 minutes.

`zoneinfo` does not tell when a zone changes its clock, but does tell the offset at any moment: where the two
ends of a stretch differ, the change is found by bisection. That happens once or twice in a year of events,
and a window is worked out only when an event leaves the window of the event before.
"""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Literal, get_args

from millstream.clock import Duration, duration_ms
from millstream.errors import ConfigurationError
from millstream.windows._bounds import checked_retention, declared_retention, described
from millstream.windows.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Calendar", "CalendarUnit", "calendar"]

CalendarUnit = Literal["hour", "day", "week", "month", "quarter", "year"]
"""What a calendar window is as long as."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

# Python's calendar ends with the year 9999; what comes later is one window.
_LAST_START = (datetime(9998, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND
_FOREVER = 2**63 - 1

# Since 1970 no zone has put its clock back by more than seven hours at once (Antarctica/Vostok, 1994).
_LONGEST_CHANGE_MS = 7 * _HOUR_MS
_LONGEST_MS: dict[CalendarUnit, int] = {
    "hour": _HOUR_MS,
    "day": _DAY_MS + _LONGEST_CHANGE_MS,
    "week": 7 * _DAY_MS + _LONGEST_CHANGE_MS,
    "month": 31 * _DAY_MS + _LONGEST_CHANGE_MS,
    "quarter": 92 * _DAY_MS + _LONGEST_CHANGE_MS,
    "year": 366 * _DAY_MS + _LONGEST_CHANGE_MS,
}


@dataclass(frozen=True, slots=True)
class Calendar:
    """Windows that are a unit of the calendar in a time zone, with its summer time.

    Attributes:
        unit: ``"hour"``, ``"day"``, ``"week"`` (from Monday), ``"month"``, ``"quarter"`` or ``"year"``.
        timezone: a name of the IANA database, such as ``"Europe/Berlin"``.
        grace_ms: how long after its end a window takes late records, in stream time.
        retention_ms: how long after its start a window is kept; 0 stands for the longest that the
            unit can be + grace.

    Raises:
        ConfigurationError: an unknown unit or time zone, no time zones on this machine, a negative
            grace, a retention that is too short.
    """

    unit: CalendarUnit
    timezone: str
    grace_ms: int = 0
    retention_ms: int = 0
    # The window of the last call: one tuple, replaced as a whole, so threads may share it.
    _recent: list[tuple[int, int, tuple[int]]] = field(
        default_factory=lambda: [(-1, -1, (0,))], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.unit not in _LONGEST_MS:
            raise ConfigurationError(
                f"calendar windows: unknown unit {self.unit!r};"
                f" use one of {', '.join(get_args(CalendarUnit))}"
            )
        _zone(self.timezone)
        retention_ms = checked_retention(
            "calendar",
            self.retention_ms,
            grace_ms=self.grace_ms,
            shortest_ms=_LONGEST_MS[self.unit] + self.grace_ms,
            because=f"the longest {self.unit} there is + grace",
        )
        object.__setattr__(self, "retention_ms", retention_ms)

    def starts(self, timestamp: int) -> tuple[int]:
        """The start of the one window that contains ``timestamp``."""
        start, end, starts = self._recent[0]
        if start <= timestamp < end:
            return starts
        return self._look_up(timestamp)[2]

    def latest(self, timestamp: int) -> int:
        """The start of the one window that contains ``timestamp``."""
        start, end, _ = self._recent[0]
        if start <= timestamp < end:
            return start
        return self._look_up(timestamp)[0]

    def starts_between(self, start: int, end: int) -> Iterator[int]:
        """Starts ``s`` with ``start <= s < end``, ascending; worked out as they are asked for."""
        window = self._window_at(max(0, start))
        while window.start < end:
            if window.start >= start:
                yield window.start
            if window.end == _FOREVER:
                return
            window = self._window_at(window.end)

    def end(self, start: int) -> int:
        """Where the window that begins at ``start`` ends."""
        recent_start, end, _ = self._recent[0]
        return end if start == recent_start else self._look_up(start)[1]

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
        return described(
            "calendar",
            self.unit,
            f"timezone={self.timezone}",
            grace_ms=self.grace_ms,
            retention_ms=self.retention_ms,
            shortest_ms=_LONGEST_MS[self.unit] + self.grace_ms,
        )

    def _look_up(self, timestamp: int) -> tuple[int, int, tuple[int]]:
        start, end = self._window_at(timestamp)
        found = (start, end, (start,))
        self._recent[0] = found
        return found

    def _window_at(self, timestamp: int) -> Window:
        if timestamp >= _LAST_START:
            return Window(_LAST_START, _FOREVER)
        zone = _zone(self.timezone)
        if self.unit == "hour":
            start, end = _hour(zone, timestamp)
        else:
            start, end = self._days(zone, timestamp)
        return Window(max(0, start), min(end, _LAST_START))

    def _days(self, zone: zoneinfo.ZoneInfo, timestamp: int) -> tuple[int, int]:
        first = _first_day(self.unit, _local(zone, timestamp).date())
        start = _midnight(zone, first)
        if timestamp < start:
            first = _first_day(self.unit, first - timedelta(days=1))
            start = _midnight(zone, first)
        while True:
            first = _next_first_day(self.unit, first)
            end = _midnight(zone, first)
            if timestamp < end:
                return start, end
            start = end  # the clock went back over midnight, or a date was skipped


def calendar(
    unit: CalendarUnit,
    *,
    timezone: str,
    grace: Duration = 0,
    retention: Duration | None = None,
) -> Calendar:
    """Windows that are hours, days, weeks, months, quarters or years of a time zone.

    Args:
        unit: ``"hour"``, ``"day"``, ``"week"`` (from Monday), ``"month"``, ``"quarter"`` or ``"year"``.
        timezone: a name of the IANA database, such as ``"Europe/Berlin"``.
        grace: how long after its end a window takes late records.
        retention: how long after its start a window can be read; the longest that the unit can be,
            plus grace, unless given.

    Raises:
        ConfigurationError: an unknown unit or time zone, not durations, or lengths that cannot work
            together.
    """
    return Calendar(
        unit,
        timezone,
        grace_ms=duration_ms(grace, what="grace"),
        retention_ms=declared_retention("calendar", retention),
    )


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError) as exc:
        known = zoneinfo.available_timezones()
        if not known:
            raise ConfigurationError(
                f"calendar windows: this machine has no time zones, so {name!r} is unknown;"
                f" install them with: pip install tzdata"
            ) from exc
        from difflib import get_close_matches

        near = get_close_matches(str(name), sorted(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ' such as "Europe/Berlin"'
        raise ConfigurationError(
            f"calendar windows: {name!r} is not a time zone of the IANA database{hint}"
        ) from exc


def _local(zone: zoneinfo.ZoneInfo, timestamp: int) -> datetime:
    return (_EPOCH + timedelta(milliseconds=timestamp)).astimezone(zone)


def _moment(local: datetime) -> int:
    return (local - _EPOCH) // _MILLISECOND


def _offset(zone: zoneinfo.ZoneInfo, timestamp: int) -> int:
    return (_local(zone, timestamp).utcoffset() or timedelta()) // _MILLISECOND


def _change(zone: zoneinfo.ZoneInfo, before: int, after: int) -> int:
    """The first moment in ``(before, after]`` from which on the zone has the offset of ``after``."""
    offset = _offset(zone, after)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(zone, middle) == offset:
            after = middle
        else:
            before = middle
    return after


def _hour(zone: zoneinfo.ZoneInfo, timestamp: int) -> tuple[int, int]:
    offset = _offset(zone, timestamp)
    start = timestamp - (timestamp + offset) % _HOUR_MS
    end = start + _HOUR_MS
    if _offset(zone, start) != offset:
        start = _change(zone, start, timestamp)
    if _offset(zone, end - 1) != offset:
        end = _change(zone, timestamp, end - 1)
    return start, end


def _midnight(zone: zoneinfo.ZoneInfo, day: date) -> int:
    """The moment at which a local day begins."""
    local = datetime(day.year, day.month, day.day, tzinfo=zone)
    moment = _moment(local)
    if _local(zone, moment).replace(tzinfo=None) == local.replace(tzinfo=None):
        return moment
    # Midnight is skipped. Read with the offset before the change (fold 0) it lies after the change,
    # read with the offset after it (fold 1) it lies before.
    return _change(zone, _moment(local.replace(fold=1)), moment)


def _first_day(unit: CalendarUnit, day: date) -> date:
    if unit == "week":
        return day - timedelta(days=day.weekday())
    if unit == "month":
        return day.replace(day=1)
    if unit == "quarter":
        return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    if unit == "year":
        return day.replace(month=1, day=1)
    return day


def _next_first_day(unit: CalendarUnit, first: date) -> date:
    longest_days = _LONGEST_MS[unit] // _DAY_MS
    return _first_day(unit, first + timedelta(days=longest_days))

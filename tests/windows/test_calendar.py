"""Calendar windows across changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.windows import Calendar, CalendarUnit, Window

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
UNITS: list[CalendarUnit] = ["hour", "day", "week", "month", "quarter", "year"]
ZONES = ["America/New_York", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe"]
ODD_ZONES = [
    *ZONES,
    "UTC",
    "America/Havana",  # midnight comes twice
    "America/Sao_Paulo",  # midnight is skipped
    "America/St_Johns",  # changed at 0:01: a minute of the next day, then 23:01 again
    "Pacific/Apia",  # skipped 2011-12-30
    "Antarctica/Casey",  # changes by three hours
    "Antarctica/Vostok",  # changed by seven
    "Africa/Monrovia",  # had an offset with seconds until 1972
]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ms(text: str) -> int:
    """ISO 8601 with an offset, in ms since the epoch."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)


def label(unit: CalendarUnit, local: datetime) -> tuple[object, ...]:
    """What a clock on the wall would call the window."""
    match unit:
        case "hour":
            return local.date(), local.hour, local.utcoffset()
        case "day":
            return (local.date(),)
        case "week":
            return local.isocalendar()[:2]
        case "month":
            return local.year, local.month
        case "quarter":
            return local.year, (local.month - 1) // 3
        case _:
            return (local.year,)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("unit", UNITS)
def test_every_hour_of_2013(zone: str, unit: CalendarUnit) -> None:
    """Each half hour of the year is in the one window with its label, and windows leave no hole."""
    windows = Calendar(unit, zone)
    first, last = ms("2013-01-01T00:00:00+00:00"), ms("2014-01-01T00:00:00+00:00")
    labels: dict[tuple[object, ...], int] = {}
    known: list[Window] = []
    for timestamp in range(first, last, HOUR_MS // 2):
        [start] = windows.starts(timestamp)
        window = windows.window(start)
        assert window.start <= timestamp < window.end
        local = datetime.fromtimestamp(timestamp / 1000, ZoneInfo(zone))
        assert labels.setdefault(label(unit, local), start) == start
        if not known or known[-1] != window:
            known.append(window)
    assert len(labels) == len(known)
    assert all(one.end == next_one.start for one, next_one in pairwise(known))
    assert [w.start for w in known[1:]] == list(
        windows.starts_between(known[0].start + 1, known[-1].end)
    )


@pytest.mark.parametrize(
    ("unit", "zone", "start", "end"),
    [
        # a day of 23 hours, and one of 25
        ("day", "Europe/Berlin", "2013-03-31T00:00:00+01:00", "2013-04-01T00:00:00+02:00"),
        ("day", "Europe/Berlin", "2013-10-27T00:00:00+02:00", "2013-10-28T00:00:00+01:00"),
        ("day", "America/New_York", "2013-03-10T00:00:00-05:00", "2013-03-11T00:00:00-04:00"),
        ("day", "America/New_York", "2013-11-03T00:00:00-04:00", "2013-11-04T00:00:00-05:00"),
        # half an hour of summer time
        ("day", "Australia/Lord_Howe", "2013-04-07T00:00:00+11:00", "2013-04-08T00:00:00+10:30"),
        ("day", "Asia/Kathmandu", "2013-06-01T00:00:00+05:45", "2013-06-02T00:00:00+05:45"),
        # the hour that comes twice is two windows
        ("hour", "Europe/Berlin", "2013-10-27T02:00:00+02:00", "2013-10-27T02:00:00+01:00"),
        ("hour", "Europe/Berlin", "2013-10-27T02:00:00+01:00", "2013-10-27T03:00:00+01:00"),
        # the hour that is skipped is none
        ("hour", "Europe/Berlin", "2013-03-31T01:00:00+01:00", "2013-03-31T03:00:00+02:00"),
        # half hours where the clock moves by half an hour
        ("hour", "Australia/Lord_Howe", "2013-04-07T01:00:00+11:00", "2013-04-07T02:00:00+11:00"),
        ("hour", "Australia/Lord_Howe", "2013-04-07T01:30:00+10:30", "2013-04-07T02:00:00+10:30"),
        ("hour", "Australia/Lord_Howe", "2013-10-06T02:30:00+11:00", "2013-10-06T03:00:00+11:00"),
        ("hour", "Asia/Kathmandu", "2013-06-01T07:00:00+05:45", "2013-06-01T08:00:00+05:45"),
        # midnight is skipped: the day begins at 1:00
        ("day", "America/Sao_Paulo", "2013-10-20T01:00:00-02:00", "2013-10-21T00:00:00-02:00"),
        # midnight comes twice: the day begins at the first
        ("day", "America/Havana", "2013-11-03T00:00:00-04:00", "2013-11-04T00:00:00-05:00"),
        # 0:01 became 23:01 of the day before, which stays in the day that had begun
        ("day", "America/St_Johns", "2010-11-07T00:00:00-02:30", "2010-11-08T00:00:00-03:30"),
        # the day after the one that was skipped
        ("day", "Pacific/Apia", "2011-12-31T00:00:00+14:00", "2012-01-01T00:00:00+14:00"),
        # Monday to Monday
        ("week", "Europe/Berlin", "2013-03-25T00:00:00+01:00", "2013-04-01T00:00:00+02:00"),
        ("month", "America/New_York", "2013-03-01T00:00:00-05:00", "2013-04-01T00:00:00-04:00"),
        ("month", "UTC", "2012-02-01T00:00:00+00:00", "2012-03-01T00:00:00+00:00"),
        ("quarter", "Europe/Berlin", "2013-10-01T00:00:00+02:00", "2014-01-01T00:00:00+01:00"),
        ("year", "Asia/Kathmandu", "2012-01-01T00:00:00+05:45", "2013-01-01T00:00:00+05:45"),
    ],
)
def test_window_by_hand(unit: CalendarUnit, zone: str, start: str, end: str) -> None:
    """A window begins and ends where its zone's clock says."""
    windows = Calendar(unit, zone)
    expected = Window(ms(start), ms(end))
    for timestamp in (expected.start, (expected.start + expected.end) // 2, expected.end - 1):
        assert windows.starts(timestamp) == (expected.start,)
        assert windows.window(expected.start) == expected
    assert windows.starts(expected.end) == (expected.end,)
    assert windows.latest(expected.start - 1) < expected.start


@given(
    st.sampled_from(ODD_ZONES),
    st.sampled_from(UNITS),
    st.integers(0, ms("2040-01-01T00:00:00+00:00")),
)
def test_windows_are_a_partition(zone: str, unit: CalendarUnit, timestamp: int) -> None:
    """A moment is in one window, whichever moment of it was asked for first, and it can be kept."""
    windows = Calendar(unit, zone, grace_ms=7)
    [start] = windows.starts(timestamp)
    window = windows.window(start)
    assert window.start <= timestamp < window.end
    assert Calendar(unit, zone).window(start) == window
    assert Calendar(unit, zone).starts(window.end - 1) == (start,)
    assert Calendar(unit, zone).starts(window.end) == (window.end,)
    assert start == 0 or Calendar(unit, zone).latest(start - 1) < start
    assert windows.final_at(window) <= windows.expires_at(start)


@pytest.mark.parametrize("unit", UNITS)
def test_beginning_and_end_of_time(unit: CalendarUnit) -> None:
    """No window begins before 0, and what Python's calendar does not reach is one window."""
    for zone in ("Europe/Berlin", "America/New_York"):
        windows = Calendar(unit, zone)
        assert windows.window(0).start == 0
        assert 0 < windows.end(0) <= 366 * DAY_MS
        far = windows.latest(10**17)
        assert windows.window(far) == Window(ms("9998-01-01T00:00:00+00:00"), 2**63 - 1)
        assert windows.end(windows.latest(far - 1)) == far
        assert list(windows.starts_between(far, far + 1)) == [far]


@pytest.mark.parametrize("zone", ODD_ZONES)
def test_longest_day(zone: str) -> None:
    """No day since 1970 is longer than the retention that a calendar assumes."""
    windows = Calendar("day", zone)
    starts = list(windows.starts_between(0, ms("2040-01-01T00:00:00+00:00")))
    longest = max(after - before for before, after in pairwise(starts))
    assert longest <= windows.retention_ms

"""One window as text and as datetimes, and what all declarations have in common."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, assert_type
from zoneinfo import ZoneInfo

import pytest

from millstream.errors import ConfigurationError
from millstream.windows import (
    AlignedWindows,
    AnyWindows,
    Calendar,
    Hopping,
    Session,
    Sliding,
    Tumbling,
    Window,
    calendar,
    hopping,
    session,
    sliding,
    tumbling,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DECLARED: list[tuple[AnyWindows, str]] = [
    (tumbling("10s"), "tumbling(10s)"),
    (tumbling("1d", offset="-3h", grace=2), "tumbling(1d, offset=21h, grace=2s)"),
    (hopping("1h", "5m", retention="1d"), "hopping(1h, 5m, retention=1d)"),
    (hopping(60, 10, offset=3), "hopping(1m, 10s, offset=3s)"),
    (sliding(timedelta(seconds=30), grace="1s"), "sliding(30s, grace=1s)"),
    (session("30m", grace="5m", retention="1d"), "session(30m, grace=5m, retention=1d)"),
    (calendar("day", timezone="Europe/Berlin"), "calendar(day, timezone=Europe/Berlin)"),
]


def test_window_as_text() -> None:
    """A window prints as an ISO 8601 interval in UTC."""
    window = Window(1_704_067_200_000, 1_704_067_210_500)
    assert str(window) == "2024-01-01T00:00:00.000+00:00/2024-01-01T00:00:10.500+00:00"


def test_window_as_datetimes() -> None:
    """A window gives its bounds as aware datetimes, in UTC or where asked."""
    window = Window(1_704_067_200_000, 1_704_067_210_000)
    assert window.times() == (
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, 0, 0, 10, tzinfo=UTC),
    )
    start, _ = window.times(ZoneInfo("Asia/Kathmandu"))
    assert start.isoformat() == "2024-01-01T05:45:00+05:45"


@pytest.mark.parametrize(("windows", "text"), DECLARED, ids=lambda value: str(value))
def test_declaration_is_a_value(windows: AnyWindows, text: str) -> None:
    """A declaration prints as it is written, and survives pickling, equal and with the same hash."""
    copy = pickle.loads(pickle.dumps(windows))
    assert copy == windows
    assert hash(copy) == hash(windows)
    assert str(windows) == text
    with pytest.raises(AttributeError):
        windows.grace_ms = 1  # type: ignore[misc]


def test_defaults_are_written_out() -> None:
    """A retention at its default equals the same one given, and offsets are equal modulo the step."""
    assert tumbling("10s", grace="5s") == Tumbling(10_000, 0, 5_000, 15_000)
    assert hopping(10, 5) == Hopping(10_000, 5_000, 0, 0, 10_000)
    assert sliding("10s", grace="1s") == Sliding(10_000, 1_000, 21_000)
    assert session("10s", grace="1s") == Session(10_000, 1_000, 11_000)
    assert tumbling("1h", offset="-15m") == tumbling("1h", offset="45m")
    assert (
        calendar("week", timezone="UTC", grace="1s").retention_ms
        == (7 * 24 + 7) * 3_600_000 + 1_000
    )


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: tumbling(0), "tumbling windows: size must be at least 1ms, not 0ms"),
        (lambda: tumbling("-1s"), "size must be at least 1ms, not -1s"),
        (lambda: tumbling("soon"), "size: 'soon' is not a duration"),
        (lambda: tumbling("1s", grace="-1s"), "grace must be at least 0ms, not -1s"),
        (
            lambda: tumbling("10s", grace="5s", retention="14s"),
            r"retention must be at least 15s \(size \+ grace\), not 14s",
        ),
        (lambda: tumbling("1s", retention=0), "retention must be at least 1ms, not 0ms"),
        (lambda: hopping("10s", 0), "hopping windows: advance must be at least 1ms"),
        (lambda: hopping("10s", "11s"), "advance 11s is longer than size 10s"),
        (lambda: hopping("10s", "5s", retention="9s"), "retention must be at least 10s"),
        (lambda: sliding("-1s"), "sliding windows: width must be at least 0ms"),
        (lambda: sliding("10s", retention="19s"), r"at least 20s \(2 \* width \+ grace\)"),
        (lambda: session(0), "session windows: gap must be at least 1ms"),
        (lambda: session("10s", grace="1s", retention="10s"), r"at least 11s \(gap \+ grace\)"),
        (lambda: Calendar("fortnight", "UTC"), "unknown unit 'fortnight'; use one of hour, day"),  # type: ignore[arg-type]
        (lambda: calendar("day", timezone="Europe/Berlim"), "did you mean 'Europe/Berlin'?"),
        (lambda: calendar("day", timezone="Europe"), "not a time zone of the IANA database"),
        (lambda: calendar("day", timezone="/etc/passwd"), "not a time zone of the IANA database"),
        (lambda: calendar("day", timezone=""), "not a time zone of the IANA database"),
        (lambda: calendar("day", timezone="UTC", retention="1d"), "the longest day there is"),
    ],
)
def test_refused(declare: Callable[[], AnyWindows], message: str) -> None:
    """Lengths that cannot work together are refused with a sentence that names them."""
    with pytest.raises(ConfigurationError, match=message):
        declare()


def test_no_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without time zones is told how to get them."""
    monkeypatch.setattr("zoneinfo.available_timezones", set)
    with pytest.raises(ConfigurationError, match="pip install tzdata"):
        calendar("day", timezone="Europe/Nowhere")


def test_types() -> None:
    """The kinds with fixed bounds are aligned windows to a type checker, and the rest are not."""
    aligned: list[AlignedWindows] = [
        tumbling(1),
        hopping(2, 1),
        calendar("hour", timezone="UTC"),
    ]
    assert [windows.window(0).start for windows in aligned] == [0, 0, 0]
    assert_type(session(1), Session)
    assert_type(sliding(1), Sliding)


@pytest.mark.parametrize("windows", [windows for windows, _ in DECLARED], ids=str)
def test_final_is_when_nothing_is_accepted(windows: AnyWindows) -> None:
    """A window takes records until the ms before it is final."""
    window = Window(1_000_000, 1_600_000)
    final = windows.final_at(window)
    assert windows.accepts(window, final - 1)
    assert not windows.accepts(window, final)

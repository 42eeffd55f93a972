"""Durations and times as users write them, and the clock that is moved by hand."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.clock import (
    ManualClock,
    SystemClock,
    duration_ms,
    format_duration,
    format_timestamp,
    timestamp_ms,
)
from millstream.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        ("250ms", 250),
        ("10s", 10_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("7d", 604_800_000),
        ("1.5s", 1_500),
        (" 2 h ", 7_200_000),
        ("-1m", -60_000),
        (3, 3_000),
        (0.25, 250),
        (timedelta(days=1, microseconds=499), 86_400_000),
        (0, 0),
    ],
)
def test_durations(written: Any, ms: int) -> None:
    """A duration is a timedelta, seconds as a number, or a number with a unit."""
    assert duration_ms(written) == ms


@pytest.mark.parametrize(
    "wrong",
    ["", "5", "1w", "ms", "1h30m", "1e3s", None, True, [], float("nan"), float("inf"), "infs"],
)
def test_wrong_durations(wrong: Any) -> None:
    """Anything else is an error that names what it was for, and shows examples."""
    with pytest.raises(ConfigurationError, match=r'^grace: .* is not a duration; .*"250ms", "10s"'):
        duration_ms(wrong, what="grace")


@given(st.integers(-(10**12), 10**12))
def test_formatted_durations_are_read_back(ms: int) -> None:
    """What `format_duration` writes means the same."""
    assert duration_ms(format_duration(ms)) == ms


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (1_000, "1s"),
        (90_000, "90s"),
        (5_400_000, "90m"),
        (86_400_000, "1d"),
    ],
)
def test_format_duration(ms: int, text: str) -> None:
    """The largest unit that divides it."""
    assert format_duration(ms) == text


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        (0, 0),
        (1.9, 1),
        (-5, -5),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 1_704_067_200_000),
        (datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), -1),
        (datetime(9999, 12, 31, tzinfo=UTC), 253_402_214_400_000),
    ],
)
def test_timestamps(written: Any, ms: int) -> None:
    """A time is an aware datetime, or ms since the epoch."""
    assert timestamp_ms(written) == ms


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (datetime(2024, 1, 1), "has no time zone; write for example"),
        ("2024-01-01", "is not a time"),
        (None, "is not a time"),
        (True, "is not a time"),
        (float("nan"), "is not a time"),
        (float("-inf"), "is not a time"),
    ],
)
def test_wrong_timestamps(wrong: Any, message: str) -> None:
    """Anything else is an error."""
    with pytest.raises(ConfigurationError, match=message):
        timestamp_ms(wrong)


def test_format_timestamp() -> None:
    """ISO 8601 in UTC, to the millisecond; what no calendar holds as a number."""
    assert format_timestamp(1_704_067_200_001) == "2024-01-01T00:00:00.001+00:00"
    assert format_timestamp(2**62) == f"{2**62} ms"


async def test_manual_clock() -> None:
    """Sleepers wake in the order of their times, and only when the clock gets there."""
    clock = ManualClock(1_000)
    woken: list[str] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in [("late", 2), ("soon", 1), ("at once", 0), ("tiny", 0.0001)]:
            tasks.create_task(sleep(name, seconds))
        for _ in range(3):
            await asyncio.sleep(0)
        assert woken == ["at once"]
        assert clock.next_due() == 1_001
        clock.advance("1s")
        for _ in range(3):
            await asyncio.sleep(0)
        assert woken == ["at once", "tiny", "soon"]
        clock.advance(1)
    assert woken == ["at once", "tiny", "soon", "late"]
    assert (clock.now(), clock.monotonic(), clock.next_due()) == (3_000, 3.0, None)


async def test_cancelled_sleepers_are_forgotten() -> None:
    """Who does not wait any more is not waited for."""
    clock = ManualClock()
    task = asyncio.ensure_future(clock.sleep(5))
    await asyncio.sleep(0)
    assert clock.next_due() is not None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.next_due() is None
    clock.advance("1m")


def test_manual_clock_never_goes_back() -> None:
    """Moving to an earlier time does nothing."""
    clock = ManualClock(1_000)
    clock.move_to(500)
    assert clock.now() == 1_000


async def test_system_clock() -> None:
    """The machine's own clocks."""
    clock = SystemClock()
    assert abs(clock.now() - time.time() * 1_000) < 1_000
    before = clock.monotonic()
    await clock.sleep(0)
    assert clock.monotonic() >= before

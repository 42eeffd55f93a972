"""Sliding windows and sessions against brute force, where nothing is late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from millstream.windows import Session, Sliding, Window

NEVER_LATE_MS = 10_000
RECORDS = st.lists(st.integers(0, 80), max_size=25)


def slid(windows: Sliding, timestamps: list[int], *, expire: bool = False) -> dict[int, list[int]]:
    """Indices of the records in each window, by start, folded change by change."""
    held: dict[int, tuple[list[int], int]] = {}
    everything: dict[int, list[int]] = {}
    stream_time = 0
    for index, timestamp in enumerate(timestamps):
        stream_time = max(stream_time, timestamp)
        if expire:
            held = {s: kept for s, kept in held.items() if stream_time < windows.expires_at(s)}
        existing = sorted((start, newest) for start, (_, newest) in held.items())
        changes = windows.touch(existing, timestamp, stream_time)
        bases = [[] if c.base is None else held[c.base][0] for c in changes]
        for change, base in zip(changes, bases, strict=True):
            members = [*base, index] if change.adds else base
            held[change.window.start] = (members, change.timestamp)
            everything[change.window.start] = members
            assert change.timestamp == max(timestamps[member] for member in members)
    return everything


@given(RECORDS, st.integers(0, 30))
def test_sliding_windows_are_complete(timestamps: list[int], width_ms: int) -> None:
    """Each record has its left window, its right one if anything is in it, and no others exist."""
    held = slid(Sliding(width_ms, grace_ms=NEVER_LATE_MS), timestamps)
    starts = {max(0, t - width_ms) for t in timestamps} | {t + 1 for t in timestamps}
    expected = {
        start: [i for i, t in enumerate(timestamps) if start <= t <= start + width_ms]
        for start in starts
    }
    assert held == {start: members for start, members in expected.items() if members}


@given(RECORDS, st.integers(0, 15), st.integers(0, 15))
def test_expired_sliding_windows_are_not_missed(
    timestamps: list[int], width_ms: int, grace_ms: int
) -> None:
    """What has expired would have changed no result."""
    windows = Sliding(width_ms, grace_ms=grace_ms)
    assert slid(windows, timestamps, expire=True) == slid(windows, timestamps)


@given(RECORDS, st.integers(1, 30), st.integers(0, 80))
def test_reach_suffices(timestamps: list[int], width_ms: int, timestamp: int) -> None:
    """Windows out of reach change nothing."""
    windows = Sliding(width_ms, grace_ms=NEVER_LATE_MS)
    held = slid(windows, timestamps)
    existing = sorted((start, max(timestamps[i] for i in held[start])) for start in held)
    lowest, highest = windows.reach(timestamp)
    near = [(start, newest) for start, newest in existing if lowest <= start <= highest]
    assert windows.touch(near, timestamp, 80) == windows.touch(existing, timestamp, 80)


@given(RECORDS, st.integers(1, 20))
def test_sessions_are_bursts(timestamps: list[int], gap_ms: int) -> None:
    """In whatever order records come, sessions are the bursts of their sorted times."""
    windows = Session(gap_ms, grace_ms=NEVER_LATE_MS)
    held: dict[Window, int] = {}
    for timestamp in timestamps:
        change = windows.touch(sorted(held), timestamp, 80)
        assert change is not None
        held[change.window] = 1 + sum(held.pop(window) for window in change.merged)
    expected: list[list[int]] = []
    for timestamp in sorted(timestamps):
        if expected and timestamp - expected[-1][-1] <= gap_ms:
            expected[-1].append(timestamp)
        else:
            expected.append([timestamp])
    assert held == {Window(burst[0], burst[-1]): len(burst) for burst in expected}


def test_late_session() -> None:
    """A record that is late alone makes no session; one that bridges to an open session counts."""
    windows = Session(5, grace_ms=10)
    assert windows.touch([], 14, 30) is None
    assert windows.touch([], 15, 30) == ((), Window(15, 15))
    bridge = windows.touch([Window(3, 8), Window(14, 20)], 12, 30)
    assert bridge is not None
    assert bridge.merged == bridge.replaced == (Window(3, 8), Window(14, 20))
    assert bridge.window == Window(3, 20)

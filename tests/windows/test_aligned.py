"""Tumbling and hopping windows against brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from millstream.windows import Hopping, Tumbling, Window

SIZES = st.integers(1, 60)
TIMES = st.integers(0, 500)


@st.composite
def hoppings(draw: st.DrawFn) -> Hopping:
    size_ms = draw(SIZES)
    advance_ms = draw(st.integers(1, size_ms))
    return Hopping(
        size_ms, advance_ms, offset_ms=draw(st.integers(-70, 70)), grace_ms=draw(st.integers(0, 20))
    )


def on_grid(windows: Tumbling | Hopping, until: int) -> list[Window]:
    """Every window up to a time, counted one by one from well before 0."""
    start = windows.offset_ms - 100 * windows.advance_ms
    grid = []
    while start <= until:
        grid.append(Window(start, start + windows.size_ms))
        start += windows.advance_ms
    before = [window for window in grid if window.start < 0]
    cut = [Window(0, before[-1].end)] if windows.offset_ms else []
    return cut + [window for window in grid if window.start >= 0]


@given(hoppings(), TIMES)
def test_hopping_starts(windows: Hopping, timestamp: int) -> None:
    """A moment is in exactly the windows that contain it."""
    expected = [w for w in on_grid(windows, timestamp) if w.start <= timestamp < w.end]
    assert [windows.window(start) for start in windows.starts(timestamp)] == expected
    assert windows.latest(timestamp) == expected[-1].start
    assert expected


@given(SIZES, st.integers(-70, 70), TIMES)
def test_tumbling_starts(size_ms: int, offset_ms: int, timestamp: int) -> None:
    """A moment is in exactly one window."""
    windows = Tumbling(size_ms, offset_ms)
    [expected] = [w for w in on_grid(windows, timestamp) if w.start <= timestamp < w.end]
    assert windows.starts(timestamp) == (expected.start,)
    assert windows.latest(timestamp) == expected.start
    assert windows.window(expected.start) == expected


@given(st.one_of(hoppings(), st.builds(Tumbling, SIZES, st.integers(-70, 70))), TIMES, TIMES)
def test_starts_between(windows: Tumbling | Hopping, start: int, end: int) -> None:
    """Starts in a range are those of the grid, also where the range is empty."""
    expected = [window.start for window in on_grid(windows, 500) if start <= window.start < end]
    assert list(windows.starts_between(start, end)) == expected


@given(SIZES, SIZES, st.integers(0, 10**15))
def test_rule_of_kafka_streams(size_ms: int, advance_ms: int, timestamp: int) -> None:
    """Without an offset the first start is Kafka Streams', as are the expressions for hot loops."""
    size_ms = max(size_ms, advance_ms)
    first = max(0, timestamp - size_ms + advance_ms) // advance_ms * advance_ms
    assert list(Hopping(size_ms, advance_ms).starts(timestamp)) == list(
        range(first, timestamp + 1, advance_ms)
    )
    assert Tumbling(size_ms).latest(timestamp) == timestamp - timestamp % size_ms


@given(hoppings(), TIMES, TIMES)
def test_accepted_until_end_and_grace(windows: Hopping, timestamp: int, ahead: int) -> None:
    """A window takes records while its end is above stream time - grace, and is kept until then."""
    for start in windows.starts(timestamp):
        window = windows.window(start)
        stream_time = timestamp + ahead
        assert windows.accepts(window, stream_time) == (window.end > stream_time - windows.grace_ms)
        assert windows.accepts(window, stream_time) == (stream_time < windows.final_at(window))
        assert windows.expires_at(start) >= windows.final_at(window)

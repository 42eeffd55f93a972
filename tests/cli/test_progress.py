"""The bar for what takes long."""

from __future__ import annotations

import sys

import pytest

from millstream.cli import _progress


class _Time:
    """A clock for the bar, moved by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> _Time:
    """What the bar takes for the time."""
    time = _Time()
    monkeypatch.setattr(_progress, "time", time)
    return time


def test_quick_work_shows_nothing(time: _Time, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a second is no time."""
    with _progress.Bar("reading") as bar:
        time.now += 0.4
        bar.update(10, 20)
    assert not bar.shown
    assert capsys.readouterr() == ("", "")


def test_lines_where_no_terminal_is(time: _Time, capsys: pytest.CaptureFixture[str]) -> None:
    """One every five seconds, with a rate, on stderr."""
    with _progress.Bar("reading") as bar:
        for done in range(1_000, 12_001, 1_000):
            time.now += 1
            bar.update(done, 12_000 if done < 10_000 else None)
    assert bar.shown
    assert capsys.readouterr().err.splitlines() == [
        "reading: 5,000 of 12,000 records, 1,000/s",
        "reading: 10,000 records, 1,000/s",
    ]


def test_a_bar_on_a_terminal(
    time: _Time, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the work turns out to be long; gone when it is done."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with _progress.Bar("reading") as bar:
        time.now += 1
        bar.update(500, 1_000)
    assert bar.shown
    assert bar.rate == 500
    assert "500 of 1,000 records, 500/s" in capsys.readouterr().err

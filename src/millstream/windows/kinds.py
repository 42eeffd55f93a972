"""The kinds of windows: what the aligned ones have in common, and all of them as one type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from millstream.clock import format_duration
from millstream.windows.calendar import Calendar
from millstream.windows.hopping import Hopping
from millstream.windows.session import Session
from millstream.windows.sliding import Sliding
from millstream.windows.tumbling import Tumbling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from millstream.windows.window import Window

__all__ = ["AlignedWindows", "AnyWindows", "form_of"]


class AlignedWindows(Protocol):
    """Windows ``[start, end)`` whose bounds depend on time alone: one is known by its start.

    The windows cover all time from 0 on. None begins before 0: of those that would, only the
    last exists, and it is cut to begin at 0. ``end`` and ``window`` take starts that `starts` gave.
    """

    @property
    def grace_ms(self) -> int: ...

    @property
    def retention_ms(self) -> int: ...

    def starts(self, timestamp: int) -> Sequence[int]:
        """Starts of the windows that contain ``timestamp``, ascending; at least one."""
        ...

    def latest(self, timestamp: int) -> int:
        """The highest of `starts`."""
        ...

    def starts_between(self, start: int, end: int) -> Iterable[int]:
        """Starts ``s`` of windows with ``start <= s < end``, ascending."""
        ...

    def end(self, start: int) -> int:
        """Where the window that begins at ``start`` ends; that moment is outside of it."""
        ...

    def window(self, start: int) -> Window:
        """The window that begins at ``start``."""
        ...

    def final_at(self, window: Window) -> int:
        """The stream time from which on the window takes no record: its end + grace."""
        ...

    def accepts(self, window: Window, stream_time: int) -> bool:
        """Whether the window takes records at that stream time, the record's own included."""
        ...

    def expires_at(self, start: int) -> int:
        """The stream time from which on the window need not be kept; never before `final_at`."""
        ...


AnyWindows = Tumbling | Hopping | Calendar | Sliding | Session
"""A declaration of windows, of any kind."""


def form_of(windows: AnyWindows) -> str:
    """Windows by what decides where they lie, without grace and retention, which may change: for people."""
    names = ("size_ms", "advance_ms", "offset_ms", "width_ms", "gap_ms", "unit", "timezone")
    facts = [(name, getattr(windows, name)) for name in names if hasattr(windows, name)]
    shown = [
        format_duration(value) if name in ("size_ms", "width_ms", "gap_ms")
        else f"{name.removesuffix('_ms')}={format_duration(value) if name.endswith('_ms') else value}"
        for name, value in facts
        if value and not (name == "advance_ms" and value == getattr(windows, "size_ms", None))
    ]  # fmt: skip
    return f"{type(windows).__name__.lower()}({', '.join(shown)})"

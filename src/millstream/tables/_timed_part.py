"""A part that keeps event time: the highest that any event has brought, committed with the events that brought it.

In a shard without journals a cut takes stream time as it is. In one with journals each event notes the time that it
brings (`Scope.times`), and the cut takes the highest of the events in it. Time is not an entry like others, or
each event would be tied to the one before: the highest of several times does not depend on their order. Only who
*acted* on a time that others brought (a window was closed by them, or expired) is tied to the event that
brought it (`TimedPart.tie`). The time is stored under a reserved key, so it survives restarts and moves with the shard.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from millstream.tables._part import MISSING, TablePart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from millstream.context import PreImage, Scope
    from millstream.windows import Window

__all__ = ["NEVER", "TIME_KEY", "Due", "DueError", "DueFirstError", "DueRow", "TimedPart"]

TIME_KEY: Final = b"\x00time"
FEEDERS_KEY: Final = b"\x00feeders"
"""Names of the agents that use the part, a line each."""
DUE_KEY: Final = b"\x00due"
"""There while an event has left something that is due to the next one, with what the part wants to know of it then."""
NEVER: Final = 1 << 62

_number = struct.Struct(">Q")


class Due(NamedTuple):
    """Something that is due: a window that is final, or what else a part has."""

    entry: Any
    """Its key in the part's dicts."""
    key: Any
    window: Window
    place: bytes
    """Where it stands in the order of closing."""


class DueRow(NamedTuple):
    """A row that a part has held back until it was due, as failures know it."""

    table: str
    place: bytes
    """Its key in the store, and what tells it from others there."""
    key: Any
    """As the program has it."""
    moment: int
    """When it was; of a window its start. With the key it names the row to people."""
    window: Window | None
    data: bytes | None
    """The value that was held, encoded."""

    @property
    def identity(self) -> tuple[str, bytes, int]:
        """By which it is known when it comes again."""
        return self.table, self.place, self.moment


class DueError(Exception):
    """A row that was due could not be handed on: the cause says why. The record at hand is not to blame."""

    def __init__(self, row: DueRow) -> None:
        super().__init__(row)
        self.row = row


class DueFirstError(Exception):
    """More is due before the event at hand than one event lets out: it is to come again when that is out."""

    def __init__(self, table: str, moment: int) -> None:
        """
        Args:
            table: which holds it.
            moment: the stream time that makes it due.
        """
        super().__init__(table, moment)
        self.table = table
        self.moment = moment


class TimedPart(TablePart):
    """Entries, and the stream time of the operator that keeps them."""

    __slots__ = (
        "_base_time",
        "_left_over",
        "_timed",
        "_written_time",
        "closing_due",
        "due_at",
        "feeders",
        "idle_ms",
        "on_due",
        "stream_time",
    )

    def __init__(self, name: str, **arguments: Any) -> None:
        """Arguments as for `TablePart`."""
        super().__init__(name, **arguments)
        self.stream_time = -1
        """The highest event time seen, committed or not."""
        self._base_time = -1
        """While events in ``_timed`` are not cut: stream time without them."""
        self._timed: dict[Scope, int] = {}
        self._written_time = -1
        self._left_over = False
        self.due_at = NEVER
        """Stream time at which something may become due."""
        self.closing_due = False
        """Whether something is due; nothing is asked of the part until it has been asked."""
        self.feeders: set[str] = set()
        """Agents that use the part: noted in any case, as an ``idle_timeout`` may come when records do not any more."""
        self.idle_ms: int | None = None
        """The part's own ``idle_timeout``."""
        self.on_due: Callable[[], None] = _nothing
        """Called once when something becomes due, in the middle of the event that brought the time."""

    def seen(self, scope: Scope) -> int:
        """Advance stream time to the event's; returns stream time."""
        return self.reached(scope.timestamp, scope)

    def reached(self, timestamp: int, scope: Scope) -> int:
        """Advance stream time to a timestamp that the event has brought; returns stream time."""
        if scope.journal is not None:
            if not self._timed:
                self._base_time = self.stream_time
            if timestamp > self._base_time and timestamp > scope.times.get(self, -1):
                scope.times[self] = self._timed[scope] = timestamp
                scope.wrote = True
        if timestamp > self.stream_time:
            self.stream_time = timestamp
            if timestamp >= self.due_at:
                self.became_due()
        return self.stream_time

    def advance(self, by: int) -> None:
        """Advance stream time from outside of any event, in ms: idle inputs, and tests."""
        timestamp = self.stream_time + by
        if self._timed and timestamp > self._base_time:
            self._base_time = timestamp
        if timestamp > self.stream_time:
            self.stream_time = timestamp
            if timestamp >= self.due_at:
                self.became_due()

    def used_by(self, agent: str) -> None:
        """Note that an agent uses the part, for the time when no record comes to tell."""
        if agent not in self.feeders:
            self.feeders.add(agent)
            self.changed_system[FEEDERS_KEY] = "\n".join(sorted(self.feeders)).encode()

    def fed_by(self, streams: Iterable[str]) -> None:
        """These streams use the part, whether or not they have done so already."""
        self.feeders.update(streams)

    def became_due(self) -> None:
        """Say that windows are final."""
        self.due_at = NEVER
        self.closing_due = True
        self.on_due()

    def more_is_due(self, mark: bytes = b"") -> None:
        """An event has let out all that one may: the rest leaves in further events, before the next record.

        Args:
            mark: given to `left_over` when the shard has been recovered meanwhile.
        """
        self._left_over = True
        self.changed_system[DUE_KEY] = mark
        self.became_due()

    def left_over(self, mark: bytes) -> None:
        """The shard was recovered in the middle of letting out what is due."""
        self.became_due()

    def nothing_is_due(self) -> None:
        """All of it is out."""
        self.closing_due = False
        if self._left_over:
            self._left_over = False
            self.changed_system[DUE_KEY] = None

    def tie(self, moment: int, scope: Scope) -> None:
        """The event acts on stream time having reached ``moment``: tie it to who brought that."""
        if scope.journal is None or not self._timed or moment <= self._base_time:
            return
        for owner, timestamp in self._timed.items():
            if timestamp >= moment:
                if owner is not scope:
                    scope.depends.add(owner)
                    scope.wrote = True
                return

    def take_times(self, events: Sequence[Scope]) -> None:
        """These events go with the next cut: so does the event time that they brought."""
        for event in events:
            timestamp = self._timed.pop(event, None)
            if timestamp is not None and timestamp > self._base_time:
                self._base_time = timestamp

    def undo_time(self, scope: Scope) -> None:
        """The event is undone: so is the event time that it brought."""
        if self._timed.pop(scope, None) is not None:
            self.stream_time = max([self._base_time, *self._timed.values()])

    @property
    def lasting_time(self) -> int:
        """Stream time without that of events which may still be undone."""
        return self._base_time if self._timed else self.stream_time

    # what is due ----------------------------------------------------------------------------------

    def due(self) -> list[Due]:
        """What is due, in order; empty when there is nothing: the part then tells again when there is."""
        self.closing_due = False
        return []

    def close(self, due: Due, scope: Scope) -> Any:
        """Take one of it, in an event: its value, or `MISSING` if it is gone."""
        return MISSING

    def held_rows(self) -> Iterator[tuple[Any, int, bytes]]:
        """What is held back: key, moment (see `DueRow`) and store key; walks over all of it."""
        return iter(())

    def close_unread(self, due: Due, scope: Scope) -> bytes | None:
        """Go past it although what was to be done cannot be; the value's bytes, where they can be had."""
        self.close(due, scope)
        return None

    # the commit -----------------------------------------------------------------------------------

    def recovered(self) -> None:
        """Read stream time, and who uses the part."""
        data = self.store.get(TIME_KEY)
        if data is not None:
            (self.stream_time,) = _number.unpack(data)
        self._base_time = self._written_time = self.stream_time
        self.feeders = set((self.store.get(FEEDERS_KEY) or b"").decode().split("\n")) - {""}
        mark = self.store.get(DUE_KEY)
        if mark is not None:
            self._left_over = True
            self.left_over(mark)

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        """Move what is dirty to ``committing``, with stream time.

        In a shard with journals `take_times` comes first.
        """
        if not self._timed:
            self._base_time = self.stream_time
        if self._base_time > self._written_time:
            self._written_time = self._base_time
            self.changed_system[TIME_KEY] = _number.pack(self._base_time)
        super().cut(excluded)


def _nothing() -> None:
    return None

"""Finding the event whose value cannot be committed.

What events write to a table is encoded at the commit, once for all of them, and where that fails nobody knows
whose value it was. So the shard starts over from its last commit and goes through the same events again, with
journals, and encodes what each of them has written when it ends. The one that fails is treated as if it had
raised there: its policy decides. Others of an epoch that was refused do not know of it.

A search goes on until the events are through that it began with, and a number of others after the last one that was
found: where there is one bad value, there are often more, and to start over for each would be dear. Where a timer or a
window's end may have written the value, it goes on until one is found, as these do not come again by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.errors import EncodeError, RecordTooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.context import Scope
    from millstream.records import TopicPartition

__all__ = ["BlameSearch", "table_value_error"]


QUIET_EVENTS = 2_000
"""After so many events without a bad value, since the last one that was found, a search is over."""


class BlameSearch:
    """One search, in one shard.

    Args:
        until: the positions, by agent and partition, up to which events may have written the value.
        callbacks: whether something else may have: timers, ``on_close``.
        quiet_events: after so many events without a bad value it is over; `QUIET_EVENTS` where left out.
    """

    def __init__(
        self,
        until: Mapping[tuple[str, TopicPartition], int],
        *,
        callbacks: bool,
        quiet_events: int | None = None,
    ) -> None:
        self._until = until
        self._callbacks = callbacks
        self._quiet_events = QUIET_EVENTS if quiet_events is None else quiet_events
        self._quiet = 0
        self._found = False

    def check(self, scope: Scope) -> None:
        """An event ends: see whether what it has written can be committed.

        Raises:
            EncodeError, RecordTooLargeError: it cannot.
        """
        self._quiet += 1
        self.look(scope)

    def look(self, scope: Scope) -> None:
        """The same, in the middle of the event."""
        for part, key in scope.journal or ():
            part.check_value(key)

    def found(self) -> None:
        """An event has been found."""
        self._found = True
        self._quiet = 0

    def is_over(self, positions: Mapping[tuple[str, TopicPartition], int]) -> bool:
        """Whether that is all, now that everything before these positions is committed."""
        looked = self._quiet >= self._quiet_events if self._found else not self._callbacks
        return looked and all(positions.get(source, -1) >= at for source, at in self._until.items())


def table_value_error(error: BaseException | None) -> EncodeError | RecordTooLargeError | None:
    """The error of a table's value in an exception, or in one that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, (EncodeError, RecordTooLargeError)) and error.table is not None:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None

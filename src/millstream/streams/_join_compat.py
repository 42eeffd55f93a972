"""When Kafka Streams lets rows without a partner out: later than they are due.

It looks only when a record with key and value is at stream time, at most once a second of wall clock, and only where
the oldest row that it remembers is out of the reach of *that record's side*. While it walks over the rows it
remembers the last one that it has seen, also where an earlier one stays. All of it is reproduced here
(``KStreamKStreamJoin.emitNonJoinedOuterRecords``), except that Kafka Streams forgets it at a restart: what is remembered
lies in a table, so that a crash changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millstream.tables import MISSING

if TYPE_CHECKING:
    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.streams._join_waiting import Waiting, WaitingPart
    from millstream.tables import TablePart

__all__ = ["KafkaRelease"]

THROTTLE_MS: Final = 1_000
MEMORY_KEY: Final = "oldest"


class KafkaRelease:
    """The release of one join's rows in one shard."""

    def __init__(
        self, part: WaitingPart, memory: TablePart, clock: Clock, *, holds_ms: dict[bool, int]
    ) -> None:
        """
        Args:
            memory: keeps, under one key, the oldest row that is remembered (None where none is), and when it
                is looked at again, by the wall clock.
            holds_ms: by side, left or not: reach and grace.
        """
        self._part = part
        self._memory = memory
        self._clock = clock
        self._holds_ms = holds_ms

    def _remembered(self, scope: Scope) -> tuple[int | None, int]:
        found = self._memory.get(MEMORY_KEY, scope)
        return (None, 0) if found is MISSING else found

    def _remember(self, least: int | None, next_ms: int, scope: Scope) -> None:
        self._memory.set(MEMORY_KEY, (least, next_ms), scope)

    def put(self, timestamp: int, scope: Scope) -> None:
        """A row begins to wait."""
        least, next_ms = self._remembered(scope)
        if least is None or timestamp < least:
            self._remember(timestamp, next_ms, scope)

    def release(self, stream_time: int, scope: Scope, *, left: bool) -> list[Waiting]:
        """Take out what a record of a side lets out."""
        hold_ms = self._holds_ms[left]
        least, next_ms = self._remembered(scope)
        if least is None:
            if hold_ms <= 0:  # else the highest long that stands for "none" wraps around
                return []
        elif least + hold_ms >= stream_time:
            return []
        now = self._clock.now()
        if now < next_ms:
            return []
        least = None
        found: list[Waiting] = []
        still_open: set[bool] = set()
        for entry in self._part.waiting_in_order():
            side, timestamp = entry[:2]
            least = timestamp
            if len(still_open) == 2:
                break
            if timestamp + self._holds_ms[side] >= stream_time:
                still_open.add(side)
            else:
                found += self._part.take(entry, scope)
        self._remember(least, now + THROTTLE_MS, scope)
        return found

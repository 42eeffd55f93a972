"""When Kafka Streams lets rows without a partner out: later than they are due.

It looks only when a record with key and value is at stream time, at most once a second of wall clock, and only where
the oldest row that it remembers is out of the reach of *that record's side*. While it walks over the rows it
remembers the last one that it has seen, also where an earlier one stays. All of it is reproduced here
(``KStreamKStreamJoin.emitNonJoinedOuterRecords``), and none of it survives a restart, there or here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.streams._join_waiting import Waiting, WaitingPart

__all__ = ["KafkaRelease"]

THROTTLE_MS: Final = 1_000


class KafkaRelease:
    """The release of one join's rows in one shard."""

    def __init__(self, part: WaitingPart, clock: Clock, *, holds_ms: dict[bool, int]) -> None:
        """
        Args:
            holds_ms: by side, left or not: reach and grace.
        """
        self._part = part
        self._clock = clock
        self._holds_ms = holds_ms
        self._least: int | None = None
        self._next_ms = 0

    def put(self, timestamp: int) -> None:
        """A row begins to wait."""
        if self._least is None or timestamp < self._least:
            self._least = timestamp

    def release(self, stream_time: int, scope: Scope, *, left: bool) -> list[Waiting]:
        """Take out what a record of a side lets out."""
        hold_ms = self._holds_ms[left]
        if self._least is None:
            if hold_ms <= 0:  # else the highest long that stands for "none" wraps around
                return []
        elif self._least + hold_ms >= stream_time:
            return []
        now = self._clock.now()
        if now < self._next_ms:
            return []
        self._next_ms = now + THROTTLE_MS
        self._least = None
        found: list[Waiting] = []
        still_open: set[bool] = set()
        for entry in self._part.waiting_in_order():
            side, timestamp = entry[:2]
            self._least = timestamp
            if len(still_open) == 2:
                break
            if timestamp + self._holds_ms[side] >= stream_time:
                still_open.add(side)
            else:
                found += self._part.take(entry, scope)
        return found

"""Records that wait for one of an agent's instances: one at a time for each key, those of a key in their order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents import Run
    from millstream.context import IncomingRecord
    from millstream.records import TopicPartition

__all__ = ["KeyQueue", "Waiting"]


class Waiting(NamedTuple):
    """A record whose turn it is, with the key that is in progress from then on; None where order is of no matter."""

    run: Run
    record: IncomingRecord
    key: Any


class KeyQueue:
    """Gives out records whose key is not in progress; nothing that it does takes longer where more of them wait.

    Args:
        order_key: tells by which key a record is ordered, if by any.
    """

    def __init__(self, order_key: Callable[[Run, IncomingRecord], Any]) -> None:
        self._order_key = order_key
        self._new: deque[tuple[Run, IncomingRecord]] = deque()
        self._freed: deque[Waiting] = deque()
        """Records that have waited for their key, which is theirs now."""
        self._behind: dict[Any, deque[Waiting]] = {}
        """By key in progress: the records that wait for it; no entry where none does."""
        self._busy: set[Any] = set()
        self._size = 0
        self._begun: dict[TopicPartition, int] = {}
        """The highest offset that was given out."""

    def __len__(self) -> int:
        return self._size

    def add(self, run: Run) -> None:
        """Take in the records of a run."""
        before = len(self._new)
        self._new.extend((run, record) for record in run.records)
        self._size += len(self._new) - before

    def take(self) -> Waiting | None:
        """The next record that may begin; None when there is none."""
        if self._freed:
            return self._give(self._freed.popleft())
        while self._new:
            run, record = self._new.popleft()
            key = self._order_key(run, record)
            if key is None:
                return self._give(Waiting(run, record, None))
            if key not in self._busy:
                self._busy.add(key)
                return self._give(Waiting(run, record, key))
            self._behind.setdefault(key, deque()).append(Waiting(run, record, key))
        return None

    def take_gap(self) -> Waiting | None:
        """The next one that may begin and has waited while records after it have begun; None when there is none."""
        for index, waiting in enumerate(self._freed):
            if waiting.record.offset < self._begun.get(waiting.run.tp, 0):
                del self._freed[index]
                return self._give(waiting)
        return None

    def _give(self, waiting: Waiting) -> Waiting:
        tp, offset = waiting.run.tp, waiting.record.offset
        if offset > self._begun.get(tp, -1):
            self._begun[tp] = offset
        self._size -= 1
        return waiting

    def finished(self, key: Any) -> None:
        """A record that was given out is through."""
        if key is None:
            return
        behind = self._behind.get(key)
        if behind is None:
            self._busy.discard(key)
            return
        self._freed.append(behind.popleft())
        if not behind:
            del self._behind[key]

    def put_back(self, waiting: Waiting) -> None:
        """A record that was given out has not begun, and is the next one."""
        self._freed.appendleft(waiting)
        self._size += 1

    def first_offset(self, tp: TopicPartition) -> int | None:
        """The lowest offset of the records of a partition that are here."""
        found = [waiting.record.offset for waiting in self._freed if waiting.run.tp == tp]
        for run, record in self._new:
            if run.tp == tp:
                found.append(record.offset)
                break
        for queue in self._behind.values():
            for waiting in queue:
                if waiting.run.tp == tp:
                    found.append(waiting.record.offset)
                    break
        return min(found, default=None)

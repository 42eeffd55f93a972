"""Whether a member whose process seems to be gone is to be removed from its group, and by whom.

A killed worker costs the group its session time-out, unless somebody who has seen it die says so. Several see
it: one acts, the next one in the circle of member ids that is not suspected itself (so it is enough that each
member watches the few before it). And a guess may be wrong: two workers that do not reach each other may both be
alive. So

- a removal is shown to be wrong when the removed *process* is in the group again, under another id. Who was
  wrong removes nobody for a time that doubles with each such mistake: however long two workers cannot reach each
  other, that ends within an hour in one removal an hour. A process that was really gone never comes back (its
  successor is another process), and so deaths are never held against anybody, however many follow one another;
- who suspects more than half of the group at once is more likely to be cut off itself, and goes no further; a
  removal counts for as long as a living process would need to come back;
- members with a place of their own (static) are left alone, unless that was asked for: they come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Failover"]

SUSPECTED_S = 60.0
"""How long a suspicion holds that is not repeated, in seconds."""
RETURN_S = 2.0
"""A process that was removed by mistake is back by then: it hears of it with its next heartbeat."""
HOLD_FIRST_S = 30.0
"""How long nobody is removed after the first mistake, in seconds; it doubles with each."""
HOLD_LONGEST_S = 3_600.0


@dataclass(slots=True, kw_only=True)
class Failover:
    """What one member suspects of the others. Times are seconds of any clock that does not go back."""

    static_too: bool = False
    _suspects: dict[str, float] = field(default_factory=dict)
    _removed: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By process: under which member id, and when."""
    _size: int = 0
    """Of the group, before the last removals."""
    _wrong_at: float = float("-inf")
    _hold_s: float = 0.0

    def may_remove(
        self,
        member_id: str,
        *,
        processes: Mapping[str, str],
        own_id: str,
        members: Mapping[str, str | None],
        now: float,
    ) -> bool:
        """Suspect a member, and tell whether to remove it now.

        Args:
            processes: which process each member is, as far as that is known.
            members: those that the group lists now, with the place of those that have one.
        """
        self._learn(processes, members, now)
        self._suspects[member_id] = now
        self._suspects = {
            name: at
            for name, at in self._suspects.items()
            if name in members and now - at < SUSPECTED_S
        }
        if member_id not in self._suspects or member_id == own_id:
            return False
        if members[member_id] is not None and not self.static_too:
            return False
        if now - self._wrong_at < self._hold_s:
            return False
        lately = sum(1 for _, at in self._removed.values() if now - at < RETURN_S)
        self._size = max(len(members), self._size if lately else 0)
        if 2 * (len(self._suspects) + lately) > self._size:
            return False
        live = sorted(members.keys() - self._suspects.keys())
        return own_id == next((name for name in live if name > member_id), live[0] if live else "")

    def removed(self, member_id: str, *, process: str, now: float) -> None:
        """Note that it was removed."""
        self._suspects.pop(member_id, None)
        self._removed[process or member_id] = member_id, now

    def _learn(
        self, processes: Mapping[str, str], members: Mapping[str, str | None], now: float
    ) -> None:
        """Find out whether a process that was removed is there again."""
        again = {
            process
            for member_id, process in processes.items()
            if member_id in members
            and process in self._removed
            and self._removed[process][0] != member_id
        }
        if again:
            forgotten = now - self._wrong_at >= self._hold_s + HOLD_LONGEST_S
            self._hold_s = HOLD_FIRST_S if forgotten else min(2 * self._hold_s, HOLD_LONGEST_S)
            self._wrong_at = now
        self._removed = {
            process: (member_id, at)
            for process, (member_id, at) in self._removed.items()
            if process not in again and now - at < HOLD_LONGEST_S
        }

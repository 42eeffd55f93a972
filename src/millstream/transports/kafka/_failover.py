"""Whether a member whose process seems to be gone is to be removed from its group, and by whom.

A killed worker costs the group its session time-out, unless somebody who has seen it die says so. Several see
it: one acts, the next one in the circle of member ids that is not suspected itself (so it is enough that each
member watches the few before it). And a guess may be wrong: two workers that do not reach each other may both be
alive. So

- the same peer is removed again only after a time that doubles (a worker that was removed by mistake joins again
  at once, under another id, and would be removed for ever);
- who suspects more than half of the group within a minute is more likely to be cut off itself, and goes no further;
- members with a place of their own (static) are left alone, unless that was asked for: they come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Failover"]

SUSPECTED_S = 60.0
"""How long a suspicion holds that is not repeated, and for how long a removal counts, in seconds."""
AGAIN_FIRST_S = 30.0
"""How long after its first removal a peer may be removed again; it doubles each time."""
AGAIN_LONGEST_S = 3_600.0


@dataclass(slots=True)
class _Removed:
    at: float
    wait_s: float


@dataclass(slots=True, kw_only=True)
class Failover:
    """What one member suspects of the others. Times are seconds of any clock that does not go back."""

    static_too: bool = False
    _suspects: dict[str, float] = field(default_factory=dict)
    _removed: dict[str, _Removed] = field(default_factory=dict)
    _size: int = 0
    """Of the group, before the removals of the last minute."""

    def may_remove(
        self,
        member_id: str,
        *,
        peer: str,
        own_id: str,
        members: Mapping[str, str | None],
        now: float,
    ) -> bool:
        """Suspect a member, and tell whether to remove it now.

        Args:
            peer: who it is across member ids.
            members: those that the group lists now, with the place of those that have one.
        """
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
        lately = sum(1 for each in self._removed.values() if now - each.at < SUSPECTED_S)
        self._size = max(len(members), self._size if lately else 0)
        if 2 * (len(self._suspects) + lately) > self._size:
            return False
        live = sorted(members.keys() - self._suspects.keys())
        if own_id != next((name for name in live if name > member_id), live[0] if live else ""):
            return False
        before = self._removed.get(peer or member_id)
        return before is None or now - before.at >= before.wait_s

    def removed(self, member_id: str, *, peer: str, now: float) -> None:
        """Note that it was removed."""
        self._suspects.pop(member_id, None)
        self._removed = {
            name: each
            for name, each in self._removed.items()
            if now - each.at < each.wait_s + AGAIN_LONGEST_S
        }
        before = self._removed.get(peer or member_id)
        wait_s = AGAIN_FIRST_S if before is None else min(2 * before.wait_s, AGAIN_LONGEST_S)
        self._removed[peer or member_id] = _Removed(now, wait_s)

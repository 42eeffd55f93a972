"""Where the copies are kept that wait for an owner to be gone.

Never where the shard is already; on a rack where there is none yet, as long as there is such a rack; then where a
copy is already; then evenly, as far as the rest allows it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.worker._assign_group import Group
    from millstream.worker._assign_wire import ShardId

__all__ = ["place_standbys"]


def place_standbys(
    group: Group, active: Mapping[ShardId, str], warming: Mapping[ShardId, str]
) -> dict[ShardId, list[str]]:
    """By shard with tables: its standbys.

    There are ``standby_replicas`` of them, or as many as there are workers that keep copies and have not got the
    shard already, to own it now or to warm it up.
    """
    placed: dict[ShardId, list[str]] = {}
    if group.replicas:
        load = dict.fromkeys(group.members, 0)
        for count in sorted(group.stateful & set(group.able)):
            owners = {
                (count, number): {
                    active[count, number],
                    warming.get((count, number), active[count, number]),
                }
                for number in range(count)
            }
            placing = _Placing(group, count, active, owners, load)
            placing.stay()
            placing.fill()
            placing.level()
            placed.update(placing.placed)
    return placed


class _Placing:
    """The standbys of one partition count; ``load`` is by worker, and goes on from count to count."""

    def __init__(
        self,
        group: Group,
        count: int,
        active: Mapping[ShardId, str],
        owners: Mapping[ShardId, set[str]],
        load: dict[str, int],
    ) -> None:
        self.placed: dict[ShardId, list[str]] = {shard: [] for shard in owners}
        self._group = group
        self._active = active
        self._owners = owners
        self._load = load
        self._rack = {name: data.rack for name, data in group.members.items()}
        self._able = {name for name in group.able[count] if group.members[name].keeps_copies}
        self._on: dict[str, set[str]] = defaultdict(set)
        for name in self._able:
            self._on[self._rack[name]].add(name)
        self._wanted = {
            shard: min(group.replicas, len(self._able - some)) for shard, some in owners.items()
        }
        self._heaps = {
            rack: sorted((load[name], name) for name in names)  # a sorted list is a heap
            for rack, names in sorted(self._on.items())
        }

    def stay(self) -> None:
        """Leave standbys where they are: those who were told to keep a copy first, then warm copies."""
        for shard, placed in self.placed.items():
            told = self._group.standbys[shard]
            left = sorted(
                self._able & {*told, *self._group.lags[shard]} - self._owners[shard],
                key=lambda n: (n not in told, not self._group.is_warm(shard, n), n),
            )
            while len(placed) < self._wanted[shard]:
                racks = self._racks(shard, self._taken(shard))
                name = next((n for n in left if self._rack[n] in racks), None)
                if name is None:
                    break
                left.remove(name)
                self._put(shard, name)

    def fill(self) -> None:
        """Add what is missing, where there is least."""
        for shard, placed in self.placed.items():
            while len(placed) < self._wanted[shard]:
                self._put(shard, self._least(shard))

    def level(self) -> None:
        """Move standbys from workers with many to workers with at least two fewer."""
        total, number = sum(self._load[name] for name in self._able), max(1, len(self._able))
        for bound in (-(-total // number), total // number):
            of: dict[str, list[ShardId]] = {name: [] for name in self._able}
            for shard, placed in self.placed.items():
                for name in placed:
                    of[name].append(shard)
            for name in sorted(self._able, key=lambda n: (-self._load[n], n)):
                # a copy that is not warm yet is no loss
                for shard in sorted(of[name], key=lambda s: (self._group.is_warm(s, name), s)):
                    if self._load[name] <= bound:
                        break
                    self._relieve(shard, name)

    def _relieve(self, shard: ShardId, name: str) -> None:
        self.placed[shard].remove(name)
        other = self._least(shard)
        if self._load[other] + 1 < self._load[name]:
            self._load[name] -= 1
            self._note(name)
            self._put(shard, other)
        else:
            self.placed[shard].append(name)

    def _taken(self, shard: ShardId) -> set[str]:
        return {*self._owners[shard], *self.placed[shard]}

    def _racks(self, shard: ShardId, taken: set[str]) -> list[str]:
        """Where the next standby goes: the racks where there is none yet, or any rack."""
        near = {self._rack[self._active[shard]], *(self._rack[n] for n in self.placed[shard])}
        far = [rack for rack, names in self._on.items() if rack not in near and names - taken]
        return far or list(self._on)

    def _put(self, shard: ShardId, name: str) -> None:
        self.placed[shard].append(name)
        self._load[name] += 1
        self._note(name)

    def _note(self, name: str) -> None:
        heapq.heappush(self._heaps[self._rack[name]], (self._load[name], name))

    def _least(self, shard: ShardId) -> str:
        """The worker with the fewest standbys of those where the next one may go."""
        taken = self._taken(shard)
        tops = [
            top
            for rack in self._racks(shard, taken)
            if (top := self._top(self._heaps[rack], taken)) is not None
        ]
        return min(tops)[1]

    def _top(self, heap: list[tuple[int, str]], taken: set[str]) -> tuple[int, str] | None:
        aside = []
        while heap:
            load, name = heap[0]
            if load == self._load[name]:
                if name not in taken:
                    break
                aside.append(heap[0])
            heapq.heappop(heap)
        top = heap[0] if heap else None
        for entry in aside:
            heapq.heappush(heap, entry)
        return top

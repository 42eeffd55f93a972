"""A group as a plan sees it: what its members say, turned round, by shard."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from millstream.worker._assign_wire import LAG_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.worker._assign_wire import MemberMetadata, ShardId

__all__ = ["ACCEPTABLE_LAG", "Group"]

ACCEPTABLE_LAG = 10_000
"""How many changelog records a copy may be behind and still be warm."""


class Group:
    """What the members say of shards that some of them can run; members are in the order of their names."""

    def __init__(self, members: Mapping[str, MemberMetadata]) -> None:
        self.members = dict(sorted(members.items()))
        self.able: dict[int, list[str]] = {
            count: [name for name, data in self.members.items() if count in data.counts]
            for count in sorted({count for data in members.values() for count in data.counts})
        }
        self.stateful = {count for data in members.values() for count in data.stateful}
        self.replicas = max((data.standby_replicas for data in members.values()), default=0)
        self.owner = self._owners()
        self.lags: dict[ShardId, dict[str, int]] = defaultdict(dict)
        """By shard: how far each copy is behind, those of owners left out."""
        self.standbys: dict[ShardId, set[str]] = defaultdict(set)
        self.warming: dict[ShardId, set[str]] = defaultdict(set)
        """By shard, both: who was told to keep a copy of it."""
        for name, data in self.members.items():
            counts = set(data.counts)
            claimed = dict.fromkeys(data.owned, LAG_UNKNOWN)  # another one owns it by now
            for shard, lag in {**claimed, **data.held}.items():
                if shard[0] in counts and self.owner.get(shard) != name:
                    self.lags[shard][name] = lag
            for shard in data.standby:
                self.standbys[shard].add(name)
            for shard in data.warming:
                self.warming[shard].add(name)

    def _owners(self) -> dict[ShardId, str]:
        """Who owns what; where two say so, the one who was told it later is right."""
        owner: dict[ShardId, str] = {}
        for name, data in self.members.items():
            counts = set(data.counts)
            for shard in data.owned:
                if shard[0] not in counts or shard[1] >= shard[0]:
                    continue
                other = owner.get(shard)
                if other is None or self.members[other].generation < data.generation:
                    owner[shard] = name
        return owner

    def is_warm(self, shard: ShardId, name: str) -> bool:
        """Whether a worker has a copy that is close enough to the end."""
        lag = self.lags[shard].get(name)
        return lag is not None and lag <= ACCEPTABLE_LAG

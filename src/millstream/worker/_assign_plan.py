"""Which worker gets which shards: the plan of one generation, from what the workers say of themselves.

First the *target*: every shard has one owner, the owners of each partition count and the totals differ by one at
most, and as few shards as possible change hands. Of those that have to, as many as possible go where a copy of
their state is.

Then what holds *now*. A shard without tables goes to its target at once, and so does one whose target has a warm
copy. Otherwise nobody waits for state:

- while the owner lives, it goes on owning the shard, and the target warms a copy up. It tells the group when the
  copy is warm, which makes the next generation, and there the shard moves;
- when the owner is gone, the worker with the warmest copy takes over, and the target warms one up likewise. Only a
  shard of which nobody has any state goes to a worker that has to restore it from the beginning.

What a plan says is what the members repeat in their metadata the next time, so that a plan goes on where the
last one was: the target of a shard that is being warmed up stays its target.

Standbys come last: on other workers, on other racks where there are any, where they are already, and evenly.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from millstream.worker._assign_group import ACCEPTABLE_LAG, Group
from millstream.worker._assign_quotas import Demand, share_out
from millstream.worker._assign_standbys import place_standbys
from millstream.worker._assign_wire import ShardAssignment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.worker._assign_wire import MemberMetadata, ShardId

__all__ = ["plan_shards"]


def plan_shards(members: Mapping[str, MemberMetadata]) -> dict[str, ShardAssignment]:
    """The plan: the same one for the same members, in whatever order they come.

    Every shard of every partition count that a member can run has exactly one owner among those that can run it.
    """
    group = Group(members)
    target = _target(group)
    active: dict[ShardId, str] = {}
    warming: dict[ShardId, str] = {}
    for shard, worker in target.items():
        active[shard] = now = _owner_now(group, shard, worker)
        if now != worker:
            warming[shard] = worker
    standby = place_standbys(group, active, warming)
    given = {name: _Given() for name in group.members}
    for shard, worker in active.items():
        given[worker].active.append(shard)
    for shard, worker in warming.items():
        given[worker].warming.append(shard)
    for shard, workers in standby.items():
        for worker in workers:
            given[worker].standby.append(shard)
    return {name: lists.assignment() for name, lists in given.items()}


class _Given:
    def __init__(self) -> None:
        self.active: list[ShardId] = []
        self.standby: list[ShardId] = []
        self.warming: list[ShardId] = []

    def assignment(self) -> ShardAssignment:
        return ShardAssignment(
            active=tuple(sorted(self.active)),
            standby=tuple(sorted(self.standby)),
            warming=tuple(sorted(self.warming)),
        )


def _owner_now(group: Group, shard: ShardId, target: str) -> str:
    owner = group.owner.get(shard)
    if (
        owner == target
        or shard[0] not in group.stateful
        or not group.members[target].keeps_copies
        or group.is_warm(shard, target)
    ):
        return target
    if owner is not None:
        return owner
    lags = group.lags[shard]
    return min(lags, key=lambda name: (lags[name], name != target, name), default=target)


# the target


def _target(group: Group) -> dict[ShardId, str]:
    owned: dict[int, dict[str, list[ShardId]]] = {count: {} for count in group.able}
    for shard, name in sorted(group.owner.items()):
        owned[shard[0]].setdefault(name, []).append(shard)
    quotas = share_out([_demand(group, count, owned[count]) for count in group.able])
    target: dict[ShardId, str] = {}
    for count, quota in zip(group.able, quotas, strict=True):
        target.update(_fill(group, count, quota, owned[count]))
    return target


def _demand(group: Group, count: int, owned: Mapping[str, list[ShardId]]) -> Demand:
    within_reach = Counter(
        name
        for number in range(count)
        if (count, number) not in group.owner
        for name in group.lags[count, number]
    )
    return Demand(
        count=count,
        workers=group.able[count],
        owned={name: len(shards) for name, shards in owned.items()},
        within_reach=within_reach,
    )


def _fill(
    group: Group, count: int, quota: Mapping[str, int], owned: Mapping[str, list[ShardId]]
) -> dict[ShardId, str]:
    """The owners of the shards of one count, by quota: first who owns them, then who has a copy."""
    room = {name: quota[name] - len(owned.get(name, ())) for name in quota}
    """Below zero: so many shards have to go."""
    target: dict[ShardId, str] = {}
    loose = []
    for number in range(count):
        owner = group.owner.get((count, number))
        if owner is None or room[owner] < 0:
            loose.append((count, number))
    for shard, name in _by_copies(group, loose, room):
        owner = group.owner.get(shard)
        if shard in target or room[name] <= 0 or (owner is not None and room[owner] >= 0):
            continue
        target[shard] = name
        room[name] -= 1
        if owner is not None:
            room[owner] += 1
    # whoever still has too many keeps the first ones
    keeps = dict(quota)
    left = []
    for number in range(count):
        shard = (count, number)
        if shard in target:
            continue
        owner = group.owner.get(shard)
        if owner is not None and keeps[owner] > 0:
            keeps[owner] -= 1
            target[shard] = owner
        else:
            left.append(shard)
    # in blocks, because runs are packed shorter
    takers = (name for name in quota for _ in range(max(0, room[name])))
    target.update(zip(left, takers, strict=True))
    return target


def _by_copies(
    group: Group, loose: list[ShardId], room: Mapping[str, int]
) -> list[tuple[ShardId, str]]:
    """Workers with room that have a copy of a loose shard: warm ones first, then those told to warm up.

    Among equals, shards with little choice come first.
    """
    found = []
    for shard in loose:
        some = [(lag, name) for name, lag in group.lags[shard].items() if room[name] > 0]
        told = group.warming[shard]
        for lag, name in some:
            rank = (lag > ACCEPTABLE_LAG, name not in told, len(some), lag, shard, name)
            found.append((rank, shard, name))
    return [(shard, name) for _, shard, name in sorted(found)]

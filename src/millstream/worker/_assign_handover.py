"""Handing shards over in two rounds, for workers that write at least once.

Where an epoch is a transaction, a shard goes to its next owner at once: what the last one has not committed by then
is refused. An epoch that is not atomic cannot be refused as a whole, and so nobody may work on a shard while somebody
else does. In the first round a shard that has to move is given to nobody: its owner sees that it has lost it, stops,
commits, and says so by joining again. In that second round it goes to whoever is to have it.

Who has to let go of what is part of its assignment: nobody finds it out from what the others were given, which a member
of a Kafka group learns later, and not at all where the next rebalance has begun by then.

A member joins at once, with what its worker said last. Where that was before the worker took a shard, the group gives the
shard to another one in a single round: then its owner, which is not told to let go of it, drops what it has not committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from millstream.worker._assign import Assignor
from millstream.worker._assign_group import Group
from millstream.worker._assign_plan import plan_shards

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.worker._assign_wire import MemberMetadata, ShardAssignment, ShardId

__all__ = ["assign_in_two_rounds", "plan_in_two_rounds"]


def plan_in_two_rounds(members: Mapping[str, MemberMetadata]) -> dict[str, ShardAssignment]:
    """As `plan_shards`, without the shards that somebody else still owns; a copy that waits for one is kept."""
    group, plan = Group(members), plan_shards(members)
    let_go: dict[str, list[ShardId]] = {}
    for name, given in plan.items():
        withheld = [shard for shard in given.active if group.owner.get(shard, name) != name]
        for shard in withheld:
            let_go.setdefault(group.owner[shard], []).append(shard)
        if withheld:
            copies = [shard for shard in withheld if shard[0] in group.stateful]
            plan[name] = msgspec.structs.replace(
                given,
                active=tuple(shard for shard in given.active if shard not in withheld),
                warming=tuple(sorted((*given.warming, *copies)))
                if members[name].keeps_copies
                else given.warming,
            )
    for name, shards in let_go.items():
        plan[name] = msgspec.structs.replace(plan[name], withheld=tuple(sorted(shards)))
    return plan


assign_in_two_rounds = Assignor({1: plan_in_two_rounds})
"""The assign function of workers that write at least once."""

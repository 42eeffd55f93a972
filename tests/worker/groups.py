"""Groups of workers for the tests of assignment, and what becomes of them from generation to generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from hypothesis import strategies as st

from millstream.worker import MemberMetadata, ShardAssignment, ShardId
from millstream.worker._assign_group import ACCEPTABLE_LAG
from millstream.worker._assign_plan import plan_shards

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Members = dict[str, MemberMetadata]
Plan = dict[str, ShardAssignment]

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True).map(
    lambda counts: tuple(sorted(counts))
)


def shards_of(counts: Iterable[int]) -> list[ShardId]:
    """Every shard of these partition counts."""
    return [(count, number) for count in counts for number in range(count)]


def owners(plan: Mapping[str, ShardAssignment]) -> dict[ShardId, str]:
    """Who owns each shard; fails where two do."""
    found: dict[ShardId, str] = {}
    for name, given in plan.items():
        for shard in given.active:
            assert shard not in found, f"{shard} is given to {found[shard]} and {name}"
            found[shard] = name
    return found


def moved(members: Members, plan: Plan) -> list[ShardId]:
    """Shards that their owner has to give away."""
    now = owners(plan)
    return [s for name, data in members.items() for s in data.owned if now[s] != name]


def apply(members: Members, plan: Plan, *, lag: int = ACCEPTABLE_LAG + 1) -> Members:
    """The members after they have done what the plan says.

    A copy that is new to a worker is ``lag`` behind the end, what it had before has caught up, and what it was
    not told to keep is gone.
    """
    after = {}
    for name, data in members.items():
        given = plan[name]
        had = {*data.owned, *data.held}
        after[name] = msgspec.structs.replace(
            data,
            generation=data.generation + 1,
            owned=given.active,
            standby=given.standby,
            warming=given.warming,
            held={s: 0 if s in had else lag for s in (*given.standby, *given.warming)},
        )
    return after


def settle(members: Members) -> tuple[Members, Plan, int]:
    """Plan and apply until nothing changes: the members, the last plan, and the moves of owners on the way."""
    moves = 0
    for _ in range(20):
        plan = plan_shards(members)
        moves += len(moved(members, plan))
        after = apply(members, plan)
        if after == {
            name: msgspec.structs.replace(data, generation=data.generation + 1)
            for name, data in members.items()
        }:
            return members, plan, moves
        members = after
    raise AssertionError("the group never comes to rest")


@st.composite
def cold_groups(draw: st.DrawFn) -> Members:
    """Workers that keep no copies; each shard is owned by one of them at most, and on any disk."""
    counts = draw(COUNTS)
    names = [f"w{i}" for i in range(draw(st.integers(1, 6)))]
    owner = {shard: draw(st.sampled_from([*names, "gone"])) for shard in shards_of(counts)}
    return {
        name: MemberMetadata(
            counts=counts,
            stateful=counts,
            owned=tuple(shard for shard, who in owner.items() if who == name),
            held={shard: draw(st.integers(0, 9)) for shard in owner if draw(st.booleans())},
        )
        for name in names
    }


@st.composite
def warm_groups(draw: st.DrawFn) -> Members:
    """Workers that keep copies, on racks or not, in any state that a group may be in."""
    counts = draw(COUNTS)
    stateful = tuple(count for count in counts if draw(st.booleans()))
    names = [f"w{i}" for i in range(draw(st.integers(1, 6)))]
    racks = draw(st.sampled_from([[""], ["a", "b"], ["a", "b", "c"]]))
    owner = {shard: draw(st.sampled_from([*names, "gone"])) for shard in shards_of(counts)}
    replicas = draw(st.integers(0, 3))
    lags = st.sampled_from([0, 3, ACCEPTABLE_LAG, ACCEPTABLE_LAG + 1, 10**9])
    members = {}
    for name in names:
        others = [s for s, who in owner.items() if who != name and s[0] in stateful]
        held = {shard: draw(lags) for shard in others if draw(st.booleans())}
        told = [shard for shard in held if draw(st.booleans())]
        middle = draw(st.integers(0, len(told)))
        members[name] = MemberMetadata(
            counts=counts,
            stateful=stateful,
            rack=draw(st.sampled_from(racks)),
            standby_replicas=replicas,
            keeps_copies=True,
            owned=tuple(shard for shard, who in owner.items() if who == name),
            standby=tuple(told[:middle]),
            warming=tuple(told[middle:]),
            held=held,
        )
    return members

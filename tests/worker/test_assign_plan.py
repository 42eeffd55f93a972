"""The plan of one generation: owners, standbys, warm-ups."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from millstream.worker import MemberMetadata, ShardId
from millstream.worker._assign_group import ACCEPTABLE_LAG
from millstream.worker._assign_plan import plan_shards
from tests.worker.groups import (
    apply,
    cold_groups,
    moved,
    owners,
    settle,
    shards_of,
    warm_groups,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from tests.worker.groups import Members, Plan


def copying(counts: Sequence[int] = (4,), **facts: object) -> MemberMetadata:
    """A worker that keeps copies of shards that all have tables."""
    return MemberMetadata(
        counts=tuple(counts),
        stateful=tuple(counts),
        keeps_copies=True,
        **facts,  # type: ignore[arg-type]
    )


def assert_balanced(counts: Sequence[int], plan: Plan) -> None:
    """Any two workers differ by one shard at most, of each count and in total."""
    for some in [*([count] for count in counts), counts]:
        loads = [sum(1 for s in given.active if s[0] in some) for given in plan.values()]
        assert max(loads) - min(loads) <= 1, (some, loads)


# owners


@given(cold_groups())
def test_every_shard_has_one_owner_and_the_load_is_even(members: Members) -> None:
    """Each shard goes to exactly one worker, and no two workers differ by more than one."""
    plan = plan_shards(members)
    assert set(plan) == set(members)
    counts = next(iter(members.values())).counts
    assert sorted(owners(plan)) == shards_of(counts)
    assert_balanced(counts, plan)


@given(cold_groups().filter(lambda members: len(next(iter(members.values())).counts) == 1))
def test_no_needless_move(members: Members) -> None:
    """A shard leaves its worker only where the balance wants it."""
    (count,) = next(iter(members.values())).counts
    low, extra = divmod(count, len(members))
    held = sorted((len(data.owned) for data in members.values()), reverse=True)
    needed = sum(max(0, n - low - (i < extra)) for i, n in enumerate(held))
    assert len(moved(members, plan_shards(members))) == needed


@given(cold_groups())
def test_a_newcomer_takes_its_share_and_no_more(members: Members) -> None:
    """One worker more: at most its share moves; one fewer: what it had, and one more for each further count."""
    counts = next(iter(members.values())).counts
    before = apply(members, plan_shards(members))
    joined = {**before, "new": MemberMetadata(counts=counts, stateful=counts)}
    plan = plan_shards(joined)
    assert len(moved(joined, plan)) <= math.ceil(sum(counts) / len(joined)) + len(counts) - 1
    left = apply(joined, plan)
    del left[min(left)]
    if left:
        assert len(moved(left, plan_shards(left))) <= len(counts) - 1


@given(cold_groups())
def test_what_was_given_stays(members: Members) -> None:
    """The plan of a group that has done what the last one said is the same plan."""
    plan = plan_shards(members)
    assert plan_shards(apply(members, plan)) == plan


@given(st.one_of(cold_groups(), warm_groups()), st.randoms())
def test_the_order_of_members_is_nothing(members: Members, random: Random) -> None:
    """The same members in another order have the same plan."""
    names = random.sample(sorted(members), len(members))
    assert plan_shards({name: members[name] for name in names}) == plan_shards(members)


def test_shards_go_where_their_state_is() -> None:
    """A shard without an owner goes to a worker that has its state on disk."""
    plan = plan_shards(
        {
            "a": MemberMetadata(counts=(4,), held={(4, 2): 0, (4, 3): 0}),
            "b": MemberMetadata(counts=(4,), held={(4, 0): 0, (4, 1): 0}),
        }
    )
    assert plan["a"].active == ((4, 2), (4, 3))
    assert plan["b"].active == ((4, 0), (4, 1))


def test_workers_that_cannot_run_a_count() -> None:
    """A worker gets shards only of those partition counts for which it has agents; the others make up for it."""
    plan = plan_shards({"a": MemberMetadata(counts=(2,)), "b": MemberMetadata(counts=(2, 3))})
    assert [shard for shard in plan["a"].active if shard[0] == 3] == []
    assert [s for s in plan["b"].active if s[0] == 3] == [(3, 0), (3, 1), (3, 2)]


def test_more_workers_than_shards() -> None:
    """A worker may have nothing to do."""
    plan = plan_shards({f"w{i}": MemberMetadata(counts=(2,)) for i in range(5)})
    assert sorted(len(given.active) for given in plan.values()) == [0, 0, 0, 1, 1]


def test_nobody() -> None:
    """No member, no plan."""
    assert plan_shards({}) == {}


def test_of_two_who_claim_a_shard_the_later_is_right() -> None:
    """A worker that was away still names what it had: who was given it after that goes on owning it."""
    plan = plan_shards(
        {
            "a": MemberMetadata(counts=(1,), owned=((1, 0),), generation=4),
            "b": MemberMetadata(counts=(1,), owned=((1, 0),), generation=5),
            "c": MemberMetadata(counts=(1,), owned=((1, 0),), generation=3),
        }
    )
    assert owners(plan) == {(1, 0): "b"}


def test_claims_on_shards_that_do_not_exist() -> None:
    """What is no shard of a count that the worker runs is nothing."""
    plan = plan_shards({"a": copying((2,), owned=((2, 5), (3, 0)), held={(3, 1): 0})})
    assert owners(plan) == {(2, 0): "a", (2, 1): "a"}


# warm-ups


def test_a_shard_stays_until_its_next_owner_is_warm() -> None:
    """A newcomer makes a copy first; the shard moves with the rebalance that follows when the copy is warm."""
    old = copying(owned=tuple(shards_of([4])), generation=1)
    members = {"old": old, "new": copying()}
    first = plan_shards(members)
    assert first["old"].active == old.owned
    assert first["new"].active == ()
    warming = first["new"].warming
    assert len(warming) == 2
    behind = apply(members, first, lag=ACCEPTABLE_LAG + 1)
    assert plan_shards(behind) == first
    caught_up = apply(members, first, lag=ACCEPTABLE_LAG)
    second = plan_shards(caught_up)
    assert second["new"].active == warming
    assert second["new"].warming == ()
    assert set(second["old"].active) == set(old.owned) - set(warming)


def test_shards_move_as_they_get_warm() -> None:
    """Those that are warm do not wait for the others."""
    old = copying(owned=tuple(shards_of([4])), generation=1)
    members = {"old": old, "new": copying()}
    halfway = apply(members, plan_shards(members))
    one, other = halfway["new"].warming
    halfway["new"] = msgspec.structs.replace(halfway["new"], held={one: 10**6, other: 5})
    plan = plan_shards(halfway)
    assert plan["new"].active == (other,)
    assert plan["new"].warming == (one,)


def test_a_shard_without_tables_moves_at_once() -> None:
    """There is nothing to warm up."""
    members = {
        "old": MemberMetadata(counts=(4,), keeps_copies=True, owned=tuple(shards_of([4]))),
        "new": MemberMetadata(counts=(4,), keeps_copies=True),
    }
    plan = plan_shards(members)
    assert len(plan["new"].active) == 2
    assert plan["new"].warming == plan["old"].warming == ()


def test_a_worker_that_keeps_no_copies_gets_its_shards_at_once() -> None:
    """It restores them when it owns them."""
    members = {
        "old": copying(owned=tuple(shards_of([4]))),
        "new": MemberMetadata(counts=(4,), stateful=(4,)),
    }
    assert len(plan_shards(members)["new"].active) == 2


def test_the_warmest_copy_takes_over_when_the_owner_is_gone() -> None:
    """At once, even if it is far behind and has more than its share then; the target warms up."""
    a0, a1 = (2, 0), (2, 1)
    members = {
        "a": copying((2,), owned=(a0,), held={a1: 10**8}),
        "b": copying((2,), held={a1: 10**9}),
    }
    plan = plan_shards(members)
    assert plan["a"].active == (a0, a1)
    assert plan["b"].warming == (a1,)


def test_a_shard_of_which_nobody_has_state_goes_to_its_target() -> None:
    """Nothing is gained by waiting."""
    plan = plan_shards({"a": copying((2,)), "b": copying((2,))})
    assert (plan["a"].active, plan["b"].active) == (((2, 0),), ((2, 1),))


@given(warm_groups())
def test_nobody_takes_a_shard_cold_while_there_is_better(members: Members) -> None:
    """Who gets a shard has it, or has a warm copy, or the warmest there is when the owner is gone."""
    plan = plan_shards(members)
    stateful = next(iter(members.values())).stateful
    was = {shard: name for name, data in members.items() for shard in data.owned}
    for shard, name in owners(plan).items():
        lag = members[name].held.get(shard)
        best = min((d.held[shard] for d in members.values() if shard in d.held), default=None)
        if shard[0] not in stateful or was.get(shard) == name:
            continue
        if lag is not None and lag <= ACCEPTABLE_LAG:
            continue
        assert shard not in was, f"{shard} moved from {was.get(shard)} to {name}, which is cold"
        assert lag == best


@given(warm_groups())
def test_every_group_comes_to_rest_in_balance(members: Members) -> None:
    """Warm-ups end, every shard has one owner at any time, and in the end nobody has too much."""
    data = next(iter(members.values()))
    for _ in range(3):
        plan = plan_shards(members)
        assert sorted(owners(plan)) == shards_of(data.counts)
        members = apply(members, plan)
    _, plan, _ = settle(members)
    assert_balanced(data.counts, plan)
    assert not any(given.warming for given in plan.values())


@given(warm_groups())
def test_warming_up_costs_no_second_move(members: Members) -> None:
    """From rest, a newcomer gets its share in the end, by as many moves as if it had been warm."""
    before, _, _ = settle(members)
    data = next(iter(members.values()))
    new = MemberMetadata(
        counts=data.counts,
        stateful=data.stateful,
        standby_replicas=data.standby_replicas,
        keeps_copies=True,
    )
    _, plan, moves = settle({**before, "new": new})
    bound = math.ceil(sum(data.counts) / (len(before) + 1)) + len(data.counts) - 1
    assert moves <= bound
    assert_balanced(data.counts, plan)


@given(warm_groups())
def test_a_plan_goes_on_while_copies_are_made(members: Members) -> None:
    """As long as no copy gets warm, plans soon say what the last one said."""
    for _ in range(6):
        plan = plan_shards(members)
        members = {
            name: msgspec.structs.replace(
                data,
                generation=data.generation + 1,
                owned=plan[name].active,
                standby=plan[name].standby,
                warming=plan[name].warming,
                held={
                    shard: 0 if shard in data.owned else data.held.get(shard, 10**9)
                    for shard in (*plan[name].standby, *plan[name].warming)
                },
            )
            for name, data in members.items()
        }
    assert plan_shards(members) == plan


# standbys


def copies_of(plan: Plan) -> dict[ShardId, list[str]]:
    """Who has each shard: its owner, its standbys, and who warms it up."""
    found: dict[ShardId, list[str]] = {}
    for name, given_ in plan.items():
        for shard in (*given_.active, *given_.standby, *given_.warming):
            found.setdefault(shard, []).append(name)
    return found


@given(warm_groups())
def test_copies_are_on_different_workers(members: Members) -> None:
    """Each shard with tables has as many copies elsewhere as asked for, or one on every other worker."""
    plan = plan_shards(members)
    data = next(iter(members.values()))
    for shard, names in copies_of(plan).items():
        assert len(set(names)) == len(names)
        wanted = min(data.standby_replicas, len(members) - 1) if shard[0] in data.stateful else 0
        assert len(names) - 1 >= wanted
    standbys = Counter(shard for given_ in plan.values() for shard in given_.standby)
    assert all(number <= data.standby_replicas for number in standbys.values())


@given(warm_groups())
def test_copies_are_on_different_racks(members: Members) -> None:
    """As long as there is another rack with a free worker, no two of owner and standbys share one."""
    plan = plan_shards(members)
    owner = owners(plan)
    copies = copies_of(plan)
    racks = {data.rack for data in members.values()}
    for shard, name in owner.items():
        standbys = [other for other, given_ in plan.items() if shard in given_.standby]
        used = Counter(members[other].rack for other in [name, *standbys])
        free = {
            r
            for r in racks
            if any(d.rack == r and n not in copies[shard] for n, d in members.items())
        }
        if max(used.values()) > 1:
            assert not free - set(used), f"{shard}: {used}, and {free} free"


@given(st.integers(2, 7), st.integers(1, 12), st.integers(1, 3))
def test_standbys_are_spread_evenly(workers: int, count: int, replicas: int) -> None:
    """Workers on one rack differ by two standbys at most."""
    members = {f"w{i}": copying((count,), standby_replicas=replicas) for i in range(workers)}
    _, plan, _ = settle(members)
    loads = [len(given_.standby) for given_ in plan.values()]
    assert sum(loads) == count * min(replicas, workers - 1)
    assert max(loads) - min(loads) <= 2


def test_a_standby_takes_over() -> None:
    """When a worker is gone, those who have its shards warm own them at once, and nobody else gives any up."""
    members, plan, _ = settle({f"w{i}": copying((12,), standby_replicas=1) for i in range(4)})
    lost = plan["w0"].active
    del members["w0"]
    after = plan_shards(members)
    now = owners(after)
    assert len(lost) == 3
    assert all(lost_ in members[now[lost_]].standby for lost_ in lost)
    assert moved(members, after) == []


def test_standbys_stay_where_they_are() -> None:
    """A newcomer that owns nothing yet does not make the others' copies move about."""
    members, before, _ = settle({f"w{i}": copying((12,), standby_replicas=1) for i in range(3)})
    plan = plan_shards({**members, "new": copying((12,), standby_replicas=1)})
    gone = [
        s for name, given_ in before.items() for s in given_.standby if s not in plan[name].standby
    ]
    assert len(gone) <= 3

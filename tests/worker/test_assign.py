"""Which workers get which shards: the function that a group's leader runs, on bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from millstream.worker import (
    MemberMetadata,
    ShardAssignment,
    assign_shards,
    decode_assignment,
    encode_metadata,
)
from millstream.worker._assign import Assignor
from millstream.worker._assign_handover import assign_in_two_rounds
from millstream.worker._assign_plan import plan_shards
from tests.worker.groups import apply, owners

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.worker.groups import Members, Plan


def assigned(members: Members, assign: Assignor = assign_shards) -> Plan:
    """What a leader gives, after the way there and back."""
    found = assign({name: encode_metadata(data) for name, data in members.items()})
    return {name: decode_assignment(data) for name, data in found.items()}


def test_it_is_the_plan() -> None:
    """What arrives is what was planned for what was told."""
    members = {
        "a": MemberMetadata(counts=(4,), stateful=(4,), keeps_copies=True, standby_replicas=1),
        "b": MemberMetadata(counts=(4,), stateful=(4,), keeps_copies=True, owned=((4, 2),)),
        "c": MemberMetadata(counts=(4,), stateful=(4,), keeps_copies=True, held={(4, 0): 7}),
    }
    assert assigned(members) == plan_shards(members)


def test_nobody() -> None:
    """No member, no assignment; and an empty one is one of nothing."""
    assert assign_shards({}) == {}
    assert decode_assignment(b"") == ShardAssignment()


# versions


def plan_backwards(members: Mapping[str, MemberMetadata]) -> dict[str, ShardAssignment]:
    """A second version of the plan, told from the first by what it gives."""
    plan = plan_shards(members)
    return dict(zip(plan, reversed(plan.values()), strict=True))


OLD = Assignor({1: plan_shards})
NEW = Assignor({1: plan_shards, 2: plan_backwards})
LATER = Assignor({2: plan_backwards})


def told(assign: Assignor, *, counts: tuple[int, ...] = (5,), **facts: object) -> bytes:
    """What a worker of this release says; the newer ones say more than the older ones know."""
    versions = {OLD: (1, 1), NEW: (1, 2), LATER: (2, 2)}[assign]
    data = encode_metadata(
        MemberMetadata(
            counts=counts,
            oldest_version=versions[0],
            version=versions[1],
            **facts,  # type: ignore[arg-type]
        )
    )
    if assign is OLD:
        return data
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(data), {"of version": 2}])


def test_a_rolling_upgrade() -> None:
    """The old plan holds until the last old worker is gone, whoever leads; then the new one begins."""
    releases = {f"w{i}": OLD for i in range(3)}
    for name in [*releases, None]:
        group = {member: told(release) for member, release in releases.items()}
        leaders = set(releases.values())
        answers = [leader(group) for leader in leaders]
        assert all(answer == answers[0] for answer in answers), "leaders disagree"
        found = {member: decode_assignment(data) for member, data in answers[0].items()}
        version = 1 if OLD in leaders else 2
        assert {given.version for given in found.values()} == {version}
        metadata = {member: MemberMetadata(counts=(5,)) for member in group}
        wanted = plan_shards(metadata) if version == 1 else plan_backwards(metadata)
        assert {m: g.active for m, g in found.items()} == {m: g.active for m, g in wanted.items()}
        if name is not None:
            releases[name] = NEW
    assert set(releases.values()) == {NEW}


@pytest.mark.parametrize(
    ("at_work", "newcomer", "leader"),
    [
        (OLD, LATER, OLD),  # upgraded over two releases at once, led by those who were there
        (LATER, OLD, LATER),  # an old worker comes back
        (LATER, OLD, NEW),
    ],
)
def test_a_worker_that_is_too_far_from_the_others(
    at_work: Assignor, newcomer: Assignor, leader: Assignor
) -> None:
    """It gets nothing, and is told why; those who own shards go on."""
    group = {
        "a": told(at_work, owned=((5, 0), (5, 1), (5, 2), (5, 3))),
        "b": told(newcomer),
        "c": told(newcomer),
    }
    found = {member: decode_assignment(data) for member, data in leader(group).items()}
    assert len(found["a"].active) == 5
    assert found["a"].refused == ""
    for name in "bc":
        assert found[name].active == ()
        assert "upgrade over a release that knows both" in found[name].refused


def test_words_that_cannot_be_read() -> None:
    """Whoever says them is told, and the others share the work."""
    group = {"a": told(OLD), "b": b'{"url": "http://old"}', "c": told(OLD)}
    found = {member: decode_assignment(data) for member, data in OLD(group).items()}
    assert "cannot be read" in found["b"].refused
    assert len(owners({name: found[name] for name in "ac"})) == 5
    found = {member: decode_assignment(data) for member, data in OLD({"b": b"?"}).items()}
    assert "cannot be read" in found["b"].refused


def test_another_guarantee_in_the_same_group() -> None:
    """Those who own shards go on, whoever leads; a worker that does not say counts as one of them."""
    group = {
        "a": told(OLD, guarantee="at_least_once"),
        "b": told(OLD, guarantee="exactly_once", owned=((5, 0),)),
        "c": told(OLD, guarantee="at_least_once"),
        "d": told(OLD),
    }
    for assign in (OLD, assign_in_two_rounds):
        found = {member: decode_assignment(data) for member, data in assign(group).items()}
        assert found["b"].active
        assert (found["b"].refused, found["d"].refused) == ("", "")
        for name in "ac":
            assert found[name].active == ()
            assert "'at_least_once', and the others of its group have 'exactly_once'" in (
                found[name].refused
            )


def test_another_program_under_the_same_id() -> None:
    """Those who own shards go on, and the other is told."""
    group = {
        "a": told(OLD, topology="two agents"),
        "b": told(OLD, topology="one agent", owned=((5, 0),)),
        "c": told(OLD, topology="two agents"),
    }
    found = {member: decode_assignment(data) for member, data in OLD(group).items()}
    assert len(found["b"].active) == 5
    for name in "ac":
        assert found[name].active == ()
        assert "has [one agent], and this one has [two agents]" in found[name].refused


# size


def test_a_large_group() -> None:
    """500 workers and 10,000 shards with a standby each: about a second, and far below one record of Kafka."""
    facts = {"counts": (4_000, 6_000), "stateful": (4_000, 6_000)}
    members: Members = {
        f"millstream-{i:03}-0123456789abcdef": MemberMetadata(
            **facts,  # type: ignore[arg-type]
            url=f"http://10.0.0.{i}:8080",
            standby_replicas=1,
            keeps_copies=True,
            topology="0123456789abcdef",
        )
        for i in range(500)
    }
    took = []
    for number in (500, 499, 250):
        group = {name: encode_metadata(members[name]) for name in list(members)[-number:]}
        began = time.perf_counter()
        answer = assign_shards(group)
        took.append(time.perf_counter() - began)
        sizes = sum(map(len, group.values())), sum(map(len, answer.values()))
        print(  # noqa: T201  the figure, with -s
            f"{number} workers: {took[-1]:.2f} s, metadata {sizes[0]:,}, assignments {sizes[1]:,}"
        )
        assert sum(sizes) < 300_000
        plan = {name: decode_assignment(data) for name, data in answer.items()}
        assert len(owners(plan)) == 10_000
        assert sum(len(given.standby) for given in plan.values()) == 10_000
        members = apply({name: members[name] for name in group}, plan)
    assert max(took) < 10, "it takes a fraction of a second as a rule"

"""Which worker gets which shards."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from millstream.worker import MemberMetadata, ShardId, assign_shards, decode_assignment

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True)


def encoded(**facts: object) -> bytes:
    return msgspec.json.encode(MemberMetadata(**facts))  # type: ignore[arg-type]


def assigned(members: dict[str, MemberMetadata]) -> dict[str, list[ShardId]]:
    found = assign_shards({name: msgspec.json.encode(data) for name, data in members.items()})
    return {name: decode_assignment(data) for name, data in found.items()}


@st.composite
def groups(draw: st.DrawFn) -> dict[str, MemberMetadata]:
    """Workers of one program; each shard is owned by one of them at most, and warm anywhere."""
    counts = tuple(sorted(draw(COUNTS)))
    names = [f"w{i}" for i in range(draw(st.integers(1, 6)))]
    owners = {
        (count, number): draw(st.sampled_from([*names, "gone"]))
        for count in counts
        for number in range(count)
    }
    return {
        name: MemberMetadata(
            counts=counts,
            owned=tuple(shard for shard, owner in owners.items() if owner == name),
            warm=tuple(shard for shard in owners if draw(st.booleans())),
        )
        for name in names
    }


def expected_moves(members: dict[str, MemberMetadata], count: int) -> int:
    """How many owned shards have to move at least, for the balance."""
    low, extra = divmod(count, len(members))
    held = sorted(
        (sum(1 for shard in data.owned if shard[0] == count) for data in members.values()),
        reverse=True,
    )
    kept = sum(min(n, low + (i < extra)) for i, n in enumerate(held))
    return sum(held) - kept


@given(groups())
def test_every_shard_has_one_owner_and_the_load_is_balanced(
    members: dict[str, MemberMetadata],
) -> None:
    """Each shard goes to exactly one worker, and no two workers differ by more than one shard of a count."""
    result = assigned(members)
    assert set(result) == set(members)
    counts = next(iter(members.values())).counts
    given_away = Counter(shard for shards in result.values() for shard in shards)
    assert given_away == Counter((count, n) for count in counts for n in range(count))
    for count in counts:
        loads = [sum(1 for shard in shards if shard[0] == count) for shards in result.values()]
        assert max(loads) - min(loads) <= 1


@given(groups())
def test_no_needless_move(members: dict[str, MemberMetadata]) -> None:
    """A shard leaves its worker only where the balance wants it."""
    result = assigned(members)
    for count in next(iter(members.values())).counts:
        moved = sum(
            1
            for name, data in members.items()
            for shard in data.owned
            if shard[0] == count and shard not in result[name]
        )
        assert moved == expected_moves(members, count)


@given(groups())
def test_stable(members: dict[str, MemberMetadata]) -> None:
    """What an assignment has given stays where it is at the next one, and the order of members is nothing."""
    result = assigned(members)
    owning = {
        name: msgspec.structs.replace(data, owned=tuple(result[name]))
        for name, data in reversed(members.items())
    }
    assert assigned(owning) == result


def test_shards_go_where_their_state_is() -> None:
    """A shard without an owner goes to a worker that has its state on disk."""
    result = assigned(
        {
            "a": MemberMetadata(counts=(4,), warm=((4, 2), (4, 3))),
            "b": MemberMetadata(counts=(4,), warm=((4, 0), (4, 1))),
        }
    )
    assert result == {"a": [(4, 2), (4, 3)], "b": [(4, 0), (4, 1)]}


def test_workers_that_cannot_run_a_count() -> None:
    """A worker gets shards only of those partition counts for which it has agents."""
    result = assigned({"a": MemberMetadata(counts=(2,)), "b": MemberMetadata(counts=(2, 3))})
    assert [shard for shard in result["a"] if shard[0] == 3] == []
    assert [shard for shard in result["b"] if shard[0] == 3] == [(3, 0), (3, 1), (3, 2)]


def test_more_workers_than_shards() -> None:
    """A worker may have nothing to do."""
    result = assigned({f"w{i}": MemberMetadata(counts=(2,)) for i in range(5)})
    assert sorted(len(shards) for shards in result.values()) == [0, 0, 0, 1, 1]


def test_nobody() -> None:
    """No member, no assignment; and an empty one is read as no shards."""
    assert assign_shards({}) == {}
    assert decode_assignment(b"") == []


def test_a_large_group() -> None:
    """500 workers and 10,000 shards are assigned in about a second, also when half of them leave."""
    members = {f"w{i:03}": encoded(counts=(10_000,)) for i in range(500)}
    began = time.perf_counter()
    first = assign_shards(members)
    took = time.perf_counter() - began
    rest = {
        name: encoded(counts=(10_000,), owned=tuple(decode_assignment(data)))
        for name, data in list(first.items())[:250]
    }
    began = time.perf_counter()
    second = assign_shards(rest)
    took = max(took, time.perf_counter() - began)
    assert {len(decode_assignment(data)) for data in first.values()} == {20}
    assert {len(decode_assignment(data)) for data in second.values()} == {40}
    assert all(
        set(decode_assignment(first[name])) <= set(decode_assignment(second[name])) for name in rest
    )
    assert took < 3.0, f"{took:.1f} s; about 1 s is usual"

"""How metadata and assignments travel."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.worker import (
    MemberMetadata,
    ShardAssignment,
    decode_assignment,
    decode_metadata,
    encode_metadata,
)
from millstream.worker._assign_wire import LAG_UNKNOWN, encode_assignment

SHARDS = st.lists(
    st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))),
    unique=True,
).map(lambda shards: tuple(sorted(shards)))
LAGS = st.integers(0, 10**7) | st.just(LAG_UNKNOWN)


@given(
    st.builds(
        MemberMetadata,
        version=st.integers(1, 300),
        oldest_version=st.integers(1, 300),
        url=st.text(),
        slot=st.text(),
        rack=st.text(),
        topology=st.text(),
        counts=st.lists(st.integers(1, 10_000)).map(tuple),
        stateful=st.lists(st.integers(1, 10_000)).map(tuple),
        standby_replicas=st.integers(0, 9),
        keeps_copies=st.booleans(),
        generation=st.integers(0, 2**31 - 1),
        owned=SHARDS,
        standby=SHARDS,
        warming=SHARDS,
        process=st.text(),
        guarantee=st.text(),
        held=SHARDS.flatmap(lambda shards: st.fixed_dictionaries(dict.fromkeys(shards, LAGS))),
    )
)
def test_metadata_comes_back(metadata: MemberMetadata) -> None:
    """What a worker says is what the leader reads."""
    assert decode_metadata(encode_metadata(metadata)) == metadata


@given(
    st.builds(
        ShardAssignment,
        version=st.integers(1, 300),
        active=SHARDS,
        standby=SHARDS,
        warming=SHARDS,
        refused=st.text(),
    )
)
def test_an_assignment_comes_back(assignment: ShardAssignment) -> None:
    """What the leader gives is what a worker reads."""
    assert decode_assignment(encode_assignment(assignment)) == assignment


def test_what_a_later_version_says_more_is_skipped() -> None:
    """It appends, and an older reader does not mind."""
    data = encode_metadata(MemberMetadata(url="u"))
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(data), 1, {"more": [2]}])
    assert decode_metadata(longer) == MemberMetadata(url="u")


@pytest.mark.parametrize(
    ("shards", "bytes_max"),
    [
        ([(10_000, n) for n in range(10_000)], 30),  # one run
        ([(10_000, n) for n in range(0, 10_000, 500)], 110),  # few far apart: runs
        ([(10_000, n) for n in range(0, 10_000, 2)], 1_300),  # every other: a bitmap
    ],
)
def test_sets_of_shards_are_short(shards: list[tuple[int, int]], bytes_max: int) -> None:
    """Runs or a bitmap, whichever is shorter."""
    data = encode_assignment(ShardAssignment(active=tuple(shards)))
    assert len(data) <= bytes_max
    assert decode_assignment(data).active == tuple(shards)


@pytest.mark.parametrize(
    "active",
    [
        [[4, [0, 5]]],  # a shard beyond the count
        [[4, [0, 2**40]]],  # so many that the memory would not do
        [[4, [-1, 2]]],
        [[4, b"\x10"]],
        "text",
    ],
)
def test_what_is_no_assignment_is_refused(active: object) -> None:
    """Damaged bytes are an error and no shards."""
    with pytest.raises(msgspec.DecodeError):
        decode_assignment(msgspec.msgpack.encode([1, active, [], [], ""]))

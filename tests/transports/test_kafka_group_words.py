"""What members of a Kafka group and their leader tell each other, and what tools make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.describe_groups.v5.response import DescribedGroup, DescribedGroupMember
from kio.schema.errors import ErrorCode
from kio.schema.types import GroupId

from millstream.records import TopicPartition
from millstream.transports.base import GroupDescription
from millstream.transports.kafka._group_words import (
    Share,
    describe,
    read_metadata,
    read_share,
    write_metadata,
    write_share,
)

TOPICS = st.lists(st.text(max_size=9), unique=True, max_size=5)
PARTITIONS = st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 2**31 - 1))).map(
    lambda some: [TopicPartition(*each) for each in some]
)


@given(st.binary(), TOPICS)
def test_metadata_comes_back(metadata: bytes, topics: list[str]) -> None:
    """Whatever the topics are that stand before it."""
    assert read_metadata(write_metadata(metadata, topics)) == metadata


@given(st.binary(), st.integers(0, 2**31 - 1), PARTITIONS)
def test_a_share_comes_back(
    assigned: bytes, generation: int, partitions: list[TopicPartition]
) -> None:
    """Whatever the partitions are that stand before it."""
    share = Share(generation, assigned)
    assert read_share(write_share(share, partitions)) == share


def test_as_consumers_write_it() -> None:
    """Byte for byte: ConsumerProtocolSubscription and ConsumerProtocolAssignment, version 0."""
    assert write_metadata(b"M", ["b", "a"]) == (
        b"\0\0" + b"\0\0\0\2" + b"\0\1a\0\1b" + b"\0\0\0\1M"
    )
    tps = [TopicPartition("b", 7), TopicPartition("a", 1), TopicPartition("a", 0)]
    assert write_share(Share(5, b"S"), tps) == (
        b"\0\0"
        + b"\0\0\0\2"
        + (b"\0\1a" + b"\0\0\0\2" + b"\0\0\0\0" + b"\0\0\0\1")
        + (b"\0\1b" + b"\0\0\0\1" + b"\0\0\0\7")
        + (b"\0\0\0\5" + b"\0\0\0\5S")
    )


@given(st.integers(0, 30), st.booleans())
def test_what_was_cut_off_is_an_error(length: int, of_a_share: bool) -> None:
    """And never half of what was said."""
    whole = (
        write_share(Share(5, b"share"), [TopicPartition("t", 1)])
        if of_a_share
        else write_metadata(b"metadata", ["t"])
    )
    part = whole[: min(length, len(whole) - 1)]
    with pytest.raises(ValueError, match="too soon"):
        read_share(part) if of_a_share else read_metadata(part)


def member(name: str, metadata: bytes, assignment: bytes) -> DescribedGroupMember:
    """A member as a coordinator describes it."""
    return DescribedGroupMember(
        member_id=name,
        client_id="c",
        client_host="h",
        member_metadata=metadata,
        member_assignment=assignment,
    )


def described(*members: DescribedGroupMember) -> GroupDescription:
    """What we make of a group."""
    return describe(
        DescribedGroup(
            error_code=ErrorCode.none,
            group_id=GroupId("g"),
            group_state="Stable",
            protocol_type="consumer",
            protocol_data="millstream",
            members=members,
        )
    )


def test_a_group_is_described_in_our_words() -> None:
    """Members in order, with what they said and got; the generation is the one that their shares name."""
    found = described(
        member("b", write_metadata(b"mb", []), write_share(Share(3, b"sb"), [])),
        member("a", write_metadata(b"ma", ["t"]), write_share(Share(3, b"sa"), [])),
    )
    assert found == GroupDescription(
        group="g", generation=3, members={"a": b"ma", "b": b"mb"}, assigned={"a": b"sa", "b": b"sb"}
    )
    assert list(found.members) == ["a", "b"]


def test_a_group_in_the_middle_of_a_rebalance() -> None:
    """A coordinator tells who is there, and no more."""
    found = described(member("a", b"", b""))
    assert found == GroupDescription(group="g", generation=0, members={"a": b""}, assigned={})


def test_strangers_are_left_out() -> None:
    """Another kind of member, whose words are none of ours."""
    found = described(member("x", b"\0\1?", b"\0"), member("a", write_metadata(b"ma", []), b""))
    assert found.members == {"a": b"ma"}

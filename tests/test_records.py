"""Partitions and positions, as they are written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import ConfigurationError
from millstream.records import OutgoingRecord, Position, TopicPartition

NAMES = st.text("abcXYZ019._-", min_size=1, max_size=249)


@given(NAMES, st.integers(0, 10**6), st.integers(0, 2**62))
def test_positions_are_read_back(topic: str, partition: int, offset: int) -> None:
    """What is printed can be read."""
    position = Position(topic, partition, offset)
    assert str(position) == f"{topic}/{partition}@{offset}"
    assert Position.parse(f" {position}\n") == position
    assert position.tp == TopicPartition(topic, partition)
    assert str(position.tp) == f"{topic}/{partition}"


@pytest.mark.parametrize(
    "wrong", ["", "orders", "orders/3", "orders@3", "/1@2", "a/x@1", "a/1@-1", "a b/1@1", "a/1@1/2"]
)
def test_wrong_positions(wrong: str) -> None:
    """Anything else is an error that shows the form."""
    with pytest.raises(ConfigurationError, match=r"is not a record: write topic/partition@offset"):
        Position.parse(wrong)


def test_order() -> None:
    """Positions sort by topic, partition and offset."""
    assert sorted([Position("b", 0, 0), Position("a", 1, 0), Position("a", 0, 9)]) == [
        Position("a", 0, 9),
        Position("a", 1, 0),
        Position("b", 0, 0),
    ]


def test_outgoing_record_is_a_tuple() -> None:
    """A plain tuple in the same order serves as well."""
    assert OutgoingRecord(5, b"k", None, []) == (5, b"k", None, [])

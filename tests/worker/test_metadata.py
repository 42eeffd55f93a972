"""What travels with a committed offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import TopologyError
from millstream.worker._metadata import (
    METADATA_BYTES_MAX,
    PartitionMetadata,
    decode_metadata,
    encode_metadata,
)

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-_.", min_size=1, max_size=20)


@given(
    st.integers(-1, 2**62), st.dictionaries(NAMES, st.integers(0, 2**62), min_size=1, max_size=20)
)
def test_round_trip(stream_time: int, positions: dict[str, int]) -> None:
    """The lowest position is the offset, those ahead of it come back, and stream time with them."""
    offset, text = encode_metadata(stream_time, positions)
    found = decode_metadata(text)
    assert offset == min(positions.values())
    assert found.t == stream_time
    assert {name: found.a.get(name, offset) for name in positions} == positions


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ({"a": 5}, '{"t":7}'),  # alone: nothing is ahead
        ({"a": 5, "b": 5}, '{"t":7}'),  # together
        ({"a": 5, "b": 9}, '{"t":7,"a":{"b":9}}'),  # one ahead
    ],
)
def test_form(positions: dict[str, int], text: str) -> None:
    """Only what is ahead of the offset is written."""
    assert encode_metadata(7, positions) == (5, text)


@pytest.mark.parametrize("text", ["", "nonsense", "{", "[]", '{"t":"x"}', '{"a":[1]}', "\x00"])
def test_of_another_program(text: str) -> None:
    """What another program has written there counts as nothing."""
    assert decode_metadata(text) == PartitionMetadata()


def test_of_a_later_version() -> None:
    """Fields of a later version are passed over."""
    assert decode_metadata('{"v":9,"t":5,"zz":[1]}').t == 5


@pytest.mark.parametrize(
    ("name", "position", "time"),
    [
        ("stream:orders", 9, 5),  # of one topic, as its name is now
        ("stream:people", 8, 4),  # among several topics, as earlier versions wrote it
        ("stream:~a.+b", 7, 7),  # a pattern among them
        ("stream:order", 3, 7),  # no part of a name
        ("stream:mail", 3, 7),  # an agent's name is no topic's
        ("mail", 6, 7),
        ("people", 3, 7),
    ],
)
def test_of_a_pipeline(name: str, position: int, time: int) -> None:
    """What an earlier version kept under the names of all its topics is found under that of each one."""
    found = PartitionMetadata(
        t=7,
        a={"stream:orders": 9, "stream:names+people": 8, "stream:x+~a.+b": 7, "mail": 6},
        s={"stream:orders": 5, "stream:names+people": 4},
    )
    assert (found.position_of(name, 3), found.time_of(name)) == (position, time)


def test_size() -> None:
    """A hundred agents with names of ordinary length fit into what a broker takes."""
    positions = {f"agent-number-{i:03}": 10**9 + i for i in range(100)}
    _, text = encode_metadata(1_700_000_000_000, positions)
    assert len(text) <= METADATA_BYTES_MAX


def test_too_many_agents() -> None:
    """Positions that do not fit are an error, and never left out: their agents would repeat events."""
    positions = {f"agent-{number:03}-{'x' * 80}": number for number in range(60)}
    with pytest.raises(TopologyError, match=r"60 agents read one topic.*4,096"):
        encode_metadata(0, positions)

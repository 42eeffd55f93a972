"""Where a group's positions are."""

from __future__ import annotations

import pytest

from millstream.transports.kafka._stuck import partition_of

PARTITIONS = [
    # group, Java's hashCode of it, as an unsigned number
    ("", 0),
    ("a", 97),
    ("shop", 3529462),
    ("a group with a long name", 3817379446),
    ("é😀", 1996812),
]


@pytest.mark.parametrize(("group", "code"), PARTITIONS)
def test_the_partition_of_a_group(group: str, code: int) -> None:
    """It is that of Java's hash code, without its sign."""
    assert partition_of(group, 50) == (code & 0x7FFFFFFF) % 50

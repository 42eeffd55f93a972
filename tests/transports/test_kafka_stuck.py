"""Where a group's positions are."""

from __future__ import annotations

import pytest

from millstream.transports.kafka._stuck import partition_of

PARTITIONS = [
    # group, Java's hashCode of it
    ("", 0),
    ("a", 97),
    ("shop", 3529462),
    ("a group with a long name", -477587850),
    ("é😀", 1996812),
    ("polygenelubricants", -(2**31)),
]


@pytest.mark.parametrize(("group", "code"), PARTITIONS)
def test_the_partition_of_a_group(group: str, code: int) -> None:
    """It is that of Java's hash code, as a positive number; of the least of all there is none."""
    expected = 0 if code == -(2**31) else abs(code) % 50
    assert partition_of(group, 50) == expected

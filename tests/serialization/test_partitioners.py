"""Partitions are those of other clients."""

from __future__ import annotations

from typing import Any, cast

import aiokafka.partitioner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import ConfigurationError
from millstream.serialization import murmur2, partitioner

JAVA = [
    # key, and what Kafka's own UtilsTest.testMurmur2 expects, a signed number
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
]


@pytest.mark.parametrize(("key", "expected"), JAVA)
def test_murmur2_is_javas(key: bytes, expected: int) -> None:
    """The vectors of the Java client's test."""
    assert murmur2(key) == expected & 0xFFFF_FFFF
    assert partitioner("murmur2")(key, 100) == (expected & 0x7FFF_FFFF) % 100


@given(st.binary(max_size=100))
def test_murmur2_is_aiokafkas(key: bytes) -> None:
    """The slow implementation is the oracle."""
    oracle = cast("Any", aiokafka.partitioner).murmur2
    assert murmur2(key) == oracle(key) & 0xFFFF_FFFF


def test_crc32_is_librdkafkas() -> None:
    """The check value of CRC-32, modulo the count."""
    assert partitioner("crc32")(b"123456789", 1_000) == 0xCBF43926 % 1_000


@given(st.binary(), st.integers(1, 1_000), st.sampled_from(["murmur2", "crc32"]))
def test_partitions_exist(key: bytes, count: int, name: str) -> None:
    """Any key has a partition below the count."""
    assert 0 <= partitioner(name)(key, count) < count


def test_an_unknown_partitioner() -> None:
    """The message lists those that there are."""
    with pytest.raises(ConfigurationError, match="'md5' is unknown: use murmur2"):
        partitioner("md5")

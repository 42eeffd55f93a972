"""Which partition a key belongs to, as the Kafka clients of other languages compute it.

``murmur2`` is what the Java client does, and with it Kafka Streams and Connect; ``crc32`` is the
``consistent`` partitioner of librdkafka, and so of its bindings. Both depend on the key's bytes alone:
topics written by these clients are co-partitioned with ours when keys have the same bytes.

The murmur2 here takes about 1 us for a key of 10 bytes: callers keep what they asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import unpack_from

from millstream.errors import ConfigurationError

__all__ = ["Partitioner", "crc32_partition", "murmur2", "murmur2_partition", "partitioner"]

Partitioner = Callable[[bytes, int], int]
"""Key and count of partitions to partition number."""

_MASK = 0xFFFF_FFFF
_SEED = 0x9747_B28C
_MULTIPLIER = 0x5BD1_E995


def murmur2(data: bytes) -> int:
    """The 32 bits of ``org.apache.kafka.common.utils.Utils.murmur2``, as an unsigned number."""
    size = len(data)
    words = size >> 2
    found = _SEED ^ size
    for word in unpack_from(f"<{words}I", data):
        mixed = (word * _MULTIPLIER) & _MASK
        found = (found * _MULTIPLIER) ^ ((mixed ^ (mixed >> 24)) * _MULTIPLIER)
        found &= _MASK
    tail = data[words << 2 :]
    if tail:
        found = ((found ^ int.from_bytes(tail, "little")) * _MULTIPLIER) & _MASK
    found = ((found ^ (found >> 13)) * _MULTIPLIER) & _MASK
    return found ^ (found >> 15)


def murmur2_partition(key: bytes, count: int) -> int:
    """The partition as the Java client has it: ``toPositive(murmur2(key)) % count``."""
    return (murmur2(key) & 0x7FFF_FFFF) % count


def crc32_partition(key: bytes, count: int) -> int:
    """The partition as librdkafka's ``consistent`` has it."""
    return zlib.crc32(key) % count


_PARTITIONERS: dict[str, Partitioner] = {"murmur2": murmur2_partition, "crc32": crc32_partition}


def partitioner(name: str) -> Partitioner:
    """A partitioner by its name: ``murmur2`` or ``crc32``.

    Raises:
        ConfigurationError: there is none of that name.
    """
    try:
        return _PARTITIONERS[name]
    except KeyError:
        raise ConfigurationError(
            f"partitioner {name!r} is unknown: use murmur2 (as the Java client does) or crc32 (librdkafka)"
        ) from None

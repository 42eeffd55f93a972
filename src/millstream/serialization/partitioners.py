"""Which partition a key belongs to, as the Kafka clients of other languages compute it.

``murmur2`` is what the Java client does, and with it Kafka Streams and Connect; ``crc32`` is the
``consistent`` partitioner of librdkafka, and so of its bindings. Both depend on the key's bytes alone:
topics written by these clients are co-partitioned with ours when keys have the same bytes. ``any`` is said of
topics whose writers choose by something else: what we send there goes where murmur2 says.

The murmur2 here takes about 1 us for a key of 10 bytes: callers keep what they asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import unpack_from

from millstream.errors import ConfigurationError

__all__ = [
    "PARTITIONERS",
    "Partitioner",
    "any_partition",
    "crc32_partition",
    "murmur2",
    "murmur2_partition",
    "partitioner",
]

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


def any_partition(key: bytes, count: int) -> int:
    """Where we put a key in a topic whose records may be anywhere."""
    return murmur2_partition(key, count)


PARTITIONERS: dict[str, Partitioner] = {
    "murmur2": murmur2_partition,
    "crc32": crc32_partition,
    "any": any_partition,
}
"""By the name that a topic declares."""


def partitioner(name: str) -> Partitioner:
    """A partitioner by its name: ``murmur2``, ``crc32`` or ``any``.

    Raises:
        ConfigurationError: there is none of that name.
    """
    try:
        return PARTITIONERS[name]
    except KeyError:
        raise ConfigurationError(
            f"partitioner {name!r} is unknown: use murmur2 (as the Java client does), crc32"
            f" (librdkafka), or any (records of a key may be in any partition)"
        ) from None

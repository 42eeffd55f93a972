"""What workers tell their group, and what it gives them: the values, and how they travel.

Both are MessagePack arrays, to which a later version only appends: an older worker skips what it does not know,
and a newer one takes the default for what is not there. Sets of shards are packed by partition count, as runs
(``[gap, length, gap, length, ...]``) or as a bitmap, whichever is shorter: Kafka keeps the metadata and the
assignments of a whole group in one record, which may be no larger than ``message.max.bytes``.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "LAG_UNKNOWN",
    "MemberMetadata",
    "ShardAssignment",
    "ShardId",
    "decode_assignment",
    "decode_metadata",
    "encode_assignment",
    "encode_metadata",
]

ShardId = tuple[int, int]
"""Partition count and number: shard 3 of 4 is ``(4, 3)``."""

LAG_UNKNOWN = 2**63 - 1
"""The lag of a copy whose distance from the end is not known."""


class MemberMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its group."""

    version: int = 1
    """The newest version of the assignment that it understands."""
    oldest_version: int = 1
    """The oldest one."""
    url: str = ""
    """Where its queries are answered; empty where it has no web server."""
    slot: str = ""
    rack: str = ""
    """Where it stands; copies of one shard go to different racks. Empty where nobody said."""
    topology: str = ""
    counts: tuple[int, ...] = ()
    """Partition counts for which it can run shards."""
    stateful: tuple[int, ...] = ()
    """Those of them whose shards have tables."""
    standby_replicas: int = 0
    keeps_copies: bool = False
    """Whether it can follow a changelog for a shard that it does not own."""
    generation: int = 0
    """Of the last assignment that it applied, which the next three fields repeat."""
    owned: tuple[ShardId, ...] = ()
    standby: tuple[ShardId, ...] = ()
    warming: tuple[ShardId, ...] = ()
    held: dict[ShardId, int] = {}
    """The state it has on disk of shards that it does not own, with the lag in changelog records."""
    process: str = ""
    """Who it is across member ids, until it ends; empty where it did not say."""
    guarantee: str = ""
    """How it commits, ``exactly_once`` or ``at_least_once``; empty where it did not say."""


class ShardAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is given."""

    version: int = 1
    active: tuple[ShardId, ...] = ()
    """Shards that it owns."""
    standby: tuple[ShardId, ...] = ()
    """Shards of which it keeps a copy, for the case that their owner is gone."""
    warming: tuple[ShardId, ...] = ()
    """Shards of which it makes a copy in order to own them: it tells the group when the copy is warm."""
    refused: str = ""
    """Why it is given nothing, as a sentence; empty as a rule."""
    withheld: tuple[ShardId, ...] = ()
    """Shards that nobody is given because it owned them last: it lets go of them, and joins again."""


_Packed = list[tuple[int, list[int] | bytes]]
_PackedLags = list[tuple[int, list[int] | bytes, list[int]]]


class _Metadata(msgspec.Struct, array_like=True):
    version: int
    oldest_version: int
    url: str
    slot: str
    rack: str
    topology: str
    counts: list[int]
    stateful: list[int]
    standby_replicas: int
    keeps_copies: bool
    generation: int
    owned: _Packed
    standby: _Packed
    warming: _Packed
    held: _PackedLags
    process: str = ""
    guarantee: str = ""


class _Assignment(msgspec.Struct, array_like=True):
    version: int
    active: _Packed
    standby: _Packed
    warming: _Packed
    refused: str
    withheld: _Packed = []


_encode = msgspec.msgpack.Encoder().encode
_decode_metadata = msgspec.msgpack.Decoder(_Metadata).decode
_decode_assignment = msgspec.msgpack.Decoder(_Assignment).decode


def encode_metadata(metadata: MemberMetadata) -> bytes:
    """What travels to the group."""
    return _encode(
        _Metadata(
            version=metadata.version,
            oldest_version=metadata.oldest_version,
            url=metadata.url,
            slot=metadata.slot,
            rack=metadata.rack,
            topology=metadata.topology,
            counts=list(metadata.counts),
            stateful=list(metadata.stateful),
            standby_replicas=metadata.standby_replicas,
            keeps_copies=metadata.keeps_copies,
            generation=metadata.generation,
            owned=_pack(metadata.owned),
            standby=_pack(metadata.standby),
            warming=_pack(metadata.warming),
            held=[
                (count, packed, [metadata.held[count, number] for number in _unpack(count, packed)])
                for count, packed in _pack(metadata.held)
            ],
            process=metadata.process,
            guarantee=metadata.guarantee,
        )
    )


def decode_metadata(data: bytes) -> MemberMetadata:
    """What `encode_metadata` wrote, here or in another version.

    Raises:
        msgspec.DecodeError: these bytes are something else.
    """
    wire = _decode_metadata(data)
    return MemberMetadata(
        version=wire.version,
        oldest_version=wire.oldest_version,
        url=wire.url,
        slot=wire.slot,
        rack=wire.rack,
        topology=wire.topology,
        counts=tuple(wire.counts),
        stateful=tuple(wire.stateful),
        standby_replicas=wire.standby_replicas,
        keeps_copies=wire.keeps_copies,
        generation=wire.generation,
        owned=_shards(wire.owned),
        standby=_shards(wire.standby),
        warming=_shards(wire.warming),
        held={
            (count, number): lag
            for count, packed, lags in wire.held
            for number, lag in zip(_unpack(count, packed), lags, strict=False)
        },
        process=wire.process,
        guarantee=wire.guarantee,
    )


def encode_assignment(assignment: ShardAssignment) -> bytes:
    """What travels to the member."""
    return _encode(
        _Assignment(
            version=assignment.version,
            active=_pack(assignment.active),
            standby=_pack(assignment.standby),
            warming=_pack(assignment.warming),
            refused=assignment.refused,
            withheld=_pack(assignment.withheld),
        )
    )


def decode_assignment(data: bytes) -> ShardAssignment:
    """What `encode_assignment` wrote; nothing at all is an assignment of nothing.

    Raises:
        msgspec.DecodeError: these bytes are something else.
    """
    if not data:
        return ShardAssignment()
    wire = _decode_assignment(data)
    return ShardAssignment(
        version=wire.version,
        active=_shards(wire.active),
        standby=_shards(wire.standby),
        warming=_shards(wire.warming),
        refused=wire.refused,
        withheld=_shards(wire.withheld),
    )


def _pack(shards: Iterable[ShardId]) -> _Packed:
    """Sets of numbers by count, both in order."""
    packed: _Packed = []
    for count, group in groupby(sorted(set(shards)), key=lambda shard: shard[0]):
        runs: list[int] = []
        end, bits = 0, bytearray((count + 7) // 8)
        for _, number in group:
            if runs and number == end:
                runs[-1] += 1
            else:
                runs += (number - end, 1)
            end = number + 1
            bits[number >> 3] |= 1 << (number & 7)
        bitmap = bytes(bits[: (end + 7) // 8])
        packed.append((count, bitmap if len(bitmap) < len(_encode(runs)) else runs))
    return packed


def _shards(packed: _Packed) -> tuple[ShardId, ...]:
    return tuple((count, number) for count, some in packed for number in _unpack(count, some))


def _unpack(count: int, packed: list[int] | bytes) -> list[int]:
    if isinstance(packed, bytes):
        numbers = [
            at * 8 + bit for at, byte in enumerate(packed) for bit in range(8) if byte >> bit & 1
        ]
        end = numbers[-1] + 1 if numbers else 0
    else:
        numbers, end = [], 0
        for gap, length in zip(packed[::2], packed[1::2], strict=False):
            start, end = end + gap, end + gap + length
            if gap < 0 or length < 1 or end > count:
                raise msgspec.DecodeError(f"shards {start} to {end - 1} of {count}")
            numbers += range(start, end)
    if end > count:
        raise msgspec.DecodeError(f"shard {end - 1} of {count}")
    return numbers

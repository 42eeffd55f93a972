"""Which worker gets which shards: a pure function of what the workers say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MemberMetadata", "ShardId", "assign_shards", "decode_assignment"]

ShardId = tuple[int, int]
"""Partition count and number: shard 3 of 4 is ``(4, 3)``."""


class MemberMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its group. ``owned`` and ``warm`` are shards as pairs of count and number."""

    version: int = 1
    url: str = ""
    """Where its queries are answered; empty where it has no web server."""
    slot: str = ""
    topology: str = ""
    counts: tuple[int, ...] = ()
    """Partition counts for which it can run shards."""
    owned: tuple[tuple[int, int], ...] = ()
    warm: tuple[tuple[int, int], ...] = ()
    """Shards whose state it has on disk."""
    worker: str = ""
    """Unique for each run of a worker, and stable when it joins again."""


_encode_shards = msgspec.json.Encoder().encode
_decode_shards = msgspec.json.Decoder(tuple[tuple[int, int], ...]).decode
_decode_metadata = msgspec.json.Decoder(MemberMetadata).decode


def assign_shards(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Give every shard to one member: balanced to one, and moving no more than that needs.

    A shard stays where it is, else goes where its state is, else to whoever has the fewest.
    """
    described = {member: _decode_metadata(data) for member, data in sorted(members.items())}
    result: dict[str, list[ShardId]] = {member: [] for member in described}
    for count in sorted({count for data in described.values() for count in data.counts}):
        able = {m: data for m, data in described.items() if count in data.counts}
        for member, shards in _assign_group(count, able, result).items():
            result[member] += shards
    return {member: _encode_shards(sorted(shards)) for member, shards in result.items()}


def _assign_group(
    count: int, members: Mapping[str, MemberMetadata], loaded: Mapping[str, list[Any]]
) -> dict[str, list[ShardId]]:
    low, extra = divmod(count, len(members))
    given: dict[str, list[ShardId]] = {member: [] for member in members}
    left = {(count, number) for number in range(count)}
    larger = 0

    def room(member: str) -> bool:
        held = len(given[member])
        return held < low or (held == low and larger < extra)

    def give(member: str, shard: ShardId) -> None:
        nonlocal larger
        given[member].append(shard)
        left.discard(shard)
        if len(given[member]) == low + 1:
            larger += 1

    def by_want(field: str) -> Iterable[tuple[str, ShardId]]:
        # those who would hold most come first, so that few shards move
        wants = {
            member: [shard for shard in sorted(set(getattr(data, field))) if shard in left]
            for member, data in members.items()
        }
        for member in sorted(wants, key=lambda name: (-len(wants[name]), name)):
            for shard in wants[member]:
                yield member, shard

    for field in ("owned", "warm"):
        for member, shard in list(by_want(field)):
            if shard in left and room(member):
                give(member, shard)
    for shard in sorted(left):
        member = min(
            (name for name in members if room(name)),
            key=lambda name: (len(given[name]) + len(loaded[name]), name),
        )
        give(member, shard)
    return given


def decode_assignment(data: bytes) -> list[ShardId]:
    """The shards that `assign_shards` gave a member."""
    return [(count, number) for count, number in _decode_shards(data)] if data else []

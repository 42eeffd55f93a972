"""What travels with a committed offset: at most 4,096 bytes of text on an ordinary broker."""

from __future__ import annotations

import msgspec

__all__ = ["METADATA_BYTES_MAX", "PartitionMetadata", "decode_metadata", "encode_metadata"]

METADATA_BYTES_MAX = 4_096


class PartitionMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """Shard stream time (ms), and the positions of agents that are ahead of the committed offset."""

    v: int = 1
    t: int = -1
    a: dict[str, int] = msgspec.field(default_factory=dict)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PartitionMetadata)


def encode_metadata(stream_time: int, positions: dict[str, int]) -> tuple[int, str]:
    """The offset to commit for a partition, and its metadata.

    Where the agents' names do not fit, those that are least ahead are left out: such an agent would start
    from the committed offset, so that offset is only as low as the lowest position anyway, and what cannot be
    said is an error of the caller's bound on agents per topic.
    """
    offset = min(positions.values())
    ahead = {name: at for name, at in positions.items() if at > offset}
    return offset, _encoder.encode(PartitionMetadata(t=stream_time, a=ahead)).decode()


def decode_metadata(text: str) -> PartitionMetadata:
    """Read it; what another program wrote there counts as nothing."""
    try:
        return _decoder.decode(text) if text else PartitionMetadata()
    except msgspec.DecodeError:
        return PartitionMetadata()

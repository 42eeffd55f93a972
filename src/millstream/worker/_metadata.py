"""What travels with a committed offset: at most 4,096 bytes of text on an ordinary broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from millstream.errors import TopologyError
from millstream.topology import PIPELINE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "METADATA_BYTES_MAX",
    "PartitionMetadata",
    "decode_metadata",
    "encode_metadata",
    "unfinished",
]

METADATA_BYTES_MAX = 4_096


class PartitionMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """Stream time (ms), and the positions of agents that are ahead of the committed offset, by `position_name`.

    Each sub-topology has a stream time of its own: ``t`` is the highest one of those that read the partition, and
    ``s`` has those of agents with another one.

    ``u`` is the command (``reset``, ``copy``) that has begun and not finished with the group: its tables
    do not go with its positions, and no worker goes on from there.
    """

    v: int = 1
    t: int = -1
    a: dict[str, int] = msgspec.field(default_factory=dict)
    s: dict[str, int] = msgspec.field(default_factory=dict)
    u: str = ""

    def position_of(self, name: str, offset: int) -> int:
        """Where an agent is.

        Args:
            name: see `millstream.topology.position_name`.
            offset: the committed one.
        """
        return _find(self.a, name, offset)

    def time_of(self, name: str) -> int:
        """The stream time of an agent, in ms."""
        return _find(self.s, name, self.t)

    def moved(self, positions: dict[str, int]) -> str:
        """The same with other positions of agents, as text."""
        return _encoder.encode(msgspec.structs.replace(self, a=positions)).decode()

    def check_finished(self, group: str) -> None:
        """See that no command was interrupted.

        Raises:
            TopologyError: one was; the message tells to run it again.
        """
        if self.u:
            raise TopologyError(
                f"millstream {self.u} has begun to change the positions and tables of group {group!r}, and"
                f" was interrupted: run the same millstream {self.u} again, to its end, and then go on"
            )


def _find(found: Mapping[str, int], name: str, default: int) -> int:
    if name not in found and name.startswith(PIPELINE):
        # as earlier versions wrote it: after all topics of the pipeline
        part = f"+{name.removeprefix(PIPELINE)}+"
        for other, value in found.items():
            if other.startswith(PIPELINE) and part in f"+{other.removeprefix(PIPELINE)}+":
                return value
    return found.get(name, default)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PartitionMetadata)


def unfinished(command: str) -> str:
    """Metadata that keeps workers away until ``command`` has come to its end."""
    return _encoder.encode(PartitionMetadata(u=command)).decode()


def encode_metadata(
    stream_time: int, positions: dict[str, int], times: Mapping[str, int] | None = None
) -> tuple[int, str]:
    """The offset to commit for a partition, and its metadata.

    Args:
        stream_time: the highest one of the agents that read it, in ms.
        positions: theirs.
        times: their stream times, where they are not all the same. Where there is no room for them, the
            highest one stands for all.

    Raises:
        TopologyError: so many agents with such long names read the topic that their positions do not fit.
    """
    offset = min(positions.values())
    ahead = {name: at for name, at in positions.items() if at > offset}
    others = {name: time for name, time in (times or {}).items() if time != stream_time}
    data = _encoder.encode(PartitionMetadata(t=stream_time, a=ahead, s=others))
    if len(data) > METADATA_BYTES_MAX and others:
        data = _encoder.encode(PartitionMetadata(t=stream_time, a=ahead))
    if len(data) > METADATA_BYTES_MAX:
        raise TopologyError(
            f"{len(positions)} agents read one topic, and their positions take {len(data):,} bytes where"
            f" an offset's metadata has room for {METADATA_BYTES_MAX:,}. Give them shorter names, or"
            f" let some of them read a copy: app.stream(...).through(topic)"
        )
    return offset, data.decode()


def decode_metadata(text: str) -> PartitionMetadata:
    """Read it; what another program wrote there counts as nothing."""
    try:
        return _decoder.decode(text) if text else PartitionMetadata()
    except msgspec.DecodeError:
        return PartitionMetadata()

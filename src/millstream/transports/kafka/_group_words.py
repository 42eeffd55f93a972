"""What members of a group and their leader tell each other, wrapped so that Kafka's tools can read it.

To a broker both are opaque bytes. Tools that look at a group of the type ``consumer`` read them as Kafka's
own consumers write them (ConsumerProtocol, version 0): the topics that a member subscribes to, the partitions that it
was given, and *user data*, which is ours. The topics are more than decoration: a broker forgets the committed
positions of a group with members after ``offsets.retention.minutes`` if no member subscribes to their topic.

Our part of an assignment begins with the generation, which a broker does not tell to anyone but members.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from millstream.transports.base import GroupDescription

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from kio.schema.describe_groups.v5.response import DescribedGroup

    from millstream.records import TopicPartition

__all__ = [
    "PROTOCOL",
    "PROTOCOL_TYPE",
    "Share",
    "describe",
    "read_metadata",
    "read_share",
    "write_metadata",
    "write_share",
]

PROTOCOL_TYPE = "consumer"
"""What tools look for; the offsets of other types of groups are not shown by most."""
PROTOCOL = "millstream"
"""The name of our assignor: it keeps other consumers out of the group."""

_VERSION = struct.pack(">h", 0)
_INT32 = struct.Struct(">i")


class Share(NamedTuple):
    """An assignment as a member gets it."""

    generation: int
    assigned: bytes


def write_metadata(metadata: bytes, topics: Collection[str]) -> bytes:
    """What a member says of itself."""
    return b"".join((_VERSION, _strings(sorted(topics)), _bytes(metadata)))


def read_metadata(data: bytes) -> bytes:
    """Our part of what a member says.

    Raises:
        ValueError: this is none of ours.
    """
    reader = _Reader(data)
    for _ in range(reader.count()):
        reader.string()
    return reader.data()


def write_share(share: Share, partitions: Iterable[TopicPartition]) -> bytes:
    """What a leader gives a member, which reads these partitions."""
    topics: dict[str, list[int]] = {}
    for topic, partition in sorted(partitions):
        topics.setdefault(topic, []).append(partition)
    parts = [_VERSION, _INT32.pack(len(topics))]
    for topic, numbers in topics.items():
        parts += (_string(topic), _INT32.pack(len(numbers)), *map(_INT32.pack, numbers))
    parts.append(_bytes(_INT32.pack(share.generation) + share.assigned))
    return b"".join(parts)


def read_share(data: bytes) -> Share:
    """Our part of what a leader gave.

    Raises:
        ValueError: this is none of ours.
    """
    reader = _Reader(data)
    for _ in range(reader.count()):
        reader.string()
        for _ in range(reader.count()):
            reader.take(4)
    ours = _Reader(reader.data(), at=0)
    return Share(ours.count(), ours.rest())


def describe(found: DescribedGroup) -> GroupDescription:
    """A group as its coordinator told it; what is not in our words is left out."""
    members: dict[str, bytes] = {}
    shares: dict[str, Share] = {}
    for member in sorted(found.members, key=lambda each: each.member_id):
        try:
            members[member.member_id] = (
                read_metadata(member.member_metadata) if member.member_metadata else b""
            )
            if member.member_assignment:
                shares[member.member_id] = read_share(member.member_assignment)
        except ValueError:
            continue  # no worker of ours
    return GroupDescription(
        group=found.group_id,
        generation=max((share.generation for share in shares.values()), default=0),
        members=members,
        assigned={name: share.assigned for name, share in shares.items()},
    )


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _strings(texts: Collection[str]) -> bytes:
    return _INT32.pack(len(texts)) + b"".join(map(_string, texts))


def _bytes(data: bytes) -> bytes:
    return _INT32.pack(len(data)) + data


class _Reader:
    """Takes the parts of a message one after the other; ``at`` is after its version as a rule."""

    def __init__(self, data: bytes, *, at: int = 2) -> None:
        self._whole = data
        self._at = at

    def take(self, length: int) -> bytes:
        end = self._at + length
        if length < 0 or end > len(self._whole):
            raise ValueError("a message of a group ends too soon")
        part, self._at = self._whole[self._at : end], end
        return part

    def count(self) -> int:
        return int(_INT32.unpack(self.take(4))[0])

    def string(self) -> str:
        return self.take(struct.unpack(">h", self.take(2))[0]).decode()

    def data(self) -> bytes:
        return self.take(self.count())

    def rest(self) -> bytes:
        return self.take(len(self._whole) - self._at)

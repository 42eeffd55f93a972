"""How far a copy has come: kept in the log that is copied to, as positions of a group of its own.

A position there is the offset in the *source* up to which a partition is copied, and is written in one epoch with
the records that it is about. So a copy that was interrupted goes on where it stood, and no record is copied twice.

Offsets change: the source may have gaps, where the copy has none, or markers of its own. So the places that
groups stand at are translated while their records pass by, and the translations are kept with the position.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec

from millstream.errors import ConfigurationError
from millstream.transports.base import OffsetAndMetadata
from millstream.worker._metadata import METADATA_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from millstream.records import OutgoingRecord, TopicPartition

__all__ = ["COPY_GROUP", "Progress", "checksum"]

COPY_GROUP = "millstream-copy"


class Progress(msgspec.Struct, kw_only=True):
    """How far one partition is copied."""

    source: str
    """The source topic's id: a topic that was made anew is another one."""
    at: int
    """The next offset to read in the source."""
    records: int = 0
    crc: int = 0
    """Checksum of all records that were copied."""
    places: dict[str, int] = {}
    """Offsets in the source to offsets in the copy, for positions of groups."""
    done: bool = False

    def took(
        self,
        offsets: Sequence[int],
        records: Sequence[OutgoingRecord],
        *,
        next_offset: int,
        first: int,
        wanted: Iterable[int],
    ) -> Progress:
        """What it is after some records.

        Args:
            offsets: of the records in the source.
            next_offset: where the source goes on.
            first: offset of the first of them in the copy, or one before it that holds no record.
            wanted: offsets in the source that have to be translated.
        """
        places = dict(self.places)
        for place in sorted(set(wanted)):
            if str(place) in places:
                continue
            index = next((n for n, offset in enumerate(offsets) if offset >= place), None)
            if index is not None:
                places[str(place)] = first + index
        return Progress(
            source=self.source,
            at=next_offset,
            records=self.records + len(records),
            crc=checksum(self.crc, records),
            places=places,
        )

    def encode(self, tp: TopicPartition) -> OffsetAndMetadata:
        """As a position.

        Raises:
            ConfigurationError: more groups stand in the partition than a position's metadata has room for.
        """
        text = msgspec.json.encode(self).decode()
        if len(text) > METADATA_BYTES_MAX:
            raise ConfigurationError(
                f"groups and agents stand at {len(self.places)} places in {tp}, more than can be translated"
                f" at once: copy fewer topics at a time (--topic), or let the agents catch up first"
            )
        return OffsetAndMetadata(self.at, text)

    @classmethod
    def decode(cls, found: OffsetAndMetadata) -> Progress:
        """Read a position of the copy's group.

        Raises:
            ConfigurationError: another program wrote it.
        """
        try:
            return msgspec.json.decode(found.metadata, type=cls)
        except msgspec.DecodeError as exc:
            raise ConfigurationError(
                f"group {COPY_GROUP!r} of the destination is another program's"
            ) from exc


def checksum(crc: int, records: Iterable[OutgoingRecord]) -> int:
    """A checksum over times, keys, values and headers, carried on from ``crc``."""
    for timestamp, key, value, headers in records:
        head = f"{timestamp} {None if key is None else len(key)} {None if value is None else len(value)}"
        crc = zlib.crc32(value or b"", zlib.crc32(key or b"", zlib.crc32(head.encode(), crc)))
        for name, data in headers:
            crc = zlib.crc32(data or b"", zlib.crc32(f"{name} {len(data or b'')}".encode(), crc))
    return crc

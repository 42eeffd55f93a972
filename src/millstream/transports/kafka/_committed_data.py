"""What of a fetched byte string is committed data: whole batches, nothing aborted, no markers. No I/O.

The broker names the aborted transactions of the range that it sends, by producer and first offset. A
producer's batches from there on are left out, until the marker that ends its transaction.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from aiokafka import codec
from crc32c import crc32c

from millstream.errors import ConfigurationError, LogDamagedError, TransportError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Committed", "committed_data"]

_HEADER = struct.Struct(">qiiBIhiqqq")
"""Base offset, length, leader epoch, magic, crc, attributes, last offset's delta, times, producer id."""
_FRAME_BYTES = 12
_MAGIC_AT = 16
_CHECKED_FROM = 21
_COMPRESSION = 0x07
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}


class Committed(NamedTuple):
    """Batches to hand on, the offset to go on from, and the last batch's leader epoch (-1: no batch)."""

    data: bytes
    next_offset: int
    leader_epoch: int


def committed_data(
    data: bytes, aborted: Iterable[tuple[int, int]], *, position: int, where: str
) -> Committed:
    """Take from ``data`` what is committed, from ``position`` on; a batch that is cut off stays out.

    Args:
        data: batches, back to back, as a broker sent them.
        aborted: producer id and first offset of each aborted transaction.
        position: what was asked for; earlier batches are left out, the one that holds it is not.
        where: the partition, for errors.

    Raises:
        LogDamagedError: a checksum is wrong.
        TransportError: messages in a format from before Kafka 0.11.
        ConfigurationError: a compression that cannot be read here.
    """
    ahead = sorted(aborted, key=lambda found: found[1], reverse=True)
    dropping: set[int] = set()
    kept: list[memoryview] = []
    view = memoryview(data)
    at, end, begin, epoch = 0, len(data), 0, -1
    while at + _MAGIC_AT < end:
        magic = data[at + _MAGIC_AT]
        if magic != 2:
            raise TransportError(
                f"{where}: the messages at offset {position} are in format v{magic}, from before Kafka"
                f" 0.11, and Millstream reads v2: copy the topic with a client of today"
            )
        if at + _HEADER.size > end:
            break
        base, length, batch_epoch, _, crc, attributes, last_delta, _, _, producer = (
            _HEADER.unpack_from(data, at)
        )
        after = at + _FRAME_BYTES + length
        if after > end:
            break
        if crc32c(view[at + _CHECKED_FROM : after]) != crc:
            raise LogDamagedError(f"{where}: the batch at offset {base} is damaged: wrong checksum")
        last = base + last_delta
        while ahead and ahead[-1][1] <= last:
            dropping.add(ahead.pop()[0])
        if attributes & _CONTROL:
            dropping.discard(producer)  # its transaction is over
            keep = False
        else:
            keep = last >= position and not (attributes & _TRANSACTIONAL and producer in dropping)
        if keep and attributes & _COMPRESSION:
            _check_codec(attributes & _COMPRESSION, f"{where}@{base}")
        if not keep:
            if begin < at:
                kept.append(view[begin:at])
            begin = after
        position, epoch, at = max(position, last + 1), batch_epoch, after
    if begin < at:
        kept.append(view[begin:at])
    if len(kept) == 1:
        whole = kept[0]
        return Committed(data if len(whole) == end else bytes(whole), position, epoch)
    return Committed(b"".join(kept), position, epoch)


def _check_codec(number: int, where: str) -> None:
    name = _CODECS.get(number, f"method {number}")
    if number not in _CODECS or not getattr(codec, f"has_{name}")():
        raise ConfigurationError(
            f"{where}: the batch is compressed with {name}, which cannot be read here:"
            f" pip install 'millstream[kafka]'"
        )

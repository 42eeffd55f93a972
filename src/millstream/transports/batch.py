"""Kafka's v2 record batches: built and read by aiokafka's C code, which is loaded here alone."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.record._crecords.default_records import DefaultRecordBatchBuilder
from aiokafka.record._crecords.memory_records import MemoryRecords

from millstream.errors import LogDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aiokafka.record._crecords.default_records import DefaultRecord, DefaultRecordBatch

    from millstream.records import OutgoingRecord

__all__ = [
    "BatchHeader",
    "Producer",
    "build_batch",
    "fill_batch",
    "headers_of",
    "iterate_batches",
    "iterate_records",
    "rebase",
]

_HEADER = struct.Struct(">qiiBIhiqqqhii")
_FRAME_BYTES = 12
"""Base offset and length, which come before what the length counts."""


class BatchHeader(NamedTuple):
    """The fixed front of a batch. ``size`` is that of the whole batch, in bytes; times are in ms."""

    base_offset: int
    next_offset: int
    size: int
    crc: int
    first_timestamp: int
    max_timestamp: int
    records: int


class Producer(NamedTuple):
    """Who writes a batch to a Kafka broker, which keeps its batches in the order of their sequence."""

    producer_id: int
    epoch: int
    sequence: int
    transactional: bool


NO_PRODUCER = Producer(-1, -1, -1, False)
"""That of the embedded log."""


def build_batch(
    records: Sequence[OutgoingRecord], *, offsets: Sequence[int], base_offset: int
) -> bytearray:
    """One uncompressed batch.

    Args:
        records: at least one; in memory they may be plain tuples.
        offsets: ascending, relative to ``base_offset``.
        base_offset: the offset that the batch begins at.
    """
    builder = _builder(NO_PRODUCER, 2**31 - 1)
    append = builder.append
    for offset, (timestamp, key, value, headers) in zip(offsets, records, strict=True):
        append(offset, timestamp, key, value, headers)
    batch: bytearray = builder.build()
    rebase(batch, base_offset)
    return batch


def fill_batch(
    records: Iterable[OutgoingRecord], *, producer: Producer = NO_PRODUCER, bytes_max: int
) -> tuple[bytearray, int]:
    """One uncompressed batch of the first records, at offset 0, and how many they are: at least one.

    Args:
        records: at least one; in memory they may be plain tuples.
        producer: whose batch it is.
        bytes_max: where it ends; a record that is larger has it for itself.
    """
    builder = _builder(producer, bytes_max)
    append, count = builder.append, 0
    for timestamp, key, value, headers in records:
        if append(count, timestamp, key, value, headers) is None:
            break
        count += 1
    return builder.build(), count


def _builder(producer: Producer, bytes_max: int) -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=producer.transactional,
        producer_id=producer.producer_id,
        producer_epoch=producer.epoch,
        base_sequence=producer.sequence,
        batch_size=bytes_max,
    )


def rebase(batch: bytearray, base_offset: int) -> None:
    """Have a batch begin at another offset; the checksum does not cover the offset."""
    batch[:8] = base_offset.to_bytes(8, "big")


def headers_of(data: bytes | bytearray) -> list[BatchHeader]:
    """The headers of the whole batches in ``data``; a cut-off last one is left out."""
    headers = []
    at, end = 0, len(data)
    while at + _HEADER.size <= end:
        base, length, _, _, crc, _, last_delta, first, highest, _, _, _, count = (
            _HEADER.unpack_from(data, at)
        )
        size = length + _FRAME_BYTES
        if at + size > end:
            break
        headers.append(BatchHeader(base, base + last_delta + 1, size, crc, first, highest, count))
        at += size
    return headers


def iterate_batches(
    data: bytes, *, where: str, checked: bool = False
) -> Iterator[DefaultRecordBatch]:
    """The batches of ``data``, compared with their checksums unless they are ``checked`` already.

    Raises:
        LogDamagedError: a checksum is wrong; names ``where`` and the offset.
    """
    source = MemoryRecords(data)
    while source.has_next():
        batch: Any = source.next_batch()
        if not checked and not batch.validate_crc():
            raise LogDamagedError(f"{where}: the batch at offset {batch.base_offset} is damaged")
        yield batch


def iterate_records(data: bytes, *, where: str, position: int = 0) -> Iterator[DefaultRecord]:
    """The records of ``data`` from ``position`` on, without control records."""
    for batch in iterate_batches(data, where=where):
        if batch.is_control_batch:
            continue
        for record in batch:
            if record.offset >= position:
                yield record

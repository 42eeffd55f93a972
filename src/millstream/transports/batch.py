"""Kafka's v2 record batches: built and read by aiokafka's C code, which is loaded here alone."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiokafka.record._crecords.cutil import crc32c_cython
from aiokafka.record._crecords.default_records import DefaultRecordBatchBuilder
from aiokafka.record._crecords.memory_records import MemoryRecords

from millstream.errors import LogDamagedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aiokafka.record._crecords.default_records import DefaultRecord, DefaultRecordBatch

    from millstream.records import OutgoingRecord

__all__ = [
    "PACK_BYTES",
    "BatchHeader",
    "Outgoing",
    "Producer",
    "RecordPack",
    "build_batch",
    "headers_of",
    "iterate_batches",
    "iterate_records",
    "packed",
    "rebase",
    "sign",
]

_HEADER = struct.Struct(">qiiBIhiqqqhii")
_CRC, _PRODUCER = struct.Struct(">I"), struct.Struct(">qhi")
_CRC_AT, _ATTRIBUTES_AT, _PRODUCER_AT = 17, 21, 43
_TRANSACTIONAL = 0x10
_FRAME_BYTES = 12
"""Base offset and length, which come before what the length counts."""


PACK_BYTES = 1_000_000
"""A batch is at most about this large, or one record: brokers take 1,048,588 where nothing else is set."""


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


def build_batch(
    records: Sequence[OutgoingRecord], *, offsets: Sequence[int], base_offset: int
) -> bytearray:
    """One uncompressed batch.

    Args:
        records: at least one; in memory they may be plain tuples.
        offsets: ascending, relative to ``base_offset``.
        base_offset: the offset that the batch begins at.
    """
    builder = _builder(2**31 - 1)
    append = builder.append
    for offset, (timestamp, key, value, headers) in zip(offsets, records, strict=True):
        append(offset, timestamp, key, value, headers)
    batch: bytearray = builder.build()
    rebase(batch, base_offset)
    return batch


class RecordPack:
    """Records of one partition on their way into the log, encoded as they come: Kafka's batches at offset 0.

    What is encoded while it is at hand need not be kept, and be looked for in memory once more at the commit.
    """

    __slots__ = ("_batches", "_builder", "_bytes_max", "_counted", "_sized", "add", "count")

    def __init__(
        self, records: Iterable[OutgoingRecord] = (), *, bytes_max: int = PACK_BYTES
    ) -> None:
        """
        Args:
            records: the first ones; in memory they may be plain tuples.
            bytes_max: where a batch ends; a record that is larger has one for itself.
        """
        self._bytes_max = bytes_max
        self._batches: list[tuple[bytearray, int]] = []
        """Whole ones, and how many records are in each."""
        self._counted = self._sized = 0
        """Records and bytes of those."""
        self._begin()
        self.fill(records)

    def _begin(self) -> None:
        self._builder = _builder(self._bytes_max)
        self.add = self._builder.append
        """Encodes one record into the batch at hand, as its ``count``-th; None where it has to be `append` instead."""
        self.count = 0
        """Of the batch at hand. Whoever calls `add` counts."""

    def __len__(self) -> int:
        return self._counted + self.count

    @property
    def size(self) -> int:
        """Bytes of the batches."""
        return self._sized + (self._builder.size() if self.count else 0)

    def append(self, record: OutgoingRecord) -> None:
        """Encode one record."""
        self.fill((record,))

    def fill(self, records: Iterable[OutgoingRecord]) -> None:
        """Encode records."""
        add, count = self.add, self.count
        try:
            for timestamp, key, value, headers in records:
                if add(count, timestamp, key, value, headers) is None:
                    self.count = count
                    self._close()
                    add, count = self.add, 0
                    add(0, timestamp, key, value, headers)
                count += 1
        finally:
            self.count = count

    def batches(self) -> list[tuple[bytearray, int]]:
        """All of it as whole batches, and how many records each has; more may be appended afterwards."""
        self._close()
        return self._batches

    def extend(self, later: RecordPack) -> None:
        """Have what is in another one, which stays as it is, come after what is here."""
        self._batches = [*self.batches(), *later.batches()]
        self._counted += later._counted
        self._sized += later._sized

    def _close(self) -> None:
        if self.count:
            self._batches.append((self._builder.build(), self.count))
            self._counted += self.count
            self._sized += len(self._batches[-1][0])
            self._begin()


Outgoing: TypeAlias = "Sequence[OutgoingRecord] | RecordPack"
"""Records of one partition, in order, as a transport takes them."""


def packed(records: Outgoing) -> RecordPack:
    """Records as a pack, if they are none already."""
    return records if isinstance(records, RecordPack) else RecordPack(records)


def _builder(bytes_max: int) -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=bytes_max,
    )


def sign(batch: bytearray, producer: Producer) -> None:
    """Say who writes a batch, and as which of his."""
    attributes = batch[_ATTRIBUTES_AT + 1] & ~_TRANSACTIONAL
    batch[_ATTRIBUTES_AT + 1] = attributes | (_TRANSACTIONAL if producer.transactional else 0)
    _PRODUCER.pack_into(batch, _PRODUCER_AT, *producer[:3])
    _CRC.pack_into(batch, _CRC_AT, crc32c_cython(memoryview(batch)[_ATTRIBUTES_AT:]))


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

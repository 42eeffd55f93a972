"""Stored batches: slices of what is appended, and the compaction of what is kept. No I/O.

Compaction follows Kafka's cleaner. `note_latest` learns the last offset of each key in the part of
the log that is not clean yet; `compact` then goes over the log from its start and keeps a record if no
later one of its key was learnt. Offsets never change. Going from the start up keeps a tombstone's promise:
the values that it buries are gone before it goes itself.

Small batches are merged, but only if they were appended in the same hour: a merged batch counts as
appended when the newest of its parts was, so that a tombstone would stay young for ever otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aiokafka.errors import CorruptRecordException

from millstream.errors import LogDamagedError
from millstream.records import OutgoingRecord
from millstream.transports.batch import (
    build_batch,
    headers_of,
    iterate_batches,
    iterate_records,
    packed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from aiokafka.record._crecords.default_records import DefaultRecord

    from millstream.transports.batch import Outgoing

__all__ = [
    "SLICE_BYTES",
    "SLICE_RECORDS",
    "TOMBSTONE_MS",
    "Slice",
    "StoredBatch",
    "check",
    "compact",
    "first_offset_at",
    "has_tombstone",
    "note_latest",
    "read",
    "slices",
]

SLICE_BYTES = 1 << 20
SLICE_RECORDS = 10_000
TOMBSTONE_MS = 24 * 3_600_000
"""How long a tombstone stays after it was appended: Kafka's ``delete.retention.ms``."""

_MERGE_MS = 3_600_000
_SPAN_MAX = 1 << 30
"""Offsets that one batch may span: the format keeps their differences in 32 bits."""


class Slice(NamedTuple):
    """A batch on its way into the log: at offset 0 until its place is known."""

    batch: bytearray
    records: int
    max_timestamp: int


class StoredBatch(NamedTuple):
    """A batch in the log; ``appended_at`` is the wall clock when it was stored, in ms."""

    base_offset: int
    next_offset: int
    max_timestamp: int
    appended_at: int
    data: bytes


def slices(records: Outgoing) -> Iterator[Slice]:
    """The batches of what is on its way."""
    for batch, count in packed(records).batches():
        yield Slice(batch, count, headers_of(batch)[0].max_timestamp)


def read(stored: StoredBatch, *, where: str) -> list[DefaultRecord]:
    """The records of a batch.

    Raises:
        LogDamagedError: it is not one whole batch, at its place, with the right checksum.
    """
    check(stored.data, stored.base_offset, where=where)
    return list(iterate_records(stored.data, where=where))


def check(data: bytes, base_offset: int, *, where: str) -> None:
    """See that ``data`` is one whole batch at ``base_offset``, with the right checksum.

    Raises:
        LogDamagedError: it is not; names partition and offset.
    """
    headers = headers_of(data)
    if len(headers) != 1 or headers[0].size != len(data) or headers[0].base_offset != base_offset:
        raise LogDamagedError(f"{where}: the batch at offset {base_offset} is damaged")
    try:
        for _ in iterate_batches(data, where=where):
            pass
    except CorruptRecordException as exc:
        raise LogDamagedError(f"{where}: the batch at offset {base_offset} is damaged") from exc


def first_offset_at(
    batches: Iterable[StoredBatch], timestamp: int, *, start: int, where: str
) -> int | None:
    """The first offset from ``start`` on whose record has at least that timestamp, if there is one."""
    for stored in batches:
        if stored.max_timestamp >= timestamp and stored.next_offset > start:
            for record in read(stored, where=where):
                if record.timestamp >= timestamp and record.offset >= start:
                    return int(record.offset)
    return None


def note_latest(stored: StoredBatch, latest: dict[bytes, int], *, where: str) -> None:
    """Learn the last offset of each key in a batch."""
    for record in read(stored, where=where):
        if record.key is not None:
            latest[record.key] = record.offset


def has_tombstone(stored: StoredBatch, *, where: str) -> bool:
    """Whether a batch deletes a key."""
    return any(
        record.value is None and record.key is not None for record in read(stored, where=where)
    )


def compact(
    batches: Sequence[StoredBatch],
    latest: Mapping[bytes, int],
    *,
    tombstones_before: int,
    where: str,
) -> list[StoredBatch]:
    """What is left of neighbouring batches; one that loses nothing and is not merged is the same object.

    Args:
        batches: in the order of their offsets.
        latest: the last known offset of a key; keys that are not in it are kept.
        tombstones_before: tombstones appended before this moment (ms) go as well.
        where: the partition, for messages.
    """
    kept: list[StoredBatch] = []
    run = _Run()
    for stored in batches:
        records = read(stored, where=where)
        tombstones_go = stored.appended_at < tombstones_before
        left = [
            record
            for record in records
            if record.key is None
            or (
                record.offset >= latest.get(record.key, 0)
                and not (tombstones_go and record.value is None)
            )
        ]
        if run.batches and not run.takes(stored):
            kept.extend(run.result())
            run = _Run()
        run.add(stored, left, changed=len(left) < len(records))
    kept.extend(run.result())
    return kept


class _Run:
    """Neighbouring batches that become one."""

    def __init__(self) -> None:
        self.batches: list[StoredBatch] = []
        self.records: list[DefaultRecord] = []
        self._bytes = 0
        self._changed = False

    def takes(self, stored: StoredBatch) -> bool:
        first = self.batches[0]
        return (
            self._bytes + len(stored.data) <= SLICE_BYTES
            and len(self.records) < SLICE_RECORDS
            and first.appended_at // _MERGE_MS == stored.appended_at // _MERGE_MS
            and stored.next_offset - first.base_offset < _SPAN_MAX
        )

    def add(self, stored: StoredBatch, left: list[DefaultRecord], *, changed: bool) -> None:
        self.batches.append(stored)
        self.records.extend(left)
        share = len(left) / max(1, stored.next_offset - stored.base_offset) if changed else 1
        self._bytes += int(len(stored.data) * min(1, share))
        self._changed |= changed

    def result(self) -> list[StoredBatch]:
        if len(self.batches) == 1 and not self._changed:
            return self.batches
        if not self.records:
            return []
        base = self.records[0].offset
        data = build_batch(
            [
                OutgoingRecord(record.timestamp, record.key, record.value, list(record.headers))
                for record in self.records
            ],
            offsets=[record.offset - base for record in self.records],
            base_offset=base,
        )
        header = headers_of(data)[0]
        appended_at = max(stored.appended_at for stored in self.batches)
        return [
            StoredBatch(base, header.next_offset, header.max_timestamp, appended_at, bytes(data))
        ]

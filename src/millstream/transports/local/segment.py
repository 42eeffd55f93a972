"""Stored batches: slices of what is appended, and the compaction of what is kept. No I/O.

Compaction follows Kafka's cleaner. `Latest` learns the last offset of each key in the part of
the log that is not clean yet; `compact` then goes over the log from its start and keeps a record if no
later one of its key was learnt. Offsets never change. Going from the start up keeps a tombstone's promise:
the values that it buries are gone before it goes itself.

Small batches are merged, but only if they were appended in the same hour: a merged batch counts as
appended when the newest of its parts was, so that a tombstone would stay young for ever otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.errors import CorruptRecordException

from millstream.errors import LogDamagedError
from millstream.transports.batch import build_batch, headers_of, iterate_batches, packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aiokafka.record._crecords.default_records import DefaultRecord, DefaultRecordBatch

    from millstream.transports.batch import Outgoing

__all__ = [
    "TOMBSTONE_MS",
    "Compacted",
    "Latest",
    "Slice",
    "StoredBatch",
    "check",
    "compact",
    "first_offset_at",
    "read",
    "slices",
]

_MERGE_BYTES = 1 << 20
_MERGE_RECORDS = 10_000
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


class Compacted(NamedTuple):
    """What a compaction has left; ``tombstone_at`` is when the oldest batch that deletes a key was appended, in ms."""

    batches: list[StoredBatch]
    tombstone_at: int | None


def slices(records: Outgoing) -> Iterator[Slice]:
    """The batches of what is on its way."""
    for batch, count in packed(records).batches():
        yield Slice(batch, count, headers_of(batch)[0].max_timestamp)


def read(stored: StoredBatch, *, where: str) -> list[DefaultRecord]:
    """The records of a batch.

    Raises:
        LogDamagedError: it is not one whole batch, at its place, with the right checksum.
    """
    batch = _checked(stored.data, stored.base_offset, where=where)
    return [] if batch.is_control_batch else list(batch)


def check(data: bytes, base_offset: int, *, where: str) -> None:
    """See that ``data`` is one whole batch at ``base_offset``, with the right checksum.

    Raises:
        LogDamagedError: it is not; names partition and offset.
    """
    _checked(data, base_offset, where=where)


def _checked(data: bytes, base_offset: int, *, where: str) -> DefaultRecordBatch:
    headers = headers_of(data)
    if len(headers) != 1 or headers[0].size != len(data) or headers[0].base_offset != base_offset:
        raise LogDamagedError(f"{where}: the batch at offset {base_offset} is damaged")
    try:
        (batch,) = iterate_batches(data, where=where)
    except CorruptRecordException as exc:
        raise LogDamagedError(f"{where}: the batch at offset {base_offset} is damaged") from exc
    return batch


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


class Latest:
    """What the part of a log that is not clean says of its keys.

    Args:
        first: where that part begins.
        bound: no record that is noted has this offset, or a higher one.
    """

    def __init__(self, first: int, bound: int) -> None:
        self._first = first
        self._offsets: dict[bytes, int] = {}
        self._stale = bytearray(max(0, bound - first))
        """By offset, from ``first`` on: 1 where a later record of the key was noted."""

    def __len__(self) -> int:
        return len(self._offsets)

    def note(self, stored: StoredBatch, *, where: str) -> None:
        """Learn from a batch; batches come in the order of their offsets."""
        offsets, stale, first = self._offsets, self._stale, self._first
        for record in read(stored, where=where):
            key = record.key
            if key is not None:
                before = offsets.get(key)
                if before is not None:
                    stale[before - first] = 1
                offsets[key] = record.offset

    def left(
        self, records: Iterable[DefaultRecord], *, tombstones: bool
    ) -> tuple[list[DefaultRecord], bool]:
        """The records that have no later one, and whether a tombstone is among them.

        Args:
            tombstones: whether these stay.
        """
        offsets, stale, first = self._offsets, self._stale, self._first
        left: list[DefaultRecord] = []
        has_tombstone = False
        for record in records:
            key = record.key
            if key is not None:
                at = record.offset - first
                # a record of the clean part comes before all that were noted
                if stale[at] if at >= 0 else key in offsets:
                    continue
                if record.value is None:
                    if not tombstones:
                        continue
                    has_tombstone = True
            left.append(record)
        return left, has_tombstone


def compact(
    batches: Sequence[StoredBatch],
    latest: Latest,
    *,
    tombstones_before: int,
    where: str,
) -> Compacted:
    """What is left of neighbouring batches; one that loses nothing and is not merged is the same object.

    Args:
        batches: in the order of their offsets.
        latest: what decides on their records.
        tombstones_before: tombstones appended before this moment (ms) go as well.
        where: the partition, for messages.
    """
    kept: list[StoredBatch] = []
    tombstones_at: list[int] = []

    def finish(run: _Run) -> None:
        batches = run.result()
        kept.extend(batches)
        if run.has_tombstone:
            tombstones_at.extend(stored.appended_at for stored in batches)

    run = _Run()
    for stored in batches:
        records = read(stored, where=where)
        left, has_tombstone = latest.left(
            records, tombstones=stored.appended_at >= tombstones_before
        )
        if run.batches and not run.takes(stored):
            finish(run)
            run = _Run()
        run.add(stored, left, changed=len(left) < len(records), has_tombstone=has_tombstone)
    finish(run)
    return Compacted(kept, min(tombstones_at, default=None))


class _Run:
    """Neighbouring batches that become one."""

    def __init__(self) -> None:
        self.batches: list[StoredBatch] = []
        self.records: list[DefaultRecord] = []
        self.has_tombstone = False
        """Whether one of them deletes a key."""
        self._bytes = 0
        self._changed = False

    def takes(self, stored: StoredBatch) -> bool:
        first = self.batches[0]
        return (
            self._bytes + len(stored.data) <= _MERGE_BYTES
            and len(self.records) < _MERGE_RECORDS
            and first.appended_at // _MERGE_MS == stored.appended_at // _MERGE_MS
            and stored.next_offset - first.base_offset < _SPAN_MAX
        )

    def add(
        self,
        stored: StoredBatch,
        left: list[DefaultRecord],
        *,
        changed: bool,
        has_tombstone: bool,
    ) -> None:
        self.batches.append(stored)
        self.records.extend(left)
        share = len(left) / max(1, stored.next_offset - stored.base_offset) if changed else 1
        self._bytes += int(len(stored.data) * min(1, share))
        self._changed |= changed
        self.has_tombstone |= has_tombstone

    def result(self) -> list[StoredBatch]:
        if len(self.batches) == 1 and not self._changed:
            return self.batches
        if not self.records:
            return []
        base = self.records[0].offset
        # plain tuples: in memory they may be
        records: Any = [(r.timestamp, r.key, r.value, r.headers) for r in self.records]
        offsets = [record.offset - base for record in self.records]
        data = build_batch(records, offsets=offsets, base_offset=base)
        header = headers_of(data)[0]
        appended_at = max(stored.appended_at for stored in self.batches)
        return [
            StoredBatch(base, header.next_offset, header.max_timestamp, appended_at, bytes(data))
        ]

"""Topics, partitions and batches in the file: plain functions of a connection.

Functions that write expect to be called inside `LogFile.writing`, those that read may be called anywhere.
A batch is in the log from ``partitions.start_offset`` on; rows below that are rubbish that upkeep removes.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from millstream.errors import ConfigurationError, OffsetOutOfRangeError, UnknownTopicError
from millstream.records import TopicPartition
from millstream.transports.base import Fetched, TopicInfo
from millstream.transports.batch import rebase
from millstream.transports.local.segment import StoredBatch, check, first_offset_at

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from millstream.transports.base import TopicSpec
    from millstream.transports.local.segment import Slice

__all__ = [
    "FetchPlan",
    "PartitionRow",
    "Placed",
    "append",
    "check_specs",
    "create_topics",
    "delete_topics",
    "fetch",
    "offset_at",
    "out_of_range",
    "partition_row",
    "purge",
    "read_batch",
    "topics",
]


_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


class Placed(NamedTuple):
    """Where an append went: its first offset, the next free one, and its size in bytes."""

    first_offset: int
    next_offset: int
    size: int


class PartitionRow(NamedTuple):
    """A partition as the file has it."""

    id: int
    start_offset: int
    end_offset: int


def topics(connection: sqlite3.Connection) -> dict[str, TopicInfo]:
    """Every topic by name."""
    rows = connection.execute(
        "SELECT name, topic_id, retention_ms, compacted,"
        " (SELECT count(*) FROM partitions WHERE topic = name) FROM topics ORDER BY name"
    )
    return {
        name: TopicInfo(
            name=name,
            topic_id=topic_id,
            partitions=count,
            retention_ms=retention_ms,
            compacted=bool(compacted),
        )
        for name, topic_id, retention_ms, compacted, count in rows
    }


def check_specs(specs: Sequence[TopicSpec]) -> None:
    """See that these topics can be created.

    Raises:
        ConfigurationError: a name or partition count that no log takes.
    """
    for spec in specs:
        if not _TOPIC_NAME.fullmatch(spec.name) or spec.name in (".", ".."):
            raise ConfigurationError(
                f"{spec.name!r} is not a topic name: write up to 249 letters, digits, '.', '_', '-'"
            )
        if spec.partitions < 1:
            raise ConfigurationError(
                f"topic {spec.name!r}: {spec.partitions} partitions; a topic has at least one"
            )


def create_topics(connection: sqlite3.Connection, specs: Sequence[TopicSpec]) -> None:
    """Create those that do not exist."""
    for spec in specs:
        created = connection.execute(
            "INSERT OR IGNORE INTO topics (name, topic_id, retention_ms, compacted)"
            " VALUES (?, ?, ?, ?)",
            (spec.name, uuid.uuid4().hex, spec.retention_ms, spec.compacted),
        )
        if created.rowcount:
            connection.executemany(
                "INSERT INTO partitions (topic, partition) VALUES (?, ?)",
                [(spec.name, partition) for partition in range(spec.partitions)],
            )


def delete_topics(connection: sqlite3.Connection, names: Collection[str]) -> None:
    """Remove topics with everything that groups have committed in them."""
    for name in names:
        connection.execute(
            "DELETE FROM positions"
            " WHERE partition_id IN (SELECT id FROM partitions WHERE topic = ?)",
            (name,),
        )
        connection.execute(
            "UPDATE partitions SET topic = NULL, start_offset = end_offset WHERE topic = ?", (name,)
        )
        connection.execute("DELETE FROM topics WHERE name = ?", (name,))


def partition_row(
    connection: sqlite3.Connection, tp: TopicPartition, *, where: str
) -> PartitionRow:
    """One partition.

    Raises:
        UnknownTopicError: there is no such topic, or no such partition of it.
    """
    row = connection.execute(
        "SELECT id, start_offset, end_offset FROM partitions WHERE topic = ? AND partition = ?", tp
    ).fetchone()
    if row is None:
        known = connection.execute("SELECT 1 FROM topics WHERE name = ?", (tp.topic,)).fetchone()
        raise UnknownTopicError(str(TopicPartition(*tp)) if known else tp.topic, where=where)
    return PartitionRow(*row)


def append(
    connection: sqlite3.Connection,
    encoded: Mapping[TopicPartition, Sequence[Slice]],
    *,
    now: int,
    where: str,
) -> dict[TopicPartition, Placed]:
    """Put batches at the ends of their partitions."""
    placed = {}
    for tp, parts in encoded.items():
        partition = partition_row(connection, tp, where=where)
        at, size = partition.end_offset, 0
        for part in parts:
            rebase(part.batch, at)
            connection.execute(
                "INSERT INTO batches (partition_id, base_offset, next_offset, size, max_timestamp,"
                " appended_at, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    partition.id,
                    at,
                    at + part.records,
                    len(part.batch),
                    part.max_timestamp,
                    now,
                    part.batch,
                ),
            )
            at += part.records
            size += len(part.batch)
        connection.execute(
            "UPDATE partitions SET end_offset = ?, bytes = bytes + ?, dirty_bytes = dirty_bytes + ?"
            " WHERE id = ?",
            (at, size, size, partition.id),
        )
        placed[tp] = Placed(partition.end_offset, at, size)
    return placed


def purge(
    connection: sqlite3.Connection, before: Mapping[TopicPartition, int], *, where: str
) -> None:
    """Let partitions start at an offset.

    Raises:
        OffsetOutOfRangeError: beyond the end.
    """
    for tp, offset in before.items():
        partition = partition_row(connection, tp, where=where)
        if offset > partition.end_offset:
            raise out_of_range(tp, offset, partition)
        connection.execute(
            "UPDATE partitions SET start_offset = ? WHERE id = ? AND start_offset < ?",
            (offset, partition.id, offset),
        )


def offset_at(
    connection: sqlite3.Connection, tp: TopicPartition, timestamp: int, *, where: str
) -> int:
    """The first offset whose record has at least that timestamp; the end where none has."""
    partition = partition_row(connection, tp, where=where)
    candidates = (
        StoredBatch(base, after, max_timestamp, appended_at, read_batch(connection, row_id))
        for row_id, base, after, max_timestamp, appended_at in connection.execute(
            "SELECT id, base_offset, next_offset, max_timestamp, appended_at FROM batches"
            " WHERE partition_id = ? AND next_offset > ? AND max_timestamp >= ?"
            " ORDER BY base_offset",
            (partition.id, partition.start_offset, timestamp),
        )
    )
    found = first_offset_at(candidates, timestamp, start=partition.start_offset, where=str(tp))
    return partition.end_offset if found is None else found


def out_of_range(tp: TopicPartition, position: int, row: PartitionRow) -> OffsetOutOfRangeError:
    """The error for a position that a partition does not hold."""
    return OffsetOutOfRangeError(
        str(TopicPartition(*tp)), position=position, start=row.start_offset, end=row.end_offset
    )


class FetchPlan(NamedTuple):
    """What one fetch brought, and the partition that is to come first in the next one."""

    fetched: list[Fetched]
    next_first: TopicPartition | None


@dataclass(slots=True)
class _Turn:
    """A partition's part in one fetch."""

    tp: TopicPartition
    row: PartitionRow
    rows: Iterator[tuple[int, int, int, int]]
    chosen: list[tuple[int, int]]
    next_offset: int


def fetch(
    connection: sqlite3.Connection,
    positions: Mapping[TopicPartition, int],
    *,
    first: TopicPartition | None,
    max_bytes: int,
    where: str,
) -> FetchPlan:
    """What is there from these positions on; to be called inside `LogFile.reading`.

    Partitions take turns of one batch each, beginning with ``first``, until the next batch would be too
    much. Whoever was refused it begins the next fetch.
    """
    waiting = []
    for tp, position in _from(first, positions):
        row = partition_row(connection, tp, where=where)
        if not row.start_offset <= position <= row.end_offset:
            raise out_of_range(tp, position, row)
        if position < row.end_offset:
            waiting.append(_Turn(tp, row, _batches_from(connection, row, position), [], position))
    turns, total, next_first = list(waiting), 0, None
    while waiting and next_first is None:
        still = []
        for turn in waiting:
            found = next(turn.rows, None)
            if found is None:
                # All that was left has been compacted away, or this partition has no more.
                turn.next_offset = turn.row.end_offset
                continue
            row_id, base_offset, next_offset, size = found
            if total and total + size > max_bytes:
                next_first = turn.tp
                break
            total += size
            turn.chosen.append((row_id, base_offset))
            turn.next_offset = next_offset
            still.append(turn)
        waiting = still
    fetched = [
        Fetched(
            turn.tp, _read(connection, turn), turn.next_offset, turn.row.end_offset, checked=True
        )
        for turn in turns
    ]
    return FetchPlan(fetched, next_first)


def _from(
    first: TopicPartition | None, positions: Mapping[TopicPartition, int]
) -> list[tuple[TopicPartition, int]]:
    """The partitions in their order, turned so that ``first`` comes first."""
    items = [(TopicPartition(*tp), position) for tp, position in positions.items()]
    at = next((at for at, (tp, _) in enumerate(items) if tp == first), 0)
    return items[at:] + items[:at]


def _batches_from(
    connection: sqlite3.Connection, row: PartitionRow, position: int
) -> Iterator[tuple[int, int, int, int]]:
    return connection.execute(
        "SELECT id, base_offset, next_offset, size FROM batches"
        " WHERE partition_id = :id AND next_offset > :position AND base_offset >= coalesce("
        "  (SELECT max(base_offset) FROM batches"
        "   WHERE partition_id = :id AND base_offset <= :position), 0)"
        " ORDER BY base_offset",
        {"id": row.id, "position": position},
    )


def _read(connection: sqlite3.Connection, turn: _Turn) -> bytes:
    parts = []
    for row_id, base_offset in turn.chosen:
        data = read_batch(connection, row_id)
        check(data, base_offset, where=str(turn.tp))
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_batch(connection: sqlite3.Connection, row_id: int) -> bytes:
    """The batch in a row that exists."""
    # Whatever damage has made of the column, it comes as bytes, and `check` finds it.
    (data,) = connection.execute(
        "SELECT CAST(data AS BLOB) FROM batches WHERE id = ?", (row_id,)
    ).fetchone()
    return bytes(data or b"")

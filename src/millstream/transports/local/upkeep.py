"""Retention and compaction of the file, a bounded piece with each call, by one process at a time.

Retention moves a partition's start past batches that were appended too long ago; what lies below the start, and
what belonged to deleted topics, is then removed.

A compaction is a pass over one partition in two phases (see `segment`): *learning* reads the part that is not
clean up to a bound and notes the last offset of each key; *cleaning* goes over the log from its start up to that
bound. The newest batch is never touched. What a pass has learnt is in memory and may be lost at any time: each
record that cleaning has dropped until then has a later one in the log. Only when a pass is through does the
partition's ``clean_offset`` move. Batches are read and built without the lock and replaced in short transactions,
if they are still what was read.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millstream.errors import LogUnavailableError
from millstream.transports.local.groups import lease_is_over
from millstream.transports.local.log import read_batch
from millstream.transports.local.processes import boottime
from millstream.transports.local.segment import (
    TOMBSTONE_MS,
    Latest,
    StoredBatch,
    compact,
)

if TYPE_CHECKING:
    import sqlite3

    from millstream.transports.local.file import LogFile

__all__ = ["Upkeep"]

LEASE_S = 30.0
DIRTY_SHARE = 0.5
"""A pass begins when this share of a partition is not clean: Kafka's ``min.cleanable.dirty.ratio``."""
REMOVED_ROWS_MAX = 4_000
"""Batches that one call removes below the starts of partitions."""
PIECE_ROWS = 500
PIECE_BYTES = 4 << 20
"""What is read, and replaced in one transaction, at once."""
PIECES_MAX = 8
"""Pieces of compaction in one call, over all partitions."""
KEYS_MAX = 500_000
"""Keys that a pass learns; the rest of the partition waits for the next."""


@dataclass(slots=True)
class _Pass:
    """A compaction in progress."""

    partition_id: int
    where: str
    bound: int
    """Where the newest batch began when the pass did; later, where learning has stopped."""
    at: int
    """Where the phase that is running goes on."""
    latest: Latest
    learning: bool = True
    tombstone_at: int | None = None


class Upkeep:
    """One process's part in the upkeep; called in one thread."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._holder = uuid.uuid4().hex
        self._pass: _Pass | None = None
        self.held = False

    def run(self, connection: sqlite3.Connection, now: int) -> None:
        """One call's worth of work, if no other process is at it. ``now`` is the wall clock in ms."""
        with self._file.writing(connection):
            if not self._hold(connection):
                self._pass = None
                return
            self._retain(connection, now)
        self._remove(connection)
        for _ in range(PIECES_MAX):
            if self._pass is None:
                self._pass = self._next_pass(connection, now)
            if self._pass is None:
                return
            if self._pass.learning:
                self._learn(connection, self._pass)
            else:
                self._clean(connection, self._pass, now)

    def give_up(self, connection: sqlite3.Connection) -> None:
        """Let another process do it at once; if that cannot be said now, the lease runs out."""
        with suppress(LogUnavailableError), self._file.writing(connection):
            connection.execute("DELETE FROM duties WHERE holder = ?", (self._holder,))

    def _hold(self, connection: sqlite3.Connection) -> bool:
        """Take or keep the lease; False if another process has it."""
        now = boottime()
        row = connection.execute(
            "SELECT holder, lease_s, lease_until FROM duties WHERE name = 'upkeep'"
        ).fetchone()
        if row is not None:
            holder, lease_s, until = row
            if holder != self._holder and not lease_is_over(until, lease_s, now):
                return False
        connection.execute(
            "INSERT OR REPLACE INTO duties (name, holder, lease_s, lease_until)"
            " VALUES ('upkeep', ?, ?, ?)",
            (self._holder, LEASE_S, now + LEASE_S),
        )
        self.held = True
        return True

    # retention

    def _retain(self, connection: sqlite3.Connection, now: int) -> None:
        for partition_id, start, end, retention_ms in connection.execute(
            "SELECT id, start_offset, end_offset, retention_ms"
            " FROM partitions JOIN topics ON name = topic WHERE retention_ms IS NOT NULL"
        ).fetchall():
            (kept,) = connection.execute(
                "SELECT min(base_offset) FROM (SELECT base_offset FROM batches"
                " WHERE partition_id = ? AND next_offset > ? AND appended_at >= ?"
                " ORDER BY base_offset LIMIT 1)",
                (partition_id, start, now - retention_ms),
            ).fetchone()
            first = end if kept is None else max(start, kept)
            if first > start and self._is_old(connection, partition_id, start, now - retention_ms):
                connection.execute(
                    "UPDATE partitions SET start_offset = ? WHERE id = ?", (first, partition_id)
                )

    def _is_old(
        self, connection: sqlite3.Connection, partition_id: int, start: int, horizon: int
    ) -> bool:
        """Whether the first batch is over the horizon; a gap alone moves no start."""
        row = connection.execute(
            "SELECT appended_at FROM batches WHERE partition_id = ? AND next_offset > ?"
            " ORDER BY base_offset LIMIT 1",
            (partition_id, start),
        ).fetchone()
        return row is not None and row[0] < horizon

    def _remove(self, connection: sqlite3.Connection) -> None:
        """Remove rows below the starts, oldest first, and deleted partitions that are empty."""
        left = REMOVED_ROWS_MAX
        for partition_id, start, deleted in connection.execute(
            "SELECT id, start_offset, topic IS NULL FROM partitions"
            " WHERE topic IS NULL OR EXISTS (SELECT 1 FROM batches"
            "  WHERE partition_id = partitions.id AND base_offset < start_offset)"
        ).fetchall():
            while left > 0:
                rows = connection.execute(
                    "SELECT id, size FROM batches WHERE partition_id = ? AND base_offset < ?"
                    " AND next_offset <= ? ORDER BY base_offset LIMIT ?",
                    (partition_id, start, start, min(left, PIECE_ROWS)),
                ).fetchall()
                left -= max(1, len(rows))
                with self._file.writing(connection):
                    self._delete(connection, partition_id, rows)
                    if deleted and not rows:
                        connection.execute("DELETE FROM partitions WHERE id = ?", (partition_id,))
                if not rows:
                    break

    def _delete(
        self, connection: sqlite3.Connection, partition_id: int, rows: list[tuple[int, int]]
    ) -> None:
        connection.executemany("DELETE FROM batches WHERE id = ?", [(row[0],) for row in rows])
        size = sum(row[1] for row in rows)
        connection.execute(
            "UPDATE partitions SET bytes = bytes - :size,"
            " dirty_bytes = min(dirty_bytes, bytes - :size) WHERE id = :id",
            {"size": size, "id": partition_id},
        )

    # compaction

    def _next_pass(self, connection: sqlite3.Connection, now: int) -> _Pass | None:
        """Begin with a partition that is dirty enough, or whose tombstones are due."""
        for partition_id, topic, partition, start, clean in connection.execute(
            "SELECT id, topic, partition, start_offset, clean_offset"
            " FROM partitions JOIN topics ON name = topic"
            " WHERE compacted AND bytes > 0 AND (dirty_bytes >= bytes * ? OR tombstone_at < ?)"
            " ORDER BY 1.0 * dirty_bytes / bytes DESC",
            (DIRTY_SHARE, now - TOMBSTONE_MS),
        ).fetchall():
            (bound,) = connection.execute(
                "SELECT max(base_offset) FROM batches WHERE partition_id = ?", (partition_id,)
            ).fetchone()
            due = connection.execute(
                "SELECT 1 FROM partitions WHERE id = ? AND tombstone_at < ?",
                (partition_id, now - TOMBSTONE_MS),
            ).fetchone()
            if bound is not None and (bound > max(start, clean) or due):
                first = max(start, clean)
                where = f"{topic}/{partition}"
                return _Pass(partition_id, where, bound, first, Latest(first, bound))
        return None

    def _learn(self, connection: sqlite3.Connection, work: _Pass) -> None:
        for _, stored in self._piece(connection, work):
            work.latest.note(stored, where=work.where)
            work.at = stored.next_offset
            if len(work.latest) >= KEYS_MAX:
                work.bound = work.at
                break
        else:
            if self._has_more(connection, work):
                return
        work.learning, work.at = False, 0

    def _clean(self, connection: sqlite3.Connection, work: _Pass, now: int) -> None:
        piece = self._piece(connection, work)
        old = [stored for _, stored in piece]
        new, tombstone_at = compact(
            old, work.latest, tombstones_before=now - TOMBSTONE_MS, where=work.where
        )
        if tombstone_at is not None:
            work.tombstone_at = min(work.tombstone_at or now, tombstone_at)
        kept = {id(stored) for stored in new}
        taken = {id(stored) for stored in old}
        gone = [(row_id, len(stored.data)) for row_id, stored in piece if id(stored) not in kept]
        added = [stored for stored in new if id(stored) not in taken]
        if piece:
            work.at = old[-1].next_offset
        more = bool(piece) and self._has_more(connection, work)
        with self._file.writing(connection):
            if not self._hold(connection):
                self._pass = None
                return
            if gone and not self._replace(connection, work.partition_id, gone, added):
                self._pass = None  # purged or deleted meanwhile
                return
            if not more:
                self._finish(connection, work)
                self._pass = None

    def _replace(
        self,
        connection: sqlite3.Connection,
        partition_id: int,
        gone: list[tuple[int, int]],
        added: list[StoredBatch],
    ) -> bool:
        for row_id, _ in gone:
            if not connection.execute("SELECT 1 FROM batches WHERE id = ?", (row_id,)).fetchone():
                return False
        self._delete(connection, partition_id, gone)
        connection.executemany(
            "INSERT INTO batches (partition_id, base_offset, next_offset, size, max_timestamp,"
            " appended_at, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    partition_id,
                    stored.base_offset,
                    stored.next_offset,
                    len(stored.data),
                    stored.max_timestamp,
                    stored.appended_at,
                    stored.data,
                )
                for stored in added
            ],
        )
        connection.execute(
            "UPDATE partitions SET bytes = bytes + ? WHERE id = ?",
            (sum(len(stored.data) for stored in added), partition_id),
        )
        return True

    def _finish(self, connection: sqlite3.Connection, work: _Pass) -> None:
        connection.execute(
            "UPDATE partitions SET clean_offset = :bound, tombstone_at = :tombstone_at, dirty_bytes ="
            " (SELECT coalesce(sum(size), 0) FROM batches"
            "  WHERE partition_id = :id AND base_offset >= :bound)"
            " WHERE id = :id",
            {
                "bound": work.bound,
                "tombstone_at": work.tombstone_at,
                "id": work.partition_id,
            },
        )

    def _piece(self, connection: sqlite3.Connection, work: _Pass) -> list[tuple[int, StoredBatch]]:
        """The next batches of a pass, below its bound."""
        piece: list[tuple[int, StoredBatch]] = []
        size = 0
        with self._file.reading(connection):
            for row_id, length, base, after, max_timestamp, appended_at in connection.execute(
                "SELECT id, size, base_offset, next_offset, max_timestamp, appended_at FROM batches"
                " WHERE partition_id = ? AND base_offset >= ? AND base_offset < ?"
                " ORDER BY base_offset LIMIT ?",
                (work.partition_id, work.at, work.bound, PIECE_ROWS),
            ).fetchall():
                if piece and size + length > PIECE_BYTES:
                    break
                data = read_batch(connection, row_id)
                stored = StoredBatch(base, after, max_timestamp, appended_at, data)
                piece.append((row_id, stored))
                size += length
        return piece

    def _has_more(self, connection: sqlite3.Connection, work: _Pass) -> bool:
        return (
            connection.execute(
                "SELECT 1 FROM batches WHERE partition_id = ? AND base_offset >= ?"
                " AND base_offset < ? LIMIT 1",
                (work.partition_id, work.at, work.bound),
            ).fetchone()
            is not None
        )

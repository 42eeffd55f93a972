"""The SQLite file: its schema, its connections, and the one writer at a time.

*Durability.* The file is in WAL mode. A commit appends its pages to the ``-wal`` file; with
``synchronous=FULL`` SQLite syncs that file once per commit, with ``NORMAL`` not at all until a checkpoint. So
epochs are written on a FULL connection, one fsync each; heartbeats and upkeep on NORMAL ones: what they wrote
may be lost with the power, but never out of order, because it lies before the next epoch in the same file.

*Waiting.* SQLite gives the write lock to whoever asks at the right moment. `LogFile.writing` asks every few
ms, so that a heartbeat gets in between the epochs of a busy worker. A process that was stopped inside its
transaction keeps the lock for ever; a waiter that is blocked for longer than a lease finds the holder and, if
it is a stopped process that once registered as a writer of this file, ends it. SQLite then rolls it back.

*Checkpoints* are the writer thread's, after an epoch's answer is out (`LogFile.checkpoint`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from millstream.errors import (
    ConfigurationError,
    InternalError,
    LogDamagedError,
    LogUnavailableError,
    MillstreamError,
)
from millstream.transports.local.processes import (
    Process,
    is_gone,
    kill_if_stopped,
    this_process,
    write_lock_holder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LogFile"]

LOCK_WAIT_S = 10.0
"""How long a writer waits for the lock before it gives up, if `LOCK_GRACE_S` after a lease is not later."""
LOCK_GRACE_S = 5.0
LEASE_S = 5.0
"""When a waiter looks for a stopped holder, while the file holds no members with leases of their own."""
LOCK_PAUSE_MAX_S = 0.005
BUSY_MS = 5_000
WAL_PAGES = 1_000
"""A checkpoint is made when a process has written about this many pages since its last."""
WAL_BYTES_MAX = 64 << 20
"""Above this a checkpoint also waits for readers, so that the -wal file begins anew."""
RESTART_WAIT_MS = 200
"""How long such a checkpoint waits at most; it tries again after the next `WAL_PAGES`."""
PAGE_BYTES = 4_096
PROCESSES_KEPT = 1_000

_APPLICATION_ID = 0x4D696C6C  # "Mill"
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE topics (
    name TEXT PRIMARY KEY,
    topic_id TEXT NOT NULL,
    retention_ms INTEGER,
    compacted INTEGER NOT NULL
) WITHOUT ROWID;

-- Of a deleted topic the partitions stay, without a topic, until upkeep has removed their batches.
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT,
    partition INTEGER NOT NULL,
    start_offset INTEGER NOT NULL DEFAULT 0,
    end_offset INTEGER NOT NULL DEFAULT 0,
    clean_offset INTEGER NOT NULL DEFAULT 0,    -- below it each key is there once
    bytes INTEGER NOT NULL DEFAULT 0,
    dirty_bytes INTEGER NOT NULL DEFAULT 0,     -- of the batches from clean_offset on
    tombstone_at INTEGER,                       -- when the oldest tombstone below it was appended
    UNIQUE (topic, partition)
);

CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    partition_id INTEGER NOT NULL,
    base_offset INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    max_timestamp INTEGER NOT NULL,
    appended_at INTEGER NOT NULL,
    data BLOB NOT NULL                          -- one v2 record batch
);
-- Everything but the data, so that looking for a batch does not read any.
CREATE INDEX batches_by_offset ON batches
    (partition_id, base_offset, next_offset, size, max_timestamp, appended_at);

CREATE TABLE processes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    place TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    UNIQUE (place, pid, started)
);

CREATE TABLE groups (
    name TEXT PRIMARY KEY,
    generation INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE members (
    group_name TEXT NOT NULL,
    member_id TEXT NOT NULL,
    process_id INTEGER NOT NULL,
    lease_s REAL NOT NULL,
    lease_until REAL NOT NULL,                  -- on the boot-time clock
    metadata BLOB NOT NULL,
    assigned BLOB NOT NULL,
    PRIMARY KEY (group_name, member_id)
) WITHOUT ROWID;

CREATE TABLE positions (
    group_name TEXT NOT NULL,
    partition_id INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    PRIMARY KEY (group_name, partition_id)
) WITHOUT ROWID;

-- Who does what only one process may do at a time.
CREATE TABLE duties (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    lease_s REAL NOT NULL,
    lease_until REAL NOT NULL
) WITHOUT ROWID;
"""


class LogFile:
    """One SQLite file, as one process has it open. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = this_process()
        self._process_id: int | None = None
        self._registering = threading.Lock()

    # connections

    def prepare(self) -> None:
        """Create the file if there is none, and see that it is a log which this version reads.

        Raises:
            ConfigurationError: the path cannot be a log, or the file is something else, or newer.
            LogDamagedError: the file's bytes are wrong.
            LogUnavailableError: no permission, no space, locked.
        """
        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"the log {self.path} cannot be opened: there is no directory {self.path.parent}."
                f" Create it, or give another path."
            )
        if self.path.is_dir():
            raise ConfigurationError(
                f"the log {self.path} cannot be opened: that is a directory."
                f" Give the path of a file, for example local://{self.path / 'log.db'}"
            )
        with self.translated():
            connection = self._open()
            try:
                # one transaction, so that a file which another process creates now is seen whole or not at all
                with self.reading(connection):
                    version = self._version(connection)
                if version == 0:
                    self._create(connection)
                mode = self._to_wal(connection)
                if mode != "wal":
                    raise ConfigurationError(
                        f"the log {self.path} is on a file system without shared memory (journal mode"
                        f" {mode!r}), where processes cannot share it. Put it on a local disk."
                    )
                # A file that is not writable opens all the same; better to hear of it now.
                with self.writing(connection):
                    pass
            finally:
                connection.close()

    def connect(self, *, durable: bool) -> sqlite3.Connection:
        """A connection whose commits are durable when they return, or one whose commits are only in order."""
        with self.translated():
            connection = self._open()
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            # The writer thread checkpoints by itself, when nobody waits for it. In a process that only
            # sends heartbeats it has no occasion to, and a rare checkpoint by the heart does no harm.
            pages = 0 if durable else WAL_BYTES_MAX // PAGE_BYTES
            connection.execute(f"PRAGMA wal_autocheckpoint={pages}")
            return connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rwc",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the platter
        connection.execute("PRAGMA secure_delete=OFF")  # some builds overwrite what is deleted
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        """The schema's version; 0 for a new file."""
        application = _one(connection, "PRAGMA application_id")
        version = _one(connection, "PRAGMA user_version")
        if application != _APPLICATION_ID:
            if version or application or _one(connection, "SELECT count(*) FROM sqlite_master"):
                raise ConfigurationError(
                    f"{self.path} is an SQLite database of another program, not a Millstream log."
                    f" Give another path."
                )
            return 0
        if version > _SCHEMA_VERSION:
            raise ConfigurationError(
                f"the log {self.path} was written by a newer Millstream (schema {version}; this one"
                f" reads up to {_SCHEMA_VERSION}). Upgrade Millstream, or give another path."
            )
        return int(version)

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        self._to_wal(connection)
        with self._locked(connection):
            if self._version(connection) == 0:  # another process may have been faster
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    # transactions

    @contextmanager
    def writing(self, connection: sqlite3.Connection) -> Iterator[float]:
        """A transaction that holds the write lock from its start; yields the seconds it was waited for.

        Raises:
            LogUnavailableError: the lock did not come free.
        """
        self._register(connection)
        with self._locked(connection) as waited:
            yield waited

    @contextmanager
    def reading(self, connection: sqlite3.Connection) -> Iterator[None]:
        """A transaction in which every query sees the same moment."""
        connection.execute("BEGIN")
        try:
            yield
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    @property
    def process_id(self) -> int:
        """This process's row, once it has begun to write."""
        if self._process_id is None:
            raise InternalError("a process wrote to the log before it was registered")
        return self._process_id

    @contextmanager
    def _locked(self, connection: sqlite3.Connection) -> Iterator[float]:
        waited = self._begin(connection)
        try:
            yield waited
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _begin(self, connection: sqlite3.Connection) -> float:
        waited, _ = self._when_free(connection, "BEGIN IMMEDIATE")
        return waited

    def _to_wal(self, connection: sqlite3.Connection) -> str:
        """Put the file in WAL mode; the mode that it is in then.

        Where processes create one file at the same moment, SQLite refuses all but one at once, without a wait.
        """
        _, (mode,) = self._when_free(connection, "PRAGMA journal_mode=WAL")
        return str(mode)

    def _when_free(self, connection: sqlite3.Connection, statement: str) -> tuple[float, Any]:
        """Try a statement until no other process is in its way; the seconds that took, and its first row."""
        began = time.monotonic()
        lease_s, pause, looked = LEASE_S, 0.0005, 0.0
        connection.execute("PRAGMA busy_timeout=0")
        try:
            while True:
                try:
                    row = connection.execute(statement).fetchone()
                except sqlite3.OperationalError as exc:
                    if _code(exc) & 0xFF != sqlite3.SQLITE_BUSY:
                        raise
                else:
                    return time.monotonic() - began, row
                waited = time.monotonic() - began
                if waited > looked + 0.5:
                    looked = waited
                    lease_s = self._lease_s(connection)
                    if waited > lease_s:
                        self._end_stopped_holder(connection)
                if waited > max(LOCK_WAIT_S, lease_s + LOCK_GRACE_S):
                    raise LogUnavailableError(
                        f"the log {self.path} is locked by {self._holder_text()} for {waited:.1f} s;"
                        f" nothing was written. If that process hangs, end it: what it had not"
                        f" committed is undone."
                    )
                time.sleep(pause)
                pause = min(pause * 1.5, LOCK_PAUSE_MAX_S)
        finally:
            connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")

    def _lease_s(self, connection: sqlite3.Connection) -> float:
        """The shortest lease of a member; reading needs no lock."""
        try:
            return float(_one(connection, "SELECT min(lease_s) FROM members") or LEASE_S)
        except sqlite3.OperationalError:
            return LEASE_S

    def _end_stopped_holder(self, connection: sqlite3.Connection) -> None:
        pid = write_lock_holder(self.path)
        if pid is None:
            return
        try:
            rows = connection.execute(
                "SELECT place, pid, started FROM processes WHERE pid = ?", (pid,)
            ).fetchall()
        except sqlite3.OperationalError:
            return  # the file is about to become a log
        for row in rows:
            kill_if_stopped(Process(*row))

    def _holder_text(self) -> str:
        pid = write_lock_holder(self.path)
        return "another process" if pid is None else f"process {pid}"

    def _register(self, connection: sqlite3.Connection) -> None:
        """Put this process among the writers before it first holds the lock."""
        if self._process_id is not None:
            return
        with self._registering:
            if self._process_id is not None:
                return
            with self._locked(connection):
                connection.execute(
                    "INSERT OR IGNORE INTO processes (place, pid, started) VALUES (?, ?, ?)",
                    self.process,
                )
                mine = _one(
                    connection,
                    "SELECT id FROM processes WHERE place = ? AND pid = ? AND started = ?",
                    *self.process,
                )
                rows = connection.execute(
                    "SELECT id, place, pid, started FROM processes"
                    " WHERE id NOT IN (SELECT process_id FROM members)"
                ).fetchall()
                connection.executemany(
                    "DELETE FROM processes WHERE id = ?",
                    [
                        (row[0],)
                        for row in rows
                        if is_gone(Process(*row[1:])) or row[0] <= mine - PROCESSES_KEPT
                    ],
                )
            self._process_id = int(mine)

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move what the -wal file holds into the database, so that it can begin anew."""
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages * PAGE_BYTES > WAL_BYTES_MAX:
            # This keeps other writers out for what is left to move, and while it waits for readers.
            connection.execute(f"PRAGMA busy_timeout={RESTART_WAIT_MS}")
            connection.execute("PRAGMA wal_checkpoint(RESTART)")
            connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")

    # errors

    @contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's errors as ours.

        Raises:
            LogUnavailableError: locked, full, read-only, out of reach; nothing was written.
            LogDamagedError: the file's bytes are wrong.
        """
        try:
            yield
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: sqlite3.Error) -> MillstreamError:
        code = _code(exc) & 0xFF
        undecodable = _code(exc) == -1 and "decode" in str(exc)  # text that is not UTF-8
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or undecodable:
            return LogDamagedError(
                f"the log {self.path} is damaged ({exc}). Move it away with its -wal and -shm files and"
                f" restore a copy; to save what can be read: sqlite3 {self.path} .recover"
            )
        if code == sqlite3.SQLITE_FULL:
            return LogUnavailableError(
                f"the disk of the log {self.path} is full; nothing was written."
                f" Free some space: the same write may then be tried again."
            )
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return LogUnavailableError(
                f"the log {self.path} is read-only for this process ({exc}); nothing was written."
                f" It must be able to write the file and its directory, for the -wal and -shm files."
            )
        if code == sqlite3.SQLITE_CANTOPEN:
            return LogUnavailableError(
                f"the log {self.path} cannot be opened ({exc}); nothing was written."
                f" Check the permissions of the file and of its directory."
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return LogUnavailableError(
                f"the log {self.path} is locked by {self._holder_text()}; nothing was written."
            )
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT):
            return LogUnavailableError(
                f"the log {self.path} could not be read or written ({exc}); nothing was written."
                f" Check the disk."
            )
        return InternalError(f"the log {self.path}: {type(exc).__name__}: {exc}")


def _one(connection: sqlite3.Connection, query: str, *values: object) -> Any:
    """The only column of the first row, or None."""
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]


def _code(exc: sqlite3.Error) -> int:
    """SQLite's extended result code; -1 for errors of the Python module itself."""
    return int(getattr(exc, "sqlite_errorcode", -1))

"""State in RocksDB: one database for each shard, a column family for each table.

**What survives.** The write-ahead log is off: the changelog is the log. A write lives in the memtable of its
column family until that is flushed, whole, into a file. RocksDB switches memtables between two batches and
never within one, so what a killed process leaves of *one table* is what some prefix of the `write` calls
left there: a position that is written beside the data it describes stays true. *Two* tables may be left at
different prefixes, so each keeps a position of its own (invariant 7).

**What is worked around** in rocksdict (each found by trying 0.3.29), all of it in this module:

- Iterator bounds are not used: ``set_iterate_lower_bound`` sets the upper bound, and both keep a pointer
  to bytes that Python may free. Ranges seek with ``from_key`` and stop in Python.
- Iterators end silently at a damaged block. Where one ends before its range does, a second one is placed
  there and asked for its status.
- Everything that was got from a database keeps it open, with its lock: column families (also closed over in
  an iterator or a `Checkpoint`) and their handles. All of it is held here, and let go in `close`; running
  iterations are cut off, and fail at their next chunk of rows.
- ``flush`` of the database flushes the default column family only; closing it flushes nothing while
  handles are alive. Each table is flushed and closed by itself.
- ``delete_range`` with an end that is not above its start fails the whole batch: such ranges are left out.
- ``get`` with several keys takes a list only. ``WriteOptions.disable_wal`` is a property, against its stub.
- ``get``, ``write`` and iterators hold the GIL: callers keep batches small, the triggers that make
  RocksDB stall a writer are set far away, and a writer that must wait for memory waits in ``flush``.
- Errors are bare `Exception`\\ s; their text is all there is to tell one from another.
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_left
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from weakref import WeakSet

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DataBlockIndexType,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from millstream.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rocksdict import ColumnFamily

__all__ = ["RocksBackend", "RocksStore", "RocksTable", "peek"]

_MIB = 1 << 20
_FAMILY = "table:"  # a table may be called "default", RocksDB's own column family may not
_FLUSH_MIN_BYTES = 256 * 1024  # smaller ones would be paid for by compaction
_CHUNK_MIN_ROWS, _CHUNK_MAX_ROWS = 4, 1024

_SIGNS = [
    # part of RocksDB's text → what happened, and what to do
    ("lock hold by current process", "it is open already in this process"),
    (
        "LOCK:",
        "another process holds it. Stop the other worker, or give this one a state_dir of its own",
    ),
    ("No space left", "the disk is full. Make room; nothing that was committed is lost"),
    ("Disk quota", "the disk quota is used up. Make room; nothing that was committed is lost"),
    ("Too many open files", "too many open files. Raise the limit (ulimit -n)"),
    ("Permission denied", "this user may not read and write it"),
    ("Read-only file system", "the file system is read-only"),
    *(
        (
            sign,
            "its files are damaged. Delete this directory while no worker uses it: the tables are"
            " then rebuilt from their changelogs",
        )
        for sign in ("Corruption", "No such file", "does not exist")
    ),
]


class RocksBackend:
    """Databases below ``root``, one directory for each shard, within one memory budget.

    Args:
        root: made when the first store is opened.
        cache_bytes: blocks, indexes and filters of all shards that are kept in memory.
        write_buffer_bytes: writes of all shards that are kept in memory before they are flushed. Writers
            may overstep it while a flush is running; at twice that much they wait for it.
    """

    def __init__(
        self, root: Path, *, cache_bytes: int = 64 * _MIB, write_buffer_bytes: int = 64 * _MIB
    ) -> None:
        self.root = root
        self._buffers = WriteBufferManager(write_buffer_bytes, False)
        self._options = _options(Cache(cache_bytes), self._buffers)

    @property
    def durable(self) -> bool:
        return True

    def path(self, shard: str) -> Path:
        """The directory of a shard's store."""
        name = quote(shard, safe="")
        return self.root / (f"%2E{name[1:]}" if name.startswith(".") else name)

    def open(self, shard: str) -> RocksStore:
        """Open a shard's store, or make a new one.

        Raises:
            StateError: the files are damaged, the store is open here or in another process, or the
                directory cannot be written.
        """
        return RocksStore(shard, self.path(shard), self._options, self._buffers)

    def destroy(self, shard: str) -> None:
        """Remove a shard's directory; damaged ones too, unknown ones are ignored.

        Raises:
            StateError: the store is open, here or in another process, or cannot be removed.
        """
        path = self.path(shard)
        if not path.exists():
            return
        try:
            Rdict.destroy(str(path), self._options)
        except Exception as problem:
            if "LOCK:" in str(problem):
                raise _state_error(
                    f"cannot destroy the state of shard {shard}", path, problem
                ) from (problem)
        try:
            if path.exists():
                shutil.rmtree(path)
        except OSError as problem:
            raise _state_error(
                f"cannot destroy the state of shard {shard}", path, problem
            ) from problem

    def shards(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(unquote(p.name) for p in self.root.iterdir() if (p / "CURRENT").exists())

    def restore(self, shard: str, path: Path) -> None:
        """Make a shard's store from a checkpoint, which stays as it is; files are shared where possible.

        Raises:
            StateError: the shard has a store, or there is no checkpoint in ``path``.
        """
        target = self.path(shard)
        if target.exists():
            raise StateError(f"shard {shard} has state already, in {target}: destroy it first")
        if not (path / "CURRENT").exists():
            raise StateError(f"{path} is not a checkpoint")
        try:
            shutil.copytree(path, target, copy_function=_link_or_copy)
        except OSError as problem:
            raise _state_error(f"cannot restore shard {shard}", target, problem) from problem


def peek(path: Path, key: bytes) -> dict[str, bytes]:
    """What the tables in the directory of a store have under a key, as far as it is on disk.

    Takes no lock and writes nothing. Blocks the caller.

    Raises:
        StateError: the files are damaged, or cannot be read.
    """
    found: dict[str, bytes] = {}
    try:
        options = Options(raw_mode=True)
        families = Rdict.list_cf(str(path), options)
        database = Rdict(
            str(path),
            options,
            column_families=dict.fromkeys(families, options),
            access_type=AccessType.read_only(),
        )
        try:
            for family in families:
                if family.startswith(_FAMILY):
                    value: Any = database.get_column_family(family).get(key)
                    if value is not None:
                        found[family.removeprefix(_FAMILY)] = value
        finally:
            database.close()
    except Exception as problem:
        raise _state_error("the state cannot be looked at", path, problem) from problem
    return found


class RocksStore:
    """The tables of one shard, in one database."""

    def __init__(
        self, shard: str, path: Path, options: Options, buffers: WriteBufferManager
    ) -> None:
        self.shard = shard
        self.path = path
        self.closed = False
        self._options = options
        self._buffers = buffers
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[assignment,method-assign]
        self._tables: dict[str, RocksTable] = {}
        try:
            families = self._families_on_disk()
            self._db = Rdict(str(path), options, column_families=dict.fromkeys(families, options))
            for family in families:
                if family.startswith(_FAMILY):
                    self._attach(family.removeprefix(_FAMILY), self._db.get_column_family(family))
        except Exception as problem:
            # Whoever keeps the error keeps this object, which must not keep the lock.
            self._tables.clear()
            self.__dict__.pop("_db", None)
            raise self._error("cannot open", problem) from problem

    def table(self, name: str) -> RocksTable:
        self._check_open()
        table = self._tables.get(name)
        if table is None:
            try:
                rdict = self._db.create_column_family(_FAMILY + name, self._options)
                table = self._attach(name, rdict)
            except Exception as problem:
                raise self._error(f"cannot make table {name!r}", problem) from problem
        return table

    def tables(self) -> list[str]:
        self._check_open()
        return sorted(self._tables)

    def write(
        self,
        changes: Mapping[str, Mapping[bytes, bytes | None]],
        *,
        delete_ranges: Mapping[str, tuple[bytes, bytes]] = {},
    ) -> None:
        """Write all changes in one batch, each table's in the order of its keys: twice as fast as unordered.

        Raises:
            StateError: the disk is full or fails, or the store is closed; nothing was written.
        """
        batch = WriteBatch(raw_mode=True)
        for name, (start, end) in delete_ranges.items():
            if start < end:
                batch.delete_range(start, end, self.table(name).handle)
        for name, values in changes.items():
            handle = self.table(name).handle
            put, delete = batch.put, batch.delete
            for key in sorted(values):
                value = values[key]
                if value is None:
                    delete(key, handle)
                else:
                    put(key, value, handle)
        self._check_open()
        if self._buffers.get_usage() > 2 * self._buffers.get_buffer_size():
            self._make_room()
        try:
            self._db.write(batch, self._unlogged)
        except Exception as problem:
            raise self._error("cannot write", problem) from problem

    def drop(self, name: str) -> None:
        self._check_open()
        table = self._tables.pop(name, None)
        if table is None:
            return
        try:
            table.cut_off("was dropped", flush=False)
            self._db.drop_column_family(_FAMILY + name)
        except Exception as problem:
            raise self._error(f"cannot drop table {name!r}", problem) from problem

    def checkpoint(self, path: Path) -> None:
        """Flush, then link the files of all tables into the new directory ``path``.

        `RocksBackend.restore` makes a store of it.

        Raises:
            StateError: ``path`` exists or cannot be written.
        """
        self._check_open()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as problem:
            raise StateError(
                f"cannot write a checkpoint of shard {self.shard} to {path}: {problem}"
            ) from problem

    def disk_bytes(self) -> int:
        """Size of all files of the store; what is still in memory is not among them."""
        self._check_open()
        total = 0
        for entry in os.scandir(self.path):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:  # compacted away meanwhile
                continue
        return total

    def flush(self) -> None:
        """Bring what is in memory to disk, one table after the other; releases the GIL.

        Raises:
            StateError: the disk is full or fails.
        """
        self._check_open()
        for table in list(self._tables.values()):
            table.flush()

    def close(self) -> None:
        """Flush, and release files and lock; running iterations fail at their next chunk of rows.

        Raises:
            StateError: what was in memory could not be flushed; everything is released all the same.
        """
        if self.closed:
            return
        self.closed = True
        problems: list[Exception] = []
        for table in self._tables.values():
            try:
                table.cut_off("is closed", flush=True)
            except Exception as problem:
                problems.append(problem)
        self._tables.clear()
        try:
            self._db.close()
        except Exception as problem:
            problems.append(problem)
        del self._db
        if problems:
            raise self._error("closed, but not flushed", problems[0]) from problems[0]

    def _families_on_disk(self) -> list[str]:
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "CURRENT").exists():
            families = Rdict.list_cf(str(self.path), self._options)
            return [family for family in families if family != "default"]
        if any(self.path.glob("*.sst")):
            # RocksDB would begin a new database here, and say nothing of the one that was lost.
            raise FileNotFoundError(f"Corruption: {self.path} has data and no CURRENT")
        return []

    def _attach(self, name: str, rdict: Rdict) -> RocksTable:
        rdict.set_write_options(self._unlogged)
        handle = self._db.get_column_family_handle(_FAMILY + name)
        table = self._tables[name] = RocksTable(name, rdict, handle, self._error)
        return table

    def _make_room(self) -> None:
        """Wait for a flush here, without the GIL: RocksDB's own stall would keep it."""
        for table in list(self._tables.values()):
            if table.buffered_bytes() >= _FLUSH_MIN_BYTES:
                table.flush()

    def _check_open(self) -> None:
        if self.closed:
            raise StateError(f"the state of shard {self.shard} is closed")

    def _error(self, what: str, problem: Exception) -> StateError:
        return _state_error(f"the state of shard {self.shard}: {what}", self.path, problem)


class RocksTable:
    """One table of a `RocksStore`: a column family."""

    def __init__(
        self,
        name: str,
        rdict: Rdict,
        handle: ColumnFamily,
        error: Callable[[str, Exception], StateError],
    ) -> None:
        self.name = name
        self.handle: ColumnFamily | None = handle
        self._rdict: Any = rdict
        self._error = error
        self._scans: WeakSet[_Scan] = WeakSet()

    def cut_off(self, reason: str, *, flush: bool) -> None:
        """Let go of everything that keeps the database open, and refuse every later use."""
        rdict, self._rdict = self._rdict, _Gone(f"table {self.name!r} {reason}")
        self.handle = None
        for scan in self._scans:
            scan.iterator = self._rdict
        self._scans.clear()
        if flush:
            rdict.close()

    def get(self, key: bytes) -> bytes | None:
        try:
            found: bytes | None = self._rdict.get(key)
        except Exception as problem:
            raise self._error(f"cannot read table {self.name!r}", problem) from problem
        return found

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            found: list[bytes | None] = self._rdict.get(list(keys))
        except Exception as problem:
            raise self._error(f"cannot read table {self.name!r}", problem) from problem
        return found

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._rows(self._begin("items", start, end, reverse=reverse), itemgetter(0))

    def keys(self, start: bytes = b"", end: bytes | None = None) -> Iterator[bytes]:
        # A row is its key here: bytes(key) is key.
        return self._rows(self._begin("keys", start, end, reverse=False), bytes)

    def count(self) -> int:
        """RocksDB's estimate: overwritten keys count twice, and deletions less, until they are compacted."""
        return self._property("rocksdb.estimate-num-keys")

    def _property(self, name: str) -> int:
        try:
            return self._rdict.property_int_value(name) or 0
        except Exception as problem:
            raise self._error(f"cannot read table {self.name!r}", problem) from problem

    def buffered_bytes(self) -> int:
        """Memory that the table uses for writes that are not on disk yet."""
        return self._property("rocksdb.cur-size-all-mem-tables")

    def flush(self) -> None:
        """Bring the table's memtable to disk."""
        try:
            self._rdict.flush(True)
        except Exception as problem:
            raise self._error(f"cannot flush table {self.name!r}", problem) from problem

    def _begin(self, rows: str, start: bytes, end: bytes | None, *, reverse: bool) -> _Scan:
        try:
            iterate = getattr(self._rdict, rows)
            iterator = iterate(backwards=reverse, from_key=end if reverse else start)
        except Exception as problem:
            raise self._error(f"cannot read table {self.name!r}", problem) from problem
        scan = _Scan(iterator, start, end, reverse)
        self._scans.add(scan)
        return scan

    def _rows(self, scan: _Scan, key_of: Callable[[Any], bytes]) -> Iterator[Any]:
        """The rows of a range, read in chunks that grow: most ranges are short, some are a whole table."""
        size = _CHUNK_MIN_ROWS
        while not scan.done:
            yield from self._chunk(scan, key_of, size)
            size = min(2 * size, _CHUNK_MAX_ROWS)

    def _chunk(self, scan: _Scan, key_of: Callable[[Any], bytes], size: int) -> list[Any]:
        try:
            rows = list(islice(scan.iterator, size))
            if len(rows) < size:
                scan.done = True
                self._check_end(scan, key_of(rows[-1]) if rows else None)
        except Exception as problem:
            raise self._error(f"cannot read table {self.name!r}", problem) from problem
        return scan.inside(rows, key_of)

    def _check_end(self, scan: _Scan, last: bytes | None) -> None:
        """Raise what ended an iteration behind ``last``, unless that was the end of the table."""
        probe = self._rdict.iter()
        if scan.reverse:
            if last is not None:
                probe.seek_for_prev(last)
                probe.prev()
            elif scan.end is not None:
                probe.seek_for_prev(scan.end)
            else:
                probe.seek_to_last()
        elif last is not None:
            probe.seek(last)
            probe.next()
        else:
            probe.seek(scan.start)
        if not probe.valid():
            probe.status()


class _Scan:
    """A range that is being read; holds the only reference to its iterator, so that it can be taken away."""

    __slots__ = ("__weakref__", "done", "end", "iterator", "reverse", "start")

    def __init__(
        self, iterator: Iterator[Any], start: bytes, end: bytes | None, reverse: bool
    ) -> None:
        self.iterator = iterator
        self.start = start
        self.end = end
        self.reverse = reverse
        self.done = False

    def inside(self, rows: list[Any], key_of: Callable[[Any], bytes]) -> list[Any]:
        """The rows of a chunk that are in the range; the first one outside ends the scan."""
        if not rows:
            return rows
        if self.reverse:
            if self.end is not None and key_of(rows[0]) == self.end:
                del rows[0]  # where the search for the end alights
            after = bisect_left(rows, True, key=lambda row: key_of(row) < self.start)
        elif self.end is None or key_of(rows[-1]) < self.end:
            return rows
        else:
            after = bisect_left(rows, self.end, key=key_of)
        if after < len(rows):
            self.done = True
            del rows[after:]
        return rows


class _Gone:
    """Stands where a database was, and says why it is not there any more."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        raise DbClosedError(self.reason)

    def __iter__(self) -> Iterator[Any]:
        raise DbClosedError(self.reason)


def _options(cache: Cache, buffers: WriteBufferManager) -> Options:
    """One set of options for databases and column families, with shared memory and few threads."""
    blocks = BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_cache_index_and_filter_blocks(True)  # within the budget, not beside it
    # In one piece, the filter of a large file is larger than a shard of the cache, which then never keeps
    # it: each read would bring megabytes.
    blocks.set_index_type(BlockBasedIndexType.two_level_index_search())
    blocks.set_partition_filters(True)
    blocks.set_metadata_block_size(16 * 1024)
    blocks.set_pin_top_level_index_and_filter(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_bloom_filter(10, False)
    blocks.set_format_version(5)
    blocks.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    blocks.set_data_block_hash_ratio(0.75)

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_compression_type(DBCompressionType.lz4())  # every wheel of rocksdict has it
    options.set_level_compaction_dynamic_level_bytes(True)

    # Memory: a table that is hardly written must not take a large arena out of the common budget.
    options.set_write_buffer_manager(buffers)
    options.set_write_buffer_size(max(buffers.get_buffer_size() // 4, _MIB))
    options.set_arena_block_size(64 * 1024)
    # Most keys that are looked up are not among the latest writes: a filter spares the search there. It is made with
    # the memtable, so it is small: each table of each shard takes it from the common budget.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.002)

    # A writer that stalls holds the GIL: let files pile up instead.
    options.set_level_zero_file_num_compaction_trigger(4)
    options.set_level_zero_slowdown_writes_trigger(60)
    options.set_level_zero_stop_writes_trigger(200)
    options.set_max_write_buffer_number(8)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)
    options.set_bytes_per_sync(_MIB)

    # Tens of databases in one process: few threads, files and statistics for each.
    options.set_max_background_jobs(2)
    options.set_max_file_opening_threads(1)
    options.set_max_open_files(128)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MIB)
    options.set_manifest_preallocation_size(64 * 1024)
    return options


def _state_error(what: str, path: Path, problem: Exception) -> StateError:
    """A sentence for what RocksDB or the file system said."""
    text = str(problem)
    if isinstance(problem, DbClosedError):
        return StateError(f"{what}: {text}")
    for sign, meaning in _SIGNS:
        if sign in text:
            return StateError(f"{what}, in {path}: {meaning} ({text})")
    return StateError(f"{what}, in {path}: {text}")


def _link_or_copy(source: str, target: str) -> None:
    """RocksDB never changes a data file: both directories may share it."""
    if source.endswith(".sst"):
        try:
            os.link(source, target)
        except OSError:
            pass  # another file system
        else:
            return
    shutil.copy2(source, target)

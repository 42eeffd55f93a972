"""The embedded log as a transport: which thread does what, in which order.

- one writer thread: epochs, appends, topics, positions. What is given to it is done in that order, so that
  positions are read after an epoch whose sender was cancelled;
- two reader threads: fetches and questions;
- one upkeep thread, one watcher thread, and one thread per membership.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from millstream.clock import SystemClock
from millstream.errors import InternalError
from millstream.hooks import reached
from millstream.records import TopicPartition
from millstream.transports.base import CommitResult
from millstream.transports.local import groups, log
from millstream.transports.local.changes import Bell, Watcher
from millstream.transports.local.file import PAGE_BYTES, WAL_PAGES, LogFile
from millstream.transports.local.membership import LocalMembership, Terms
from millstream.transports.local.segment import slices
from millstream.transports.local.threads import Threads
from millstream.transports.local.upkeep import Upkeep

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Collection, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.transports.base import (
        AssignFunction,
        Epoch,
        Fetched,
        GroupDescription,
        GroupInputs,
        Membership,
        OffsetAndMetadata,
        Reader,
        TopicInfo,
        TopicSpec,
    )
    from millstream.transports.batch import Outgoing
    from millstream.transports.local.segment import Slice

__all__ = ["LocalTransport"]

P = ParamSpec("P")
T = TypeVar("T")

MAX_POLL_INTERVAL_S = 30.0
READER_THREADS = 2
TRANSACTION_BYTES = 4 * PAGE_BYTES
"""What a small transaction adds to the -wal file, roughly."""


class LocalTransport:
    """The log in one SQLite file.

    Args:
        path: the file; its directory must exist.
        clock: tells when batches were appended, and how long a fetch waits. Leases run on the machine's
            boot-time clock whatever it says.
        max_poll_interval_s: for how long heartbeats go on without `Membership.alive`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        max_poll_interval_s: float = MAX_POLL_INTERVAL_S,
    ) -> None:
        self._path = Path(path).expanduser().absolute()
        self._clock = clock or SystemClock()
        self._max_poll_interval_s = max_poll_interval_s
        self._open: _Open | None = None

    @property
    def url(self) -> str:
        """``local://`` and the file's absolute path."""
        return f"local://{self._path}"

    async def __aenter__(self) -> LocalTransport:
        file = LogFile(self._path)
        await asyncio.to_thread(file.prepare)
        self._open = _Open(file)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave the groups that were not left, finish what was begun, and close the file."""
        opened, self._open = self._open, None
        if opened is not None:
            await asyncio.shield(opened.close())

    # topics

    async def topics(self) -> dict[str, TopicInfo]:
        """Every topic by name."""
        return await self._read(log.topics)

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that do not exist; ``replication`` and ``config`` mean nothing here.

        Raises:
            ConfigurationError: a name or partition count that no log takes.
        """
        log.check_specs(specs)
        await self._write(log.create_topics, specs)

    async def delete_topics(self, names: Collection[str]) -> None:
        """Remove topics; `maintain` gives their space back."""
        await self._write(log.delete_topics, names)

    async def start_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds."""
        rows = await self._read(_partition_rows, tps, where=self.url)
        return {tp: row.start_offset for tp, row in rows.items()}

    async def end_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition."""
        rows = await self._read(_partition_rows, tps, where=self.url)
        return {tp: row.end_offset for tp, row in rows.items()}

    async def readable_ends(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The same: no transaction is ever open."""
        return await self.end_offsets(tps)

    async def offsets_at(
        self, tps: Collection[TopicPartition], timestamp: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record has at least that timestamp (ms); the end where none has."""
        return await self._read(_offsets_at, tps, timestamp, where=self.url)

    async def purge(self, before: Mapping[TopicPartition, int]) -> None:
        """Forget records below an offset; `maintain` gives their space back."""
        await self._write(log.purge, before, where=self.url)

    # records

    def reader(self) -> Reader:
        """A reader of its own, for one task at a time."""
        return _LocalReader(self)

    async def append(self, records: Mapping[TopicPartition, Outgoing]) -> dict[TopicPartition, int]:
        """Append outside any epoch, all of it or nothing; durable when it returns."""
        opened = self._opened()
        placed = await opened.writer.run(
            _append, opened.file, records, now=self._clock.now(), where=self.url
        )
        opened.wrote(placed)
        return {tp: place.first_offset for tp, place in placed.items()}

    async def commit(self, epoch: Epoch) -> CommitResult:
        """Make an epoch visible as a whole, with one fsync; also renews the member's lease."""
        opened = self._opened()
        placed = await opened.writer.run(
            _commit, opened.file, epoch, now=self._clock.now(), where=self.url
        )
        opened.wrote(placed)
        return CommitResult(next_offsets={tp: place.next_offset for tp, place in placed.items()})

    # groups

    async def committed(
        self, group: str, tps: Collection[TopicPartition], *, settled: bool = True
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions; settled, it takes the write lock for a moment, so that no epoch is open."""
        run = self._write if settled else self._read
        return await run(groups.positions, group, tps)

    async def set_committed(
        self, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Set positions of a group without live members.

        Raises:
            FencedError: the group has live members.
        """
        await self._write(_set_committed, group, offsets, where=self.url)

    async def join(
        self,
        group: str,
        *,
        metadata: bytes,
        assign: AssignFunction,
        session_timeout_s: float,
        inputs: GroupInputs | None = None,
    ) -> Membership:
        """Join a group."""
        opened = self._opened()
        terms = Terms(
            group=group,
            assign=assign,
            session_timeout_s=session_timeout_s,
            max_poll_interval_s=self._max_poll_interval_s,
        )
        membership = LocalMembership(opened.file, terms, metadata)
        opened.memberships.append(membership)
        await membership.join()
        return membership

    async def describe_group(self, group: str) -> GroupDescription:
        """The group as it is, without members whose lease is over or whose process is gone."""
        return await self._read(groups.describe, group)

    async def groups(self) -> list[str]:
        """Names of the groups that have live members or committed positions, sorted."""
        return await self._read(groups.names)

    # upkeep

    async def maintain(self) -> None:
        """Retention and compaction, a bounded piece; nothing while another process is at it."""
        opened = self._opened()
        await opened.keeper.run(opened.upkeep.run, self._clock.now())

    # threads

    def _opened(self) -> _Open:
        if self._open is None:
            raise InternalError(f"the log {self.url} was used while it was not open")
        return self._open

    async def _read(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        file = self._opened().file

        def read(connection: sqlite3.Connection) -> T:
            with file.reading(connection):
                return work(connection, *args, **kwargs)

        return await self._opened().readers.run(read)

    async def _write(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        opened = self._opened()

        def write(connection: sqlite3.Connection) -> T:
            with opened.file.writing(connection):
                return work(connection, *args, **kwargs)

        result = await opened.writer.run(write)
        opened.bell.ring()
        return result

    async def _fetch(
        self,
        positions: Mapping[TopicPartition, int],
        first: TopicPartition | None,
        max_bytes: int,
        max_wait_s: float,
    ) -> log.FetchPlan:
        opened = self._opened()
        deadline = self._clock.monotonic() + max_wait_s
        while True:
            rings = opened.bell.rings
            plan = await self._read(
                log.fetch, positions, first=first, max_bytes=max_bytes, where=self.url
            )
            left_s = deadline - self._clock.monotonic()
            if plan.fetched or left_s <= 0:
                return plan
            with opened.watcher.watching():
                await opened.bell.wait(rings, self._clock, left_s)


class _Open:
    """What exists while the transport is open."""

    def __init__(self, file: LogFile) -> None:
        self.file = file
        self.bell = Bell()
        self.watcher = Watcher(file, self.bell)
        self.writer = Threads(file, name="writer", durable=True)
        self.readers = Threads(file, name="reader", durable=False, count=READER_THREADS)
        self.keeper = Threads(file, name="upkeep", durable=False)
        self.upkeep = Upkeep(file)
        self.memberships: list[LocalMembership] = []
        self._unchecked = 0

    def wrote(self, placed: Mapping[TopicPartition, log.Placed]) -> None:
        """Wake the readers, and have a checkpoint made now and then."""
        self.bell.ring()
        self._unchecked += TRANSACTION_BYTES + sum(place.size for place in placed.values())
        if self._unchecked >= WAL_PAGES * PAGE_BYTES:
            self._unchecked = 0
            self.writer.follow_up(self.file.checkpoint)

    async def close(self) -> None:
        """Leave, finish, close; in this order, whatever fails."""
        self.bell.ring()
        async with AsyncExitStack() as stack:
            for threads in (self.writer, self.readers, self.keeper):
                stack.push_async_callback(asyncio.to_thread, threads.close)
            stack.push_async_callback(asyncio.to_thread, self.watcher.close)
            if self.upkeep.held:
                stack.push_async_callback(self.keeper.run, self.upkeep.give_up)
            for membership in self.memberships:
                stack.push_async_callback(asyncio.to_thread, membership.close)
                stack.push_async_callback(membership.leave)


class _LocalReader:
    """A reader of the embedded log; remembers whose turn it is."""

    def __init__(self, transport: LocalTransport) -> None:
        self._transport = transport
        self._first: TopicPartition | None = None

    async def fetch(
        self, positions: Mapping[TopicPartition, int], *, max_bytes: int, max_wait_s: float
    ) -> list[Fetched]:
        """Bring what is there for these partitions; one question to the file answers for all."""
        plan = await self._transport._fetch(positions, self._first, max_bytes, max_wait_s)
        self._first = plan.next_first
        return plan.fetched

    async def close(self) -> None:
        """Nothing to do: the threads belong to the transport."""


# in the threads


def _partition_rows(
    connection: sqlite3.Connection, tps: Collection[TopicPartition], *, where: str
) -> dict[TopicPartition, log.PartitionRow]:
    return {tp: log.partition_row(connection, tp, where=where) for tp in tps}


def _offsets_at(
    connection: sqlite3.Connection, tps: Collection[TopicPartition], timestamp: int, *, where: str
) -> dict[TopicPartition, int]:
    return {tp: log.offset_at(connection, tp, timestamp, where=where) for tp in tps}


def _encoded(
    records: Mapping[TopicPartition, Outgoing],
) -> dict[TopicPartition, list[Slice]]:
    """Every partition's batches; built before the lock is taken."""
    return {TopicPartition(*tp): list(slices(some)) for tp, some in records.items() if some}


def _append(
    connection: sqlite3.Connection,
    file: LogFile,
    records: Mapping[TopicPartition, Outgoing],
    *,
    now: int,
    where: str,
) -> dict[TopicPartition, log.Placed]:
    encoded = _encoded(records)
    with file.writing(connection):
        return log.append(connection, encoded, now=now, where=where)


def _commit(
    connection: sqlite3.Connection, file: LogFile, epoch: Epoch, *, now: int, where: str
) -> dict[TopicPartition, log.Placed]:
    encoded = _encoded(epoch.records)
    facts = {"group": epoch.group, "member_id": epoch.member_id, "generation": epoch.generation}
    with file.writing(connection):
        groups.fence(connection, epoch)
        reached("commit.writing", **facts)
        placed = log.append(connection, encoded, now=now, where=where)
        reached("commit.appended", **facts)
        groups.set_positions(connection, epoch.group, epoch.offsets, where=where)
        groups.renew(connection, epoch.group, epoch.member_id)
        reached("commit.positioned", **facts)
    return placed


def _set_committed(
    connection: sqlite3.Connection,
    group: str,
    offsets: Mapping[TopicPartition, OffsetAndMetadata],
    *,
    where: str,
) -> None:
    groups.refuse_if_live(connection, group)
    groups.set_positions(connection, group, offsets, where=where)

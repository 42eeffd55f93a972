"""Answers from the stores of the shards that this worker owns or has copies of, and changes as it commits them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING

from millstream.errors import BadQueryError, NotHereError, UnavailableError, UnknownTableError
from millstream.records import Position, TopicPartition
from millstream.tables._query import (
    Change,
    Changes,
    Page,
    Peer,
    merge_pages,
)
from millstream.worker._assign import decode_assignment, urls_of
from millstream.worker._copy import Copy
from millstream.worker._read import read_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from millstream.tables._query import Read, TableInfo
    from millstream.transports.base import Assignment, Transport
    from millstream.worker._shard import Shard, ShardCut
    from millstream.worker._worker import Worker

__all__ = ["GroupQueries", "LocalQueries"]

AT_LEAST_TIMEOUT_S = 10.0
"""How long an answer waits for the records that it has to reflect."""
PENDING_MAX = 4_096
"""Entries kept for one who follows changes, before some are dropped."""
FOLLOWERS_MAX = 1_000
DESCRIBED_S = 0.5
"""How long a description of the group is used again."""


class LocalQueries:
    """What this worker can answer itself: a `Queries` for the shards that it owns, or has copies of.

    Every answer of an owner is of one commit of each shard: stores are read while no epoch is being written. A copy
    has committed data only, and each entry as some commit left it.
    """

    def __init__(self, worker: Worker, tables: Mapping[str, TableInfo]) -> None:
        self.tables = tables
        self._worker = worker
        self._followers: dict[str, set[_Follower]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._confirmed_s = -float("inf")
        self._peers: tuple[Assignment | None, list[Peer]] = (None, [])
        worker.committer.listeners.append(self._committed)

    def close(self) -> None:
        """Stop following commits."""
        with contextlib.suppress(ValueError):  # closed before
            self._worker.committer.listeners.remove(self._committed)

    async def peers(self) -> list[Peer]:
        """The workers of the group, as of the last assignment; this one has ``here``."""
        assignment = self._worker.assignment
        if assignment is None:
            return []
        if self._peers[0] is not assignment:
            self._peers = (
                assignment,
                _peers(assignment.members, assignment.shares, here=assignment.member_id),
            )
        return self._peers[1]

    # reading --------------------------------------------------------------------------------------

    async def read(self, read: Read) -> Page:
        """Answer from the shards that ``read.shards`` names.

        Raises:
            NotHereError: one of them is not owned by this worker, and a copy is not what was asked for, or too old.
            UnavailableError: one is not ready, the group has not confirmed this worker for too long, or the
                records of ``at_least`` did not come in time.
            BadQueryError: ``at_least`` names a topic that the shards do not read.
        """
        info = self._info(read.table)
        if info.everywhere:
            part = self._worker.options.everywhere[info.name]
            entries, after = read_store(part.store, info, read)
            return Page(entries=entries, position={}, next=after)
        await self._reach(info, read)
        pages = []
        for number in read.shards:
            shard = self._holder(info, read, number)
            async with shard.store_lock:
                if self._holder(info, read, number) is not shard:
                    raise NotHereError(f"Shard {number} of {info.partitions} has just moved.")
                stale_ms = self._staleness(read, shard)
                store = shard.store.table(info.name)
                entries, after = read_store(
                    store, info, read, stream_time=shard.stream_time_of(read.table)
                )
                pages.append(
                    Page(
                        entries=entries,
                        position=shard.position_text(),
                        next=after,
                        stale_ms=stale_ms,
                    )
                )
        return merge_pages(info, pages, limit=read.limit, reverse=read.reverse)

    def _info(self, table: str) -> TableInfo:
        try:
            return self.tables[table]
        except KeyError:
            raise UnknownTableError(table, self.tables) from None

    def _shard(self, info: TableInfo, number: int) -> Shard:
        shard = self._worker.shards.get((info.partitions, number))
        if shard is None:
            raise NotHereError(
                f"Shard {number} of {info.partitions} is not owned by worker {self._worker.url}."
            )
        if not shard.ready.is_set():
            raise NotHereError(
                f"Shard {number} of {info.partitions} is being recovered; ask again."
            )
        return shard

    def _holder(self, info: TableInfo, read: Read, number: int) -> Shard | Copy:
        """Who has the state here: a copy will do for those who are content with an older answer."""
        copy = self._worker.copies.by_shard.get((info.partitions, number))
        if copy is None or read.stale_ms is None:
            return self._shard(info, number)
        self._age_ms(read, copy)
        return copy

    def _age_ms(self, read: Read, copy: Copy) -> int:
        """How old the answer of a copy may be: it has everything up to then, whoever owns the shard by now."""
        age_s = copy.age_s()
        if not math.isfinite(age_s) or math.ceil(age_s * 1_000) > (read.stale_ms or 0):
            behind = f"by {age_s:.1f} s" if math.isfinite(age_s) else "and has to catch up first"
            raise NotHereError(
                f"The copy of shard {copy.number} of {copy.count} on worker {self._worker.url} is behind {behind}."
            )
        return math.ceil(age_s * 1_000)

    def _staleness(self, read: Read, shard: Shard | Copy) -> int | None:
        """How old the answer may be; None where it is current (invariant 24).

        While the group confirms this worker, nobody else has committed to its shards.
        """
        worker, now = self._worker, time.monotonic()
        if isinstance(shard, Copy):
            return self._age_ms(read, shard)
        if worker.membership is None or worker.membership.current():
            self._confirmed_s = max(self._confirmed_s, now - worker.plan.session_timeout_s)
            return None
        age_s = now - self._confirmed_s
        age_ms = math.ceil(age_s * 1_000) if math.isfinite(age_s) else None
        if age_ms is None or read.stale_ms is None or age_ms > read.stale_ms:
            raise UnavailableError(
                "The group has not confirmed this worker within the session time-out: another one may"
                " own the shard by now. Ask again, or allow an older answer with stale=."
            )
        return age_ms

    async def _reach(self, info: TableInfo, read: Read) -> None:
        """Wait until the shards have committed the records of ``at_least``."""
        wanted = [
            (number, TopicPartition(topic, partition), offset)
            for topic, partition, offset in read.at_least
            for number in self._readers_of(info, read, TopicPartition(topic, partition))
        ]
        try:
            async with asyncio.timeout(AT_LEAST_TIMEOUT_S):
                for number, tp, offset in wanted:
                    while self._holder(info, read, number).committed.get(tp, 0) <= offset:
                        await self._next_commit()
        except TimeoutError:
            raise UnavailableError(
                f"{Position(*tp, offset)} was not processed within {AT_LEAST_TIMEOUT_S:.0f} s:"
                f" {tp} is committed up to {self._holder(info, read, number).committed.get(tp, 0)}."
            ) from None

    def _readers_of(self, info: TableInfo, read: Read, tp: TopicPartition) -> list[int]:
        shards = [self._holder(info, read, number) for number in read.shards]
        found = [shard.number for shard in shards if tp in shard.inputs()]
        if found or (read.key is None and self._reads(shards, tp.topic)):
            return found
        topics = sorted({input_.topic for shard in shards for input_ in shard.inputs()})
        raise BadQueryError(
            f"at_least={tp}: the shard of table {info.name!r} that is asked reads"
            f" {', '.join(topics) or 'no topic'}, in its own partition only. Behind a repartition, or for"
            f" a key of another partition, an answer cannot tell which records it reflects."
        )

    @staticmethod
    def _reads(shards: list[Shard | Copy], topic: str) -> bool:
        return any(topic == input_.topic for shard in shards for input_ in shard.inputs())

    async def _next_commit(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=0.25)  # a shard may also move meanwhile
        finally:
            self._waiting.discard(future)

    # following ------------------------------------------------------------------------------------

    async def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        """Changes of this worker's shards, whichever they are at the time; see `Queries.changes`.

        Raises:
            UnavailableError: more than `FOLLOWERS_MAX` follow the table already.
        """
        info = self._info(table)
        followers = self._followers.setdefault(table, set())
        if len(followers) >= FOLLOWERS_MAX:
            raise UnavailableError(f"{len(followers)} already follow table {table!r}.")
        follower = _Follower(info, key)
        followers.add(follower)
        try:
            yield Changes(changes=[])
            while True:
                yield await follower.next()
        finally:
            followers.discard(follower)

    def publish(self, table: str, entries: Mapping[bytes, bytes | None]) -> None:
        """Tell those who follow a table of entries that are in the store now, by state key.

        Commits do it by themselves; whoever fills a global table calls it.
        """
        for follower in self._followers.get(table, ()):
            follower.add(entries)

    def _committed(self, cut: ShardCut) -> None:
        self._confirmed_s = time.monotonic()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        for table, slices in cut.changes.items():
            if self._followers.get(table):
                for entries in slices:
                    self.publish(table, entries)


class GroupQueries:
    """A `LocalQueries` for those who run no worker: it holds nothing, and knows who does."""

    def __init__(self, transport: Transport, group: str, tables: Mapping[str, TableInfo]) -> None:
        self.tables = tables
        self._transport = transport
        self._group = group
        self._described: tuple[float, list[Peer]] = (-float("inf"), [])

    async def peers(self) -> list[Peer]:
        """The workers of the group, as the log has them."""
        now = time.monotonic()
        if now - self._described[0] > DESCRIBED_S:
            found = await self._transport.describe_group(self._group)
            self._described = (now, _peers(found.members, found.assigned, here=None))
        return self._described[1]

    async def read(self, read: Read) -> Page:
        raise NotHereError("This process runs no worker.")

    async def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        yield Changes(changes=[])
        await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing is held."""


def _peers(
    members: Mapping[str, bytes], shares: Mapping[str, bytes], *, here: str | None
) -> list[Peer]:
    """Those whose words can be read; one of another release may be in the group and have nothing to do."""
    found = []
    for member, url in urls_of(members).items():
        share = decode_assignment(shares.get(member, b""))
        found.append(
            Peer(
                member=member,
                url=url,
                shards=frozenset(share.active),
                copies=frozenset((*share.standby, *share.warming)),
                here=member == here,
            )
        )
    return found


class _Follower:
    """One who follows a table's changes: the last value of each entry that was not taken yet."""

    def __init__(self, info: TableInfo, key: bytes | None) -> None:
        self._info = info
        self._key = key
        self._pending: dict[bytes, bytes | None] = {}
        self._missed = False
        self._arrived = asyncio.Event()

    def add(self, entries: Mapping[bytes, bytes | None]) -> None:
        pending, key = self._pending, self._key
        for state_key, stored in entries.items():
            if key is not None:
                parsed = self._info.parse_state_key(state_key)
                if parsed is None or parsed[0] != key:
                    continue
            pending.pop(state_key, None)
            pending[state_key] = stored
        while len(pending) > PENDING_MAX:
            del pending[next(iter(pending))]
            self._missed = True
        if pending:
            self._arrived.set()

    async def next(self) -> Changes:
        changes: list[Change] = []
        missed = False
        while not changes and not missed:
            await self._arrived.wait()
            self._arrived.clear()
            pending, self._pending = self._pending, {}
            missed, self._missed = self._missed, False
            for state_key, stored in pending.items():
                parsed = self._info.parse_state_key(state_key)
                if parsed is not None:
                    value = None if stored is None else self._info.state_value(stored)
                    changes.append(Change(*parsed, value))
        return Changes(changes=changes, missed=missed)

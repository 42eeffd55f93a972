"""Copies of shards that other workers own: standbys, and those that are being warmed up.

Theory of operation
-------------------
A copy is a store like an owner's, filled from the changelogs alone: committed data, applied by bytes, each table with
its position. So a copy becomes an owner's store by replaying what it still lacks, and an owner's store becomes
a copy by being followed from where it is.

One task follows the changelogs of all copies, another one *looks* once a second where they end. A look is what makes a
copy's age known: once the copy is at the ends that a look has found, it has everything up to the moment of that look.
A look also takes the group's committed positions, before the ends. A copy that has reached the ends reflects at
least these positions. And only so far are tables followed that are read from a topic (invariant 22): their
topic is ahead of what the owner has processed, and notes of records that are no part of them have to be here first.

What copies take of the event loop is bounded: after each step they let the others have as much time as it took.
A few of those that are far behind are followed at a time, those that are to be owned here first; what one fetch
brings is bounded in bytes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from millstream.errors import LogUnavailableError, OffsetOutOfRangeError, UnknownTopicError
from millstream.worker._assign import LAG_UNKNOWN
from millstream.worker._copy import Copy, Look, is_warm
from millstream.worker._recovery import RecoveryProgress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from millstream.records import TopicPartition
    from millstream.state.base import ShardStore
    from millstream.transports.base import Fetched, OffsetAndMetadata, Reader
    from millstream.worker._assign import ShardId
    from millstream.worker._specs import AgentSpec, ShardOptions, TableSpec

__all__ = ["Copies"]

logger = logging.getLogger("millstream.worker")

FETCH_BYTES_MAX = 2 << 20
"""What all copies of a worker fetch at a time."""
FETCH_WAIT_S = 0.5
LOOK_S = 1.0
"""How often the ends of the changelogs are looked up: about as old is an answer of a copy that keeps up."""
SHARE = 0.5
"""Of the time of the event loop, for copies, where the worker owns shards as well."""
COLD_MAX = 4
"""Copies far behind that are followed at a time."""
TELL_S = 2.0
"""How long the group waits for further copies that are being warmed up, to move them with the first one."""
TELL_AGAIN_S = 30.0
"""When the group is told again of a copy that is warm and was not moved: its old owner may take its time."""
AGAIN_S = 1.0
"""Between two attempts at a log that does not answer."""
NOTE_S = 5.0
"""How often the group is told how far behind copies are; at once where one becomes warm, or is not any more."""


class Copies:
    """All copies of a worker. `run` follows them.

    Args:
        tables: by partition count; so are the agents.
        caught_up: tells the group that copies which are to be owned here are warm.
        note: has the group know how far behind copies are, with the next rebalance.
        has_work: whether the event loop has other work.
    """

    def __init__(
        self,
        options: ShardOptions,
        *,
        tables: Mapping[int, Sequence[TableSpec]],
        agents: Mapping[int, Sequence[AgentSpec]],
        caught_up: Callable[[], Awaitable[None]],
        note: Callable[[], None],
        has_work: Callable[[], bool],
    ) -> None:
        self.by_shard: dict[ShardId, Copy] = {}
        self.progress = RecoveryProgress()
        self._options = options
        self._tables = tables
        self._agents = agents
        self._caught_up = caught_up
        self._note = note
        self._has_work = has_work
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._told: dict[ShardId, float] = {}
        """Of which copies the group was told that they are warm, and when."""
        self._noted: tuple[float, dict[ShardId, int]] = (float("-inf"), {})
        self._committed: Mapping[TopicPartition, OffsetAndMetadata] = {}

    def keep(self, shard_id: ShardId, store: ShardStore, *, warming: bool) -> None:
        """Begin to follow a shard in a store, which is this one's until it is released."""
        count = shard_id[0]
        copy = self.by_shard[shard_id] = Copy(
            shard_id,
            store,
            tables=self._tables.get(count, ()),
            agents=self._agents.get(count, ()),
            options=self._options,
        )
        copy.warming = warming
        self._stir()

    def set_role(self, shard_id: ShardId, *, warming: bool) -> None:
        """Say what a copy is for."""
        copy = self.by_shard[shard_id]
        if copy.warming is not warming:
            copy.warming = warming
            self._told.pop(shard_id, None)
            self._stir()

    def release(self, shard_id: ShardId) -> ShardStore:
        """Stop following a shard, and give its store away; nothing is written to it any more."""
        copy = self.by_shard.pop(shard_id)
        copy.released = True
        self._told.pop(shard_id, None)
        self._stir()
        return copy.store

    def _stir(self) -> None:
        self._changed.set()
        self._news.set()

    def lags(self) -> dict[ShardId, int]:
        """How far behind each copy is, in records."""
        return {shard_id: copy.lag for shard_id, copy in self.by_shard.items()}

    async def run(self) -> NoReturn:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="copies")
            tasks.create_task(self._look_for_ever(), name="ends of changelogs")
            tasks.create_task(self._follow_positions(), name="committed positions")
            tasks.create_task(self._tell(), name="warm copies")
        raise AssertionError("its tasks never end")

    # following ------------------------------------------------------------------------------------

    def _followed(self) -> list[Copy]:
        """All that are close to the end, and a few others."""
        ordered = sorted(self.by_shard.items(), key=lambda item: (not item[1].warming, item[0]))
        cold = [copy for _, copy in ordered if not copy.warm]
        return [*(copy for _, copy in ordered if copy.warm), *cold[:COLD_MAX]]

    async def _follow(self) -> NoReturn:
        reader = self._options.transport.reader()
        try:
            while True:
                try:
                    await self._follow_once(reader)
                except LogUnavailableError as exc:
                    logger.warning("copies wait for the log: %s", exc)
                    await asyncio.sleep(AGAIN_S)
                except (OffsetOutOfRangeError, UnknownTopicError) as exc:
                    logger.warning("copies are looked over: %s", exc)
                    for copy in self.by_shard.values():
                        copy.tables, copy.lag = [], LAG_UNKNOWN
                    await asyncio.sleep(AGAIN_S)
        finally:
            await reader.close()

    async def _follow_once(self, reader: Reader) -> None:
        self._changed.clear()
        positions: dict[TopicPartition, int] = {}
        owner: dict[TopicPartition, Copy] = {}
        for copy in self._followed():
            if not copy.tables:
                await copy.begin(self.progress)
                self._news.set()
            if not copy.released:
                positions.update(copy.positions())
                owner.update(dict.fromkeys(copy.positions(), copy))
        if not positions:
            await self._changed.wait()
            return
        for fetched in await self._fetch(reader, positions):
            copy = owner[fetched.tp]
            if not copy.released:
                was = copy.warm
                rest = (1 - SHARE) / SHARE if self._has_work() else 0.0
                await copy.take(fetched, rest=rest, progress=self.progress)
                if copy.warm and not was:
                    self._news.set()

    async def _fetch(
        self, reader: Reader, positions: Mapping[TopicPartition, int]
    ) -> list[Fetched]:
        """What the log brings, unless other copies are to be followed first."""
        fetching = asyncio.ensure_future(
            reader.fetch(positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=FETCH_WAIT_S)
        )
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({fetching, changed}, return_when=asyncio.FIRST_COMPLETED)
            return fetching.result() if fetching.done() else []
        finally:
            for task in (fetching, changed):
                task.cancel()
            await asyncio.gather(fetching, changed, return_exceptions=True)

    async def _look_for_ever(self) -> NoReturn:
        while True:
            await self._options.clock.sleep(LOOK_S)
            with suppress(LogUnavailableError, UnknownTopicError):  # who follows says it
                await self._look()
            if any(copy.reads_topics for copy in self.by_shard.values()):
                self._changed.set()  # they may go further
            self._news.set()
            self._tell_lags()

    async def _look(self) -> None:
        copies = list(self.by_shard.values())
        tps = [tp for copy in copies for tp in copy.changelogs()]
        if not copies:
            return
        committed = self._committed
        at_s, now = time.monotonic(), self._options.clock.now()
        ends = await self._options.transport.end_offsets(tps) if tps else {}
        for copy in copies:
            if not copy.released and all(tp in ends for tp in copy.changelogs()):
                inputs = set(copy.inputs())
                mine = {tp: found for tp, found in committed.items() if tp in inputs}
                copy.looked(Look(at_s, now, ends, mine))

    async def _follow_positions(self) -> NoReturn:
        """Positions of the group as they are; an epoch that is open counts for the next time."""
        options = self._options
        while True:
            inputs = {tp for copy in self.by_shard.values() for tp in copy.inputs()}
            if inputs:
                with suppress(LogUnavailableError, UnknownTopicError):  # who follows says it
                    self._committed = await options.transport.committed(
                        options.group, inputs, settled=False
                    )
            await options.clock.sleep(LOOK_S)

    # the group ------------------------------------------------------------------------------------

    def _tell_lags(self) -> None:
        at_s, before = self._noted
        lags = self.lags()
        turned = {s: is_warm(lag) for s, lag in lags.items()} != {
            s: is_warm(lag) for s, lag in before.items()
        }
        if turned or (lags != before and time.monotonic() - at_s >= NOTE_S):
            self._noted = (time.monotonic(), lags)
            self._note()

    async def _tell(self) -> NoReturn:
        """Tell the group when copies that are to be owned here are warm: then they move."""
        while True:
            await self._news.wait()
            self._news.clear()
            now = time.monotonic()
            self._told = {
                shard_id: at_s
                for shard_id, at_s in self._told.items()
                if self.by_shard[shard_id].warm and now - at_s < TELL_AGAIN_S
            }
            if not self._untold():
                continue
            with suppress(TimeoutError):  # those that are not warm yet are told later
                async with asyncio.timeout(TELL_S):
                    while any(copy.warming and not copy.warm for copy in self.by_shard.values()):
                        await self._news.wait()
                        self._news.clear()
            untold = self._untold()
            if untold:
                self._told |= dict.fromkeys(untold, time.monotonic())
                with suppress(LogUnavailableError):  # told again after `TELL_AGAIN_S`
                    await self._caught_up()

    def _untold(self) -> set[ShardId]:
        return {
            shard_id
            for shard_id, copy in self.by_shard.items()
            if copy.warming and copy.warm and shard_id not in self._told
        }

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
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from millstream.errors import LogUnavailableError, OffsetOutOfRangeError, UnknownTopicError
from millstream.records import TopicPartition
from millstream.worker._assign import LAG_UNKNOWN
from millstream.worker._assign_group import ACCEPTABLE_LAG
from millstream.worker._metadata import decode_metadata
from millstream.worker._notes import NOTES, NotesPart
from millstream.worker._recovery import (
    RecoveryProgress,
    look_up,
    replay_of,
    replay_slices,
    start_replays,
    write_position,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from millstream.state.base import ShardStore
    from millstream.transports.base import Fetched, OffsetAndMetadata, Reader
    from millstream.worker._assign import ShardId
    from millstream.worker._recovery import Replaying
    from millstream.worker._specs import AgentSpec, ShardOptions, TableSpec

__all__ = ["Copies", "Copy"]

logger = logging.getLogger("millstream.worker")

FETCH_BYTES_MAX = 2 << 20
"""What all copies of a worker fetch at a time."""
FETCH_WAIT_S = 0.5
LOOK_S = 1.0
"""How often the ends of the changelogs are looked up: about as old is an answer of a copy that keeps up."""
LOOKS_MAX = 64
"""Looks that wait for a copy to come up to them; while there are so many, no further ones are noted."""
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
POSITION_MS = 600_000
"""How old the position in a store may become while nothing is written to its table."""
_ENDLESS = 2**63 - 1


class _Look(NamedTuple):
    """What the log held at a moment."""

    at_s: float
    """On the monotonic clock."""
    now: int
    ends: Mapping[TopicPartition, int]
    committed: Mapping[TopicPartition, OffsetAndMetadata]


class Copy:
    """A copy of a shard."""

    def __init__(
        self,
        shard_id: ShardId,
        store: ShardStore,
        *,
        tables: Sequence[TableSpec],
        agents: Sequence[AgentSpec],
        options: ShardOptions,
    ) -> None:
        self.count, self.number = shard_id
        self.name = f"{self.count}-{self.number}"
        self.store = store
        self.store_lock = asyncio.Lock()
        """Held while the store takes what one fetch has brought."""
        self.warming = False
        """Whether it is made in order to own the shard."""
        self.released = False
        """Whether somebody else has the store by now."""
        self.tables: list[Replaying] = []
        """Empty until it is known where they are."""
        self.committed: dict[TopicPartition, int] = {}
        """Positions of the shard's inputs that the copy reflects, at least."""
        self.stream_time = -1
        self.lag = LAG_UNKNOWN
        """In records of its changelogs."""
        self._specs = {table.name: table for table in tables}
        self._agents = {spec.agent.name: spec for spec in agents}
        self._options = options
        self._looks: deque[_Look] = deque()
        self._ends: Mapping[TopicPartition, int] = {}
        self._fresh_s = float("-inf")
        self._noted = 0

    def __repr__(self) -> str:
        return f"<Copy of shard {self.number} of {self.count}>"

    @property
    def warm(self) -> bool:
        """Whether it is close enough to the end for an owner."""
        return self.lag <= ACCEPTABLE_LAG

    def age_s(self) -> float:
        """For how long it may lack what was committed."""
        return time.monotonic() - self._fresh_s

    def inputs(self) -> list[TopicPartition]:
        """The partitions that the shard's agents read, sorted."""
        topics = {topic for spec in self._agents.values() for topic in spec.sources}
        return [TopicPartition(topic, self.number) for topic in sorted(topics)]

    def position_text(self) -> dict[str, int]:
        """Committed offsets of the inputs, as queries report them."""
        return {str(tp): offset for tp, offset in sorted(self.committed.items())}

    # following ------------------------------------------------------------------------------------

    async def begin(self, progress: RecoveryProgress) -> None:
        """Find out what the store lacks."""
        options = self._options
        replays = [replay_of(spec, self.number, options.topic_ids) for spec in self._specs.values()]
        at_s, now = time.monotonic(), options.clock.now()
        bounds = await look_up(options.transport, replays)
        if self.released:
            return
        self.tables = start_replays(
            self.store,
            replays,
            bounds,
            app=options.app,
            now=now,
            progress=progress,
            shard=self.name,
        )
        for each in self.tables:
            each.end = each.position if self._is_source(each) else _ENDLESS
        self._looks.clear()
        self._ends = bounds.ends
        self._measure()
        if not self.reads_topics:
            self._looks.append(_Look(at_s, now, bounds.ends, {}))
        self.advance()

    @property
    def reads_topics(self) -> bool:
        """Whether some table is read from a topic, and no further than its reader has come."""
        return any(spec.source is not None for spec in self._specs.values())

    def _is_source(self, each: Replaying) -> bool:
        return self._specs[each.replay.table].source is not None

    def positions(self) -> dict[TopicPartition, int]:
        """From where it is to be read on."""
        found: dict[TopicPartition, int] = {}
        for each in self.tables:
            if each.position < each.end:
                tp = each.replay.tp
                found[tp] = min(each.position, found.get(tp, each.position))
        return found

    def changelogs(self) -> list[TopicPartition]:
        """Whose ends tell how far behind it is."""
        return [each.replay.tp for each in self.tables if not self._is_source(each)]

    def looked(self, look: _Look) -> None:
        """Take note of where the logs end."""
        if self.tables:
            self._ends = look.ends
            self._measure()
            if len(self._looks) < LOOKS_MAX:
                self._looks.append(look)
            self.advance()

    def _measure(self) -> None:
        self.lag = 0
        for each in self.tables:
            end = each.end if self._is_source(each) else self._ends[each.replay.tp]
            self.lag += max(0, end - each.position)

    def advance(self) -> None:
        """See which looks the copy has come up to."""
        while self._looks:
            look = self._looks[0]
            if any(
                each.position < look.ends[each.replay.tp]
                for each in self.tables
                if not self._is_source(each)
            ):
                return
            self._extend(look)
            if any(each.position < each.end for each in self.tables if self._is_source(each)):
                return
            self._looks.popleft()
            self._reached(look)

    def _extend(self, look: _Look) -> None:
        """Tables that are read from a topic go as far as their reader had come at the look."""
        for each in filter(self._is_source, self.tables):
            spec, tp = self._specs[each.replay.table], each.replay.tp
            found = look.committed.get(tp)
            if found is None:
                continue
            end = max(
                decode_metadata(found.metadata).a.get(spec.reader, found.offset), found.offset
            )
            if end > each.end:
                each.end = end
                each.leave_out = self._passed(each)

    def _passed(self, each: Replaying) -> set[int]:
        """Records that are no part of the table; the notes are as new as the position."""
        if NOTES not in self._specs:
            return set()
        notes = NotesPart(self.store.table(NOTES), _accept)
        return notes.passed(each.replay.table, topic_id=each.replay.topic_id, start=0, end=each.end)

    def stream_time_of(self, table: str) -> int:
        """The highest of the shard's: a copy has no agents, of which one could tell who uses the table."""
        return self.stream_time

    def _reached(self, look: _Look) -> None:
        self._fresh_s = look.at_s
        for tp, found in look.committed.items():
            if tp.partition == self.number:
                self.committed[tp] = found.offset
                self.stream_time = max(self.stream_time, decode_metadata(found.metadata).t)
        for each in self.tables:
            each.written = look.now
        if look.now - self._noted > POSITION_MS:
            self._noted = look.now
            for each in self.tables:
                write_position(self.store, each, app=self._options.app)

    async def take(self, fetched: Fetched, *, rest: float, progress: RecoveryProgress) -> None:
        """Apply what a fetch has brought.

        Args:
            rest: how long to let others work after each step, as a multiple of what it took.
        """
        async with self.store_lock:
            for each in [each for each in self.tables if each.replay.tp == fetched.tp]:
                before, began = each.position, time.perf_counter()
                for _ in replay_slices(self.store, each, fetched, app=self._options.app):
                    progress.records_done += each.position - before
                    before = each.position
                    await asyncio.sleep((time.perf_counter() - began) * rest)
                    if self.released:
                        return
                    began = time.perf_counter()
        self._measure()
        self.advance()


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
            with suppress(LogUnavailableError, UnknownTopicError):
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
                copy.looked(_Look(at_s, now, ends, mine))

    async def _follow_positions(self) -> NoReturn:
        """Positions of the group as they are; an epoch that is open counts for the next time."""
        options = self._options
        while True:
            inputs = {tp for copy in self.by_shard.values() for tp in copy.inputs()}
            if inputs:
                with suppress(LogUnavailableError, UnknownTopicError):
                    self._committed = await options.transport.committed(
                        options.group, inputs, settled=False
                    )
            await options.clock.sleep(LOOK_S)

    # the group ------------------------------------------------------------------------------------

    def _tell_lags(self) -> None:
        at_s, before = self._noted
        lags = self.lags()
        turned = {s: lag <= ACCEPTABLE_LAG for s, lag in lags.items()} != {
            s: lag <= ACCEPTABLE_LAG for s, lag in before.items()
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
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    while any(copy.warming and not copy.warm for copy in self.by_shard.values()):
                        await self._news.wait()
                        self._news.clear()
            untold = self._untold()
            if untold:
                self._told |= dict.fromkeys(untold, time.monotonic())
                with suppress(LogUnavailableError):
                    await self._caught_up()

    def _untold(self) -> set[ShardId]:
        return {
            shard_id
            for shard_id, copy in self.by_shard.items()
            if copy.warming and copy.warm and shard_id not in self._told
        }


def _accept(_: object) -> None:
    return None

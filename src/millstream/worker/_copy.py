"""A copy of one shard that another worker owns: a store that follows the shard's changelogs.

See `millstream.worker._copies` for how copies are kept up to date, and what they are good for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from millstream.records import TopicPartition
from millstream.worker._assign import LAG_UNKNOWN
from millstream.worker._assign_group import ACCEPTABLE_LAG
from millstream.worker._metadata import decode_metadata
from millstream.worker._notes import NOTES, NotesPart
from millstream.worker._recovery import (
    look_up,
    replay_of,
    replay_slices,
    start_replays,
    write_position,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.state.base import ShardStore
    from millstream.transports.base import Fetched, OffsetAndMetadata
    from millstream.worker._assign import ShardId
    from millstream.worker._recovery import RecoveryProgress, Replaying
    from millstream.worker._specs import AgentSpec, ShardOptions, TableSpec

__all__ = ["Copy", "Look", "is_warm"]

LOOKS_MAX = 64
"""Looks that wait for a copy to come up to them; while there are so many, no further ones are noted."""
POSITION_MS = 600_000
"""How old the position in a store may become while nothing is written to its table."""
_ENDLESS = 2**63 - 1


def is_warm(lag: int) -> bool:
    """Whether a copy is close enough to the end for an owner."""
    return lag <= ACCEPTABLE_LAG


class Look(NamedTuple):
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
        self._looks: deque[Look] = deque()
        self._ends: Mapping[TopicPartition, int] = {}
        self._fresh_s = float("-inf")
        self._noted = 0

    def __repr__(self) -> str:
        return f"<Copy of shard {self.number} of {self.count}>"

    @property
    def warm(self) -> bool:
        """Whether it is close enough to the end for an owner."""
        return is_warm(self.lag)

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
            self._looks.append(Look(at_s, now, bounds.ends, {}))
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

    def looked(self, look: Look) -> None:
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

    def _extend(self, look: Look) -> None:
        """Tables that are read from a topic go as far as their reader had come at the look."""
        for each in filter(self._is_source, self.tables):
            spec, tp = self._specs[each.replay.table], each.replay.tp
            found = look.committed.get(tp)
            if found is None:
                continue
            name = self._agents[spec.reader].position_name(tp.topic)
            metadata = decode_metadata(found.metadata)
            end = max(metadata.position_of(name, found.offset), found.offset)
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
        """The lowest of the shard's sub-topologies: a copy has no agents, of which one could tell who uses the table.

        So an entry with a time to live may be shown for longer, and none is missing.
        """
        return self.stream_time

    def _reached(self, look: Look) -> None:
        self._fresh_s = look.at_s
        times = []
        for tp, found in look.committed.items():
            self.committed[tp] = found.offset
            metadata = decode_metadata(found.metadata)
            times += [
                metadata.time_of(spec.position_name(tp.topic))
                for spec in self._agents.values()
                if tp.topic in spec.sources
            ]
        self.stream_time = min(times, default=-1)
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


def _accept(_: object) -> None:
    return None

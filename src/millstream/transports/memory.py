"""A log in memory, for tests: the whole contract, without threads, sleeping, or a clock of its own.

`MemoryLog` is the log; each `MemoryTransport` is one worker's view of it. Everything between two awaits happens
at once, so that an epoch needs no lock: it is checked and encoded in full, and then it is there. Members never
time out; `MemoryTransport.evict` does to a member what a lost heartbeat would do.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millstream.errors import (
    FencedError,
    IllegalGenerationError,
    InternalError,
    OffsetOutOfRangeError,
    UnknownMemberError,
    UnknownTopicError,
)
from millstream.hooks import reached
from millstream.records import TopicPartition
from millstream.transports.base import (
    Assignment,
    CommitResult,
    Fetched,
    GroupDescription,
    OffsetAndMetadata,
    TopicInfo,
)
from millstream.transports.batch import rebase
from millstream.transports.local.changes import Bell
from millstream.transports.local.groups import METADATA_BYTES_MAX
from millstream.transports.local.log import check_specs
from millstream.transports.local.segment import (
    TOMBSTONE_MS,
    Latest,
    Slice,
    StoredBatch,
    check,
    compact,
    first_offset_at,
    slices,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.transports.base import (
        AssignFunction,
        Epoch,
        GroupInputs,
        Membership,
        Reader,
        TopicSpec,
    )
    from millstream.transports.batch import Outgoing

__all__ = ["MemoryLog", "MemoryTransport"]


@dataclass(slots=True)
class _Partition:
    start_offset: int = 0
    end_offset: int = 0
    batches: list[StoredBatch] = field(default_factory=list)


@dataclass(slots=True)
class _Topic:
    info: TopicInfo
    partitions: list[_Partition]


@dataclass(slots=True)
class _Member:
    metadata: bytes
    assign: AssignFunction
    assigned: bytes = b""


@dataclass(slots=True)
class _Group:
    generation: int = 0
    members: dict[str, _Member] = field(default_factory=dict)
    positions: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)

    def rebalance(self) -> None:
        """Begin a generation."""
        metadata = {name: member.metadata for name, member in sorted(self.members.items())}
        if metadata:
            assigned = self.members[min(metadata)].assign(metadata)
            for name, member in self.members.items():
                member.assigned = assigned.get(name, b"")
        self.generation += 1


class MemoryLog:
    """Topics, records and groups that several transports of one event loop share."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._numbers = itertools.count(1)
        self._bell = Bell()

    def batches(self, tp: TopicPartition) -> list[bytes]:
        """What a partition holds; nothing where it does not exist."""
        topic = self._topics.get(tp.topic)
        if topic is None or tp.partition >= len(topic.partitions):
            return []
        return [batch.data for batch in topic.partitions[tp.partition].batches]


class MemoryTransport:
    """A worker's view of a log in memory.

    Args:
        clock: tells when batches were appended, and how long a fetch waits.
        log: what it is a view of; a log of its own if left out.
        name: its url.
    """

    def __init__(
        self, *, clock: Clock, log: MemoryLog | None = None, name: str = "memory://"
    ) -> None:
        self.log = log if log is not None else MemoryLog()
        self._clock = clock
        self._name = name
        self._memberships: list[_MemoryMembership] = []

    @property
    def url(self) -> str:
        """The name that it was given."""
        return self._name

    async def __aenter__(self) -> MemoryTransport:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave the groups that were not left."""
        for membership in self._memberships:
            await membership.leave()

    def evict(self, group: str, member_id: str) -> None:
        """Remove a member, as if its heartbeats had stopped.

        Raises:
            UnknownMemberError: the group has no such member.
        """
        found = self._group(group)
        if member_id not in found.members:
            raise UnknownMemberError(f"group {group!r} has no member {member_id!r}")
        del found.members[member_id]
        found.rebalance()
        self.log._bell.ring()

    # topics

    async def topics(self) -> dict[str, TopicInfo]:
        """Every topic by name."""
        return {name: topic.info for name, topic in sorted(self.log._topics.items())}

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that do not exist; ``replication`` and ``config`` mean nothing here."""
        check_specs(specs)
        for spec in specs:
            if spec.name not in self.log._topics:
                info = TopicInfo(
                    name=spec.name,
                    topic_id=f"memory-{next(self.log._numbers)}",
                    partitions=spec.partitions,
                    retention_ms=spec.retention_ms,
                    compacted=spec.compacted,
                )
                self.log._topics[spec.name] = _Topic(
                    info, [_Partition() for _ in range(spec.partitions)]
                )
        self.log._bell.ring()

    async def delete_topics(self, names: Collection[str]) -> None:
        """Remove topics with their records and committed positions."""
        for name in names:
            self.log._topics.pop(name, None)
        for group in self.log._groups.values():
            for tp in [tp for tp in group.positions if tp.topic in names]:
                del group.positions[tp]
        self.log._bell.ring()

    async def start_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds."""
        return {tp: self._partition(tp).start_offset for tp in tps}

    async def end_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition."""
        return {tp: self._partition(tp).end_offset for tp in tps}

    async def readable_ends(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The same: no transaction is ever open."""
        return await self.end_offsets(tps)

    async def offsets_at(
        self, tps: Collection[TopicPartition], timestamp: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record has at least that timestamp (ms); the end where none has."""
        offsets = {}
        for tp in tps:
            partition = self._partition(tp)
            found = first_offset_at(
                partition.batches, timestamp, start=partition.start_offset, where=str(tp)
            )
            offsets[tp] = partition.end_offset if found is None else found
        return offsets

    async def purge(self, before: Mapping[TopicPartition, int]) -> None:
        """Forget records below an offset."""
        for tp, offset in before.items():
            partition = self._partition(tp)
            if offset > partition.end_offset:
                raise _out_of_range(tp, offset, partition)
        for tp, offset in before.items():
            _start_at(self._partition(tp), offset)

    # records

    def reader(self) -> Reader:
        """A reader of its own, for one task at a time."""
        return _MemoryReader(self)

    async def append(self, records: Mapping[TopicPartition, Outgoing]) -> dict[TopicPartition, int]:
        """Append outside any epoch, all of it or nothing."""
        encoded = self._encoded(records)
        first = {tp: self._partition(tp).end_offset for tp in encoded}
        self._append(encoded)
        return first

    async def commit(self, epoch: Epoch) -> CommitResult:
        """Make an epoch visible as a whole.

        Raises:
            IllegalGenerationError, UnknownMemberError: fenced; nothing was written.
        """
        group = self._group(epoch.group)
        self._fence(group, epoch)
        facts = {"group": epoch.group, "member_id": epoch.member_id, "generation": epoch.generation}
        reached("commit.writing", **facts)
        encoded = self._encoded(epoch.records)
        reached("commit.appended", **facts)
        self._check_positions(epoch.offsets)
        reached("commit.positioned", **facts)
        self._append(encoded)
        group.positions.update(epoch.offsets)
        return CommitResult(next_offsets={tp: self._partition(tp).end_offset for tp in encoded})

    # groups

    async def committed(
        self, group: str, tps: Collection[TopicPartition], *, settled: bool = True
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions; absent where none is."""
        positions = self._group(group).positions
        return {tp: positions[tp] for tp in tps if tp in positions}

    async def set_committed(
        self, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Set positions of a group without live members.

        Raises:
            FencedError: the group has live members.
        """
        found = self._group(group)
        if found.members:
            raise FencedError(
                f"group {group!r} has live members ({', '.join(sorted(found.members))}); its positions"
                f" were not changed. Stop its workers first."
            )
        self._check_positions(offsets)
        found.positions.update(offsets)

    async def join(
        self,
        group: str,
        *,
        metadata: bytes,
        assign: AssignFunction,
        session_timeout_s: float,
        inputs: GroupInputs | None = None,
    ) -> Membership:
        """Join a group; ``session_timeout_s`` means nothing here."""
        membership = _MemoryMembership(self.log, self._group(group), _Member(metadata, assign))
        self._memberships.append(membership)
        return membership

    async def describe_group(self, group: str) -> GroupDescription:
        """The group as it is."""
        found = self._group(group)
        return GroupDescription(
            group=group,
            generation=found.generation,
            members={name: member.metadata for name, member in sorted(found.members.items())},
            assigned={name: member.assigned for name, member in sorted(found.members.items())},
        )

    async def groups(self) -> list[str]:
        """Names of the groups that have members or committed positions, sorted."""
        return sorted(
            n for n, group in self.log._groups.items() if group.members or group.positions
        )

    # upkeep

    async def maintain(self) -> None:
        """Retention and compaction, all that is due."""
        now = self._clock.now()
        for topic in self.log._topics.values():
            for number, partition in enumerate(topic.partitions):
                if topic.info.retention_ms is not None:
                    _retain(partition, now - topic.info.retention_ms)
                if topic.info.compacted:
                    _compact(partition, now, where=f"{topic.info.name}/{number}")

    # inside

    def _group(self, name: str) -> _Group:
        return self.log._groups.setdefault(name, _Group())

    def _partition(self, tp: TopicPartition) -> _Partition:
        topic = self.log._topics.get(tp[0])
        if topic is None:
            raise UnknownTopicError(tp[0], where=self.url)
        if not 0 <= tp[1] < len(topic.partitions):
            raise UnknownTopicError(str(TopicPartition(*tp)), where=self.url)
        return topic.partitions[tp[1]]

    def _fence(self, group: _Group, epoch: Epoch) -> None:
        if epoch.member_id not in group.members:
            raise UnknownMemberError(
                f"group {epoch.group!r} has removed member {epoch.member_id!r}; nothing of its epoch"
                f" was written. Its shards belong to others now: it must join again."
            )
        if epoch.generation != group.generation:
            raise IllegalGenerationError(
                f"group {epoch.group!r} is in generation {group.generation}, and the epoch of member"
                f" {epoch.member_id!r} is of generation {epoch.generation}; nothing of it was written."
            )

    def _encoded(
        self, records: Mapping[TopicPartition, Outgoing]
    ) -> dict[TopicPartition, list[Slice]]:
        """Every partition's batches, and all of the partitions exist."""
        for tp in records:
            self._partition(tp)
        return {tp: list(slices(some)) for tp, some in records.items() if some}

    def _append(self, encoded: Mapping[TopicPartition, Sequence[Slice]]) -> None:
        now = self._clock.now()
        for tp, parts in encoded.items():
            partition = self._partition(tp)
            for part in parts:
                at = partition.end_offset
                partition.end_offset = at + part.records
                rebase(part.batch, at)
                partition.batches.append(
                    StoredBatch(at, at + part.records, part.max_timestamp, now, bytes(part.batch))
                )
        self.log._bell.ring()

    def _check_positions(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        for tp, (_, metadata) in offsets.items():
            self._partition(tp)
            if len(metadata.encode()) > METADATA_BYTES_MAX:
                raise InternalError(
                    f"the metadata of the position of {tp} takes {len(metadata.encode()):,} bytes,"
                    f" more than {METADATA_BYTES_MAX:,}"
                )

    def _take(
        self,
        positions: Mapping[TopicPartition, int],
        first: TopicPartition | None,
        max_bytes: int,
    ) -> tuple[list[Fetched], TopicPartition | None]:
        """What is there: partitions take turns of one batch, and who gets none begins the next time."""
        order = list(positions)
        begin = order.index(first) if first in order else 0
        order = order[begin:] + order[:begin]
        ahead = {tp: self._batches_from(tp, positions[tp]) for tp in order}
        taken: dict[TopicPartition, list[bytes]] = {tp: [] for tp in order}
        reached_offset = dict(positions)
        total, refused = 0, None
        waiting = order
        while waiting and refused is None:
            still = []
            for tp in waiting:
                batch = next(ahead[tp], None)
                if batch is None:
                    reached_offset[tp] = self._partition(tp).end_offset
                    continue
                if total and total + len(batch.data) > max_bytes:
                    refused = tp
                    break
                check(batch.data, batch.base_offset, where=str(tp))
                taken[tp].append(batch.data)
                reached_offset[tp] = batch.next_offset
                total += len(batch.data)
                still.append(tp)
            waiting = still
        fetched = [
            Fetched(
                TopicPartition(*tp),
                b"".join(taken[tp]),
                reached_offset[tp],
                self._partition(tp).end_offset,
            )
            for tp in order
            if self._partition(tp).end_offset > positions[tp]
        ]
        return fetched, refused

    def _batches_from(self, tp: TopicPartition, position: int) -> Iterator[StoredBatch]:
        partition = self._partition(tp)
        if not partition.start_offset <= position <= partition.end_offset:
            raise _out_of_range(tp, position, partition)
        begin = bisect_right(partition.batches, position, key=lambda batch: batch.next_offset)
        return itertools.islice(partition.batches, begin, None)

    async def _fetch(
        self,
        positions: Mapping[TopicPartition, int],
        first: TopicPartition | None,
        max_bytes: int,
        max_wait_s: float,
    ) -> tuple[list[Fetched], TopicPartition | None]:
        deadline = self._clock.monotonic() + max_wait_s
        await asyncio.sleep(0)  # a fetch that finds data lets others run as well
        while True:
            rings = self.log._bell.rings
            fetched, refused = self._take(positions, first, max_bytes)
            left_s = deadline - self._clock.monotonic()
            if fetched or left_s <= 0:
                return fetched, refused
            await self.log._bell.wait(rings, self._clock, left_s)


class _MemoryReader:
    """A reader; remembers whose turn it is."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._first: TopicPartition | None = None

    async def fetch(
        self, positions: Mapping[TopicPartition, int], *, max_bytes: int, max_wait_s: float
    ) -> list[Fetched]:
        """Bring what is there for these partitions, waiting for the first data by the clock."""
        fetched, self._first = await self._transport._fetch(
            positions, self._first, max_bytes, max_wait_s
        )
        return fetched

    async def close(self) -> None:
        """Nothing to do."""


class _MemoryMembership:
    """A place in a group."""

    def __init__(self, log: MemoryLog, group: _Group, member: _Member) -> None:
        self._log = log
        self._group = group
        self._member = member
        self._left = False
        self._returned = ("", -1)
        self._member_id = ""
        self._join()

    def _join(self) -> None:
        self._member_id = f"member-{next(self._log._numbers)}"
        self._group.members[self._member_id] = self._member
        try:
            self._group.rebalance()
        except BaseException:
            del self._group.members[self._member_id]
            raise
        self._log._bell.ring()

    async def next_assignment(self) -> Assignment:
        """Wait for the next assignment that was not returned yet."""
        while not self._left:
            if self._member_id not in self._group.members:
                self._join()
            place = (self._member_id, self._group.generation)
            if place != self._returned:
                self._returned = place
                return Assignment(
                    generation=self._group.generation,
                    member_id=self._member_id,
                    assigned=self._member.assigned,
                    members={
                        name: member.metadata
                        for name, member in sorted(self._group.members.items())
                    },
                    shares={
                        name: member.assigned
                        for name, member in sorted(self._group.members.items())
                    },
                )
            await self._log._bell.wait_for_ring(self._log._bell.rings)
        raise InternalError("an assignment was awaited after leaving the group")

    def alive(self) -> None:
        """Nothing to do: members do not time out here."""

    def current(self) -> bool:
        """Whether the member is in the group, under the id that its last assignment gave it."""
        return self._member_id in self._group.members and self._returned[0] == self._member_id

    async def update(self, metadata: bytes) -> None:
        """Replace this member's metadata, which causes a rebalance."""
        self._member.metadata = metadata
        if self._member_id in self._group.members:
            self._group.rebalance()
            self._log._bell.ring()

    def note(self, metadata: bytes) -> None:
        """Replace this member's metadata from the next rebalance on."""
        self._member.metadata = metadata

    async def leave(self) -> None:
        """Leave at once. Idempotent."""
        self._left = True
        if self._group.members.pop(self._member_id, None) is not None:
            self._group.rebalance()
        self._log._bell.ring()

    async def suspect(self, member_id: str, *, processes: Mapping[str, str] | None = None) -> bool:
        """Nothing to do: members are in this process."""
        return False


def _start_at(partition: _Partition, offset: int) -> None:
    partition.start_offset = max(partition.start_offset, offset)
    partition.batches = [
        batch for batch in partition.batches if batch.next_offset > partition.start_offset
    ]


def _retain(partition: _Partition, horizon: int) -> None:
    """Move the start past the batches that were appended before the horizon."""
    live = list(itertools.dropwhile(lambda batch: batch.appended_at < horizon, partition.batches))
    if len(live) < len(partition.batches):
        _start_at(partition, live[0].base_offset if live else partition.end_offset)


def _compact(partition: _Partition, now: int, *, where: str) -> None:
    """Keep the last record of each key; the newest batch stays as it is."""
    older, newest = partition.batches[:-1], partition.batches[-1:]
    if not older:
        return
    latest = Latest(older[0].base_offset, older[-1].next_offset)
    for batch in older:
        latest.note(batch, where=where)
    kept, _ = compact(older, latest, tombstones_before=now - TOMBSTONE_MS, where=where)
    partition.batches = kept + newest


def _out_of_range(
    tp: TopicPartition, position: int, partition: _Partition
) -> OffsetOutOfRangeError:
    return OffsetOutOfRangeError(
        str(TopicPartition(*tp)),
        position=position,
        start=partition.start_offset,
        end=partition.end_offset,
    )

"""The contract of a log: what a worker needs of Kafka, of the embedded log, and of the one in memory.

Data moves as record batches in Kafka's v2 format, whole batches only. Keys and values are bytes here.
Every implementation passes ``tests/transports/conformance.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from millstream.records import TopicPartition
    from millstream.transports.batch import Outgoing

__all__ = [
    "AssignFunction",
    "Assignment",
    "CommitResult",
    "Epoch",
    "Fetched",
    "GroupDescription",
    "GroupInputs",
    "Membership",
    "OffsetAndMetadata",
    "Reader",
    "TopicInfo",
    "TopicSpec",
    "Transport",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic to create.

    ``retention_ms`` is None for a topic that keeps everything. ``compacted`` keeps the last record of each
    key; with a retention as well, records older than it go even if they are the last of their key.
    """

    name: str
    partitions: int
    replication: int = 1
    retention_ms: int | None = None
    compacted: bool = False
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicInfo:
    """A topic that exists. ``topic_id`` is unique for ever: a topic made again has another one.

    ``allowed`` is what we may do with it, of ``read`` and ``write``. Where ``settings_shown`` is False we may not see
    how it is kept: it counts as kept for ever and not compacted.
    """

    name: str
    topic_id: str
    partitions: int
    retention_ms: int | None
    compacted: bool
    allowed: frozenset[str] = frozenset({"read", "write"})
    settings_shown: bool = True


class OffsetAndMetadata(NamedTuple):
    """A committed position: the offset of the next record to read, and up to 4,096 bytes of text."""

    offset: int
    metadata: str = ""


class Fetched(NamedTuple):
    """What one fetch brought of one partition.

    ``data`` is one or more whole v2 record batches of committed data, back to back, or empty. The first
    may begin before the position that was asked for: the reader skips those records. Offsets may have
    gaps (compaction, transaction markers). ``next_offset`` is the position to go on from, also when
    ``data`` is empty; ``end_offset`` is where readers came to the partition's end then, see
    `Transport.readable_ends`. A partition that has more, for which there was no room, comes with no data
    and the position that was asked for. ``checked`` tells that the reader has compared the batches with their checksums.
    """

    tp: TopicPartition
    data: bytes
    next_offset: int
    end_offset: int
    checked: bool = False


class Reader(Protocol):
    """Reads committed record batches from any partitions; holds at most ``max_bytes`` per fetch."""

    async def fetch(
        self, positions: Mapping[TopicPartition, int], *, max_bytes: int, max_wait_s: float
    ) -> list[Fetched]:
        """Bring what is there for these partitions, waiting up to ``max_wait_s`` for the first data.

        At least one whole batch per answered partition, even if larger than ``max_bytes``; partitions
        take turns, so that none starves. Returns an empty list when the time is up. A partition whose
        position reaches the end appears only if it has something new to say. Cancellation is safe.

        Raises:
            OffsetOutOfRangeError: a position is not in the log.
            UnknownTopicError: a topic does not exist.
            LogDamagedError: a batch's checksum is wrong; names partition and offset.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Everything between two commits of a worker, to become visible together or not at all.

    ``generation`` and ``member_id`` are those of the last assignment that the worker had applied when it
    made the cut. Every shard that has records here has at least one entry in ``offsets``.

    One that is not ``atomic`` is written at least once: a log may make the records visible before the offsets, and
    without them where it does not come to that (`IllegalGenerationError.written`).
    """

    group: str
    member_id: str
    generation: int
    offsets: Mapping[TopicPartition, OffsetAndMetadata]
    records: Mapping[TopicPartition, Outgoing]
    atomic: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """For each partition that got records: the offset after the last of them."""

    next_offsets: Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One outcome of a rebalance, as a member receives it.

    ``assigned`` is what the assign function gave this member; ``members`` is every member's metadata, and
    ``shares`` what the function gave each of them. Both may lack members, and have what was true before, where the
    next rebalance has begun already: its outcome follows. So only ``assigned`` is to be relied upon.
    """

    generation: int
    member_id: str
    assigned: bytes
    members: Mapping[str, bytes]
    shares: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription:
    """A group as anyone can see it; ``members`` maps member ids to metadata, live members only.

    ``generation`` is 0 for a group that never was, and may be so for one without members.
    """

    group: str
    generation: int
    members: Mapping[str, bytes]
    assigned: Mapping[str, bytes]


AssignFunction = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
"""Metadata by member id to assignment by member id: pure, deterministic, the same on every member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInputs:
    """What a group reads, in words that tools understand which look at it from outside (monitors of lag).

    ``topics`` tells all those whose positions the group commits: a log may forget positions of other topics. It is
    asked again with each rebalance. ``partitions`` tells what an assignment means: those that its member reads.
    Both may be called in another thread.
    """

    topics: Callable[[], Collection[str]]
    partitions: Callable[[bytes], Collection[TopicPartition]]


class Membership(Protocol):
    """One worker's place in a group. Heartbeats are the transport's business, in its own thread.

    Heartbeats stop when `alive` was not called for ``max_poll_interval_s``, so that a dead event loop
    loses its shards although its process lives.
    """

    async def next_assignment(self) -> Assignment:
        """Wait for the next assignment that was not returned yet; the first comes from joining.

        After the group has removed this member, joins again under a new member id by itself: the
        assignment that follows has another ``member_id``. Cancellation is safe.
        """
        ...

    def alive(self) -> None:
        """Tell that the event loop turns; cheap, called at least once a second."""
        ...

    def current(self) -> bool:
        """Whether the group confirmed this member within the session time-out."""
        ...

    async def update(self, metadata: bytes) -> None:
        """Replace this member's metadata, which causes a rebalance."""
        ...

    def note(self, metadata: bytes) -> None:
        """Replace this member's metadata from the next rebalance on, without causing one. Cheap."""
        ...

    async def leave(self) -> None:
        """Leave at once, so that the others take over without waiting for a time-out. Idempotent.

        A member with a place of its own (static membership) leaves without telling: it comes back.
        """
        ...

    async def suspect(self, member_id: str, *, processes: Mapping[str, str] | None = None) -> bool:
        """Tell that another member's process is gone, as far as the caller can see.

        A log that would wait for the time-out removes it, if this member is the one to do so. A wrong guess
        costs a rebalance and the joining of the removed, no more: the fence decides who may commit.

        Args:
            processes: which process each member is, by member id, as far as that is known: one that was
                removed and is there again was removed by mistake, and then the caller is heard less often.

        Returns:
            Whether it was removed by this call.
        """
        ...


class Transport(Protocol):
    """A log. Opened and closed as an async context manager; safe for many tasks of one event loop."""

    @property
    def url(self) -> str:
        """Where it is, in full, for people; without secrets."""
        ...

    async def __aenter__(self) -> Transport: ...

    async def __aexit__(self, *exc: object) -> None: ...

    # topics

    async def topics(self) -> dict[str, TopicInfo]:
        """Every topic by name."""
        ...

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that do not exist; leaves existing ones as they are, whatever their settings."""
        ...

    async def delete_topics(self, names: Collection[str]) -> None:
        """Remove topics with their records; unknown names are ignored."""
        ...

    async def start_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds."""
        ...

    async def end_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record of each partition (the high watermark).

        Raises:
            UnknownTopicError: a topic, or a partition of it, does not exist.
        """
        ...

    async def readable_ends(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Where readers come to an end for now: before the first transaction that is still open, else `end_offsets`.

        Raises:
            UnknownTopicError: a topic, or a partition of it, does not exist.
        """
        ...

    async def offsets_at(
        self, tps: Collection[TopicPartition], timestamp: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record has at least that timestamp (ms); the end where none has."""
        ...

    async def purge(self, before: Mapping[TopicPartition, int]) -> None:
        """Forget records below an offset, so that the partition starts there."""
        ...

    # records

    def reader(self) -> Reader:
        """A reader of its own, for one task at a time."""
        ...

    async def append(self, records: Mapping[TopicPartition, Outgoing]) -> dict[TopicPartition, int]:
        """Append outside any epoch, all of it or nothing; durable when it returns.

        Returns:
            The offset of the first record appended to each partition.

        Raises:
            UnknownTopicError: a topic or partition does not exist.
            LogUnavailableError: nothing was written.
        """
        ...

    async def commit(self, epoch: Epoch) -> CommitResult:
        """Make an epoch visible as a whole, durable when it returns.

        Raises:
            IllegalGenerationError, UnknownMemberError: fenced; nothing was written.
            LogUnavailableError: nothing was written; the same epoch may be sent again.
            OutcomeUnknownError: it is done, or never will be. Committed offsets tell which, unless they repeat those
                before them.
        """
        ...

    # groups

    async def committed(
        self, group: str, tps: Collection[TopicPartition], *, settled: bool = True
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions; absent where none is.

        Args:
            settled: wait until no epoch is open that could change them, as whoever takes a shard over must. Who only looks
                on gets what is committed now, and disturbs nobody.
        """
        ...

    async def set_committed(
        self, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Set positions of a group without live members (``reset``, ``skip``).

        Raises:
            FencedError: the group has live members.
        """
        ...

    async def join(
        self,
        group: str,
        *,
        metadata: bytes,
        assign: AssignFunction,
        session_timeout_s: float,
        inputs: GroupInputs | None = None,
    ) -> Membership:
        """Join a group; the assignment comes from `Membership.next_assignment`."""
        ...

    async def describe_group(self, group: str) -> GroupDescription:
        """The group as it is; a group that never was has generation 0 and no members."""
        ...

    async def groups(self) -> list[str]:
        """Names of the groups that have live members or committed positions, sorted."""
        ...

    # upkeep

    async def maintain(self) -> None:
        """Retention and compaction, as far as they are this side's duty; bounded work for one call."""
        ...

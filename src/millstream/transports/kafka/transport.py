"""A Kafka cluster as a transport: what is asked of which part."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from millstream.errors import (
    ConfigurationError,
    FencedError,
    IllegalGenerationError,
    InternalError,
    LogUnavailableError,
    RecordTooLargeError,
    UnknownMemberError,
)
from millstream.hooks import reached
from millstream.records import TopicPartition
from millstream.transports.base import CommitResult
from millstream.transports.kafka._address import parse_url
from millstream.transports.kafka._append import Appends
from millstream.transports.kafka._cluster import Access, Cluster
from millstream.transports.kafka._group_words import describe
from millstream.transports.kafka._membership import KafkaMembership, Terms
from millstream.transports.kafka._offsets import Offsets
from millstream.transports.kafka._produce import TooLargeError
from millstream.transports.kafka._reader import KafkaReader
from millstream.transports.kafka._security import Security
from millstream.transports.kafka._stuck import Relief
from millstream.transports.kafka._topics import Topics
from millstream.transports.kafka._transactions import Positions, Transactions
from millstream.transports.local.log import check_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from millstream.transports.base import (
        AssignFunction,
        Epoch,
        GroupDescription,
        GroupInputs,
        Membership,
        OffsetAndMetadata,
        Reader,
        TopicInfo,
        TopicSpec,
    )
    from millstream.transports.batch import Outgoing

__all__ = ["KafkaTransport"]

MAX_POLL_INTERVAL_S = 30.0
SETTLE_S = 2.0
"""How long a description of a group waits for the end of a rebalance."""
UNSETTLED = frozenset({"PreparingRebalance", "CompletingRebalance"})

METADATA_BYTES_MAX = 4_096
"""Brokers' ``offset.metadata.max.bytes``, where nothing else is set."""


class KafkaTransport:
    """A cluster of brokers, from Kafka 2.8 on.

    Args:
        url: ``kafka://host:9092,host2:9092``.
        security: encryption and login.
        transactional_id: what the epochs are committed under; asked for when it is first needed. A
            transport of the same one that commits later ends what this one has open, and fences it.
            Random where None.
        former_id: where nothing is committed under any: the one of the worker that was here before, which may
            have left something open. It is ended with joining. Empty where there was none.
        client_id: how brokers name us in their logs, and what all our transactional ids begin with that
            are not given.
        instance_id: the place in its groups under which a worker comes back after a restart without a
            rebalance (static membership); none where None.
        evict_static: whether other workers that have such a place may be removed as soon as they seem to be gone.
        id_file: where a worker keeps its member id, asked for with joining: who finds it there is the next one on
            the same disk, and has the group let go of the one before. None where there is no such place.
        max_poll_interval_s: for how long heartbeats go on without `Membership.alive`.
    """

    def __init__(
        self,
        url: str,
        *,
        security: Security | None = None,
        transactional_id: Callable[[], str] | None = None,
        former_id: Callable[[], str] = str,
        client_id: str = "millstream",
        instance_id: str | None = None,
        evict_static: bool = False,
        id_file: Callable[[], Path | None] = lambda: None,
        max_poll_interval_s: float = MAX_POLL_INTERVAL_S,
    ) -> None:
        self._access = Access(
            addresses=parse_url(url), security=security or Security(), client_id=client_id
        )
        self._transactional_id = transactional_id
        self._former_id = former_id
        self._instance_id = instance_id
        self._evict_static = evict_static
        self._id_file = id_file
        self._max_poll_interval_s = max_poll_interval_s
        self._open: _Open | None = None

    @property
    def url(self) -> str:
        """``kafka://`` and the brokers that were named."""
        return self._access.url

    async def __aenter__(self) -> KafkaTransport:
        """Find the brokers.

        Raises:
            LogUnavailableError: none of them answers.
            ConfigurationError: encryption or login do not fit, or the brokers are too old.
        """
        cluster = Cluster(self._access)
        await cluster.__aenter__()
        self._open = _Open(cluster, self._transactional_id, self._access.client_id)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave the groups that were not left, finish what was begun, and hang up."""
        opened, self._open = self._open, None
        if opened is not None:
            await asyncio.shield(opened.close())

    # topics

    async def topics(self) -> dict[str, TopicInfo]:
        """Every topic by name, without those that Kafka keeps for itself."""
        return await self._opened().topics.all()

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that do not exist.

        Raises:
            ConfigurationError: a name, count, replication or setting that the brokers do not take, or
                that this user may not.
        """
        check_specs(specs)
        opened = self._opened()
        created = await opened.topics.create(specs)
        # a broker may tell of a partition before its leader answers for it
        await opened.offsets.ends(
            [TopicPartition(spec.name, at) for spec in created for at in range(spec.partitions)]
        )

    async def delete_topics(self, names: Collection[str]) -> None:
        """Remove topics with their records."""
        await self._opened().topics.delete(names)

    async def start_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds."""
        return await self._opened().offsets.starts(tps)

    async def end_offsets(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The high watermark of each partition."""
        return await self._opened().offsets.ends(tps)

    async def readable_ends(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The last stable offset of each partition."""
        return await self._opened().offsets.readable_ends(tps)

    async def offsets_at(
        self, tps: Collection[TopicPartition], timestamp: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record has at least that timestamp (ms); the end where none has."""
        return await self._opened().offsets.at(tps, timestamp)

    async def purge(self, before: Mapping[TopicPartition, int]) -> None:
        """Forget records below an offset.

        Raises:
            OffsetOutOfRangeError: it is above the partition's end; nothing was forgotten.
        """
        await self._opened().offsets.delete_before(before)

    # records

    def reader(self) -> Reader:
        """A reader of its own, for one task at a time."""
        opened = self._opened()
        reader = KafkaReader(opened.cluster, opened.offsets)
        opened.readers.add(reader)
        return reader

    async def append(self, records: Mapping[TopicPartition, Outgoing]) -> dict[TopicPartition, int]:
        """Append outside any epoch, all of it or nothing; all replicas in sync have it when it returns.

        Raises:
            RecordTooLargeError: more than a topic takes; nothing was written.
            OutcomeUnknownError: a broker took it and never answered.
        """
        opened = self._opened()
        await opened.cluster.leaders(records)
        try:
            return await opened.appends.append(records)
        except TooLargeError as exc:
            raise await self._too_large(exc) from exc

    async def commit(self, epoch: Epoch) -> CommitResult:
        """Make an epoch visible as a whole, as one transaction.

        Raises:
            RecordTooLargeError: more than a topic takes; nothing was written.
            FencedError: somebody else uses our transactional id; nothing was written.
        """
        opened = self._opened()
        if not epoch.offsets and not any(epoch.records.values()):
            return CommitResult(next_offsets={})
        for tp, (_, metadata) in epoch.offsets.items():
            if len(metadata.encode()) > METADATA_BYTES_MAX:
                raise InternalError(
                    f"the metadata of the position of {TopicPartition(*tp)} takes"
                    f" {len(metadata.encode()):,} bytes, more than {METADATA_BYTES_MAX:,}"
                )
        await opened.cluster.leaders([*epoch.records, *epoch.offsets])
        commit = self._commit if epoch.atomic else self._commit_in_two
        try:
            return CommitResult(next_offsets=await commit(opened, epoch))
        except TooLargeError as exc:
            raise await self._too_large(exc) from exc
        except IllegalGenerationError as exc:
            # a group that is gone answers so as well, and then there is nothing to go on with
            found = await opened.offsets.describe(epoch.group)
            if epoch.member_id not in {member.member_id for member in found.members}:
                raise UnknownMemberError(
                    f"group {epoch.group!r} has no member {epoch.member_id!r} any more; nothing of its"
                    f" epoch was written. Its shards belong to others now: it must join again."
                ) from exc
            raise

    async def _commit(self, opened: _Open, epoch: Epoch) -> dict[TopicPartition, int]:
        written = await opened.epochs.commit(
            epoch.records,
            Positions(
                group=epoch.group,
                member_id=epoch.member_id,
                generation=epoch.generation,
                offsets=epoch.offsets,
            ),
        )
        return {tp: place.next for tp, place in written.items()}

    async def _commit_in_two(self, opened: _Open, epoch: Epoch) -> dict[TopicPartition, int]:
        """Records first, then positions: what comes between the two repeats, and loses nothing."""
        facts = {"group": epoch.group, "generation": epoch.generation}
        reached("commit.writing", **facts)
        ends = await opened.appends.append_loosely(epoch.records)
        reached("commit.appended", **facts)
        try:
            await opened.offsets.commit(
                epoch.group,
                epoch.offsets,
                member_id=epoch.member_id,
                generation=epoch.generation,
            )
        except IllegalGenerationError as exc:
            exc.written = True
            raise
        reached("commit.positioned", **facts)
        return ends

    # groups

    async def committed(
        self, group: str, tps: Collection[TopicPartition], *, settled: bool = True
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions; settled, once no transaction that could change them is open."""
        opened = self._opened()
        if not settled:
            return await opened.offsets.committed(group, tps, stable=False)
        await opened.epochs.settle()
        return await opened.offsets.committed(group, tps, relief=opened.relief(group))

    async def set_committed(
        self, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Set positions of a group without live members.

        Raises:
            FencedError: the group has live members.
        """
        await self._opened().offsets.set_committed(group, offsets)

    async def join(
        self,
        group: str,
        *,
        metadata: bytes,
        assign: AssignFunction,
        session_timeout_s: float,
        inputs: GroupInputs | None = None,
    ) -> Membership:
        """Join a group; returns when the group knows of the member, which may still wait for the others.

        Raises:
            ConfigurationError: the group has members of another kind, or the brokers refuse us: as a member, or
                the transactional id.
        """
        opened = self._opened()
        if opened.named:
            with suppress(LogUnavailableError):  # then the first commit finds out
                await opened.epochs.claim()
        elif former := self._former_id():
            # else the broker ends it after its time-out; whoever has no right to the id had none before
            with suppress(LogUnavailableError, ConfigurationError, FencedError):
                await Transactions(opened.cluster, lambda: former).claim()
        membership = KafkaMembership(
            self._access,
            Terms(
                group=group,
                assign=assign,
                session_timeout_s=session_timeout_s,
                max_poll_interval_s=self._max_poll_interval_s,
                instance_id=self._instance_id,
                evict_static=self._evict_static,
                id_file=self._id_file(),
                inputs=inputs,
            ),
            metadata,
        )
        opened.memberships.append(membership)
        await membership.join()
        return membership

    async def describe_group(self, group: str) -> GroupDescription:
        """The group as it is; waits a moment where it is being rebalanced."""
        opened = self._opened()
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        while True:
            found = await opened.offsets.describe(group)
            if found.group_state not in UNSETTLED or loop.time() >= until:
                return describe(found)
            await asyncio.sleep(SETTLE_S / 100)

    async def groups(self) -> list[str]:
        """Names of the groups that have live members or committed positions, sorted."""
        return await self._opened().offsets.groups()

    # upkeep

    async def maintain(self) -> None:
        """Nothing: retention and compaction are the brokers'."""

    # inside

    def _opened(self) -> _Open:
        if self._open is None:
            raise InternalError(f"the log {self.url} was used while it was not open")
        return self._open

    async def _too_large(self, exc: TooLargeError) -> RecordTooLargeError:
        topic, name = exc.tp[0], "max.message.bytes"
        limit = await self._opened().topics.config(topic, name)
        key = exc.record[1]
        return RecordTooLargeError(
            f"{TopicPartition(*exc.tp)}: the record with key {key!r}",
            size=exc.size,
            limit=int(limit or 0),
            setting=f"{name} of topic {topic!r}",
        )


class _Open:
    """What exists while the transport is open."""

    def __init__(
        self, cluster: Cluster, transactional_id: Callable[[], str] | None, client_id: str
    ) -> None:
        self.cluster = cluster
        self.topics = Topics(cluster)
        self.offsets = Offsets(cluster)
        self.client_id = client_id
        random = f"{client_id}-{uuid.uuid4().hex}"
        self.epochs = Transactions(cluster, transactional_id or (lambda: random))
        self.named = transactional_id is not None
        self.appends = Appends(cluster, f"{random}-append")
        self.readers: weakref.WeakSet[KafkaReader] = weakref.WeakSet()
        self.memberships: list[KafkaMembership] = []

    def relief(self, group: str) -> Relief | None:
        """What a worker does about transactions that hold its group's positions; others just wait."""
        if not self.named and not self.memberships:
            return None
        own = self.epochs if self.named else None
        return Relief(self.cluster, group, own=own, prefix=f"{self.client_id}-")

    async def close(self) -> None:
        """Leave, finish, hang up; in this order, whatever fails."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.cluster.__aexit__)
            stack.push_async_callback(self.appends.close)
            stack.push_async_callback(self.epochs.close)
            for reader in list(self.readers):
                stack.push_async_callback(reader.close)
            for membership in self.memberships:
                stack.push_async_callback(membership.leave)

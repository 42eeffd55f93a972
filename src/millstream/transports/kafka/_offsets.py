"""Where partitions begin and end, and what groups have committed in them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from kio.schema.delete_records.v2 import DeleteRecordsRequest, DeleteRecordsResponse
from kio.schema.delete_records.v2.request import DeleteRecordsPartition, DeleteRecordsTopic
from kio.schema.describe_groups.v5 import DescribeGroupsRequest, DescribeGroupsResponse
from kio.schema.errors import ErrorCode
from kio.schema.list_groups.v4 import ListGroupsRequest, ListGroupsResponse
from kio.schema.list_offsets.v6 import ListOffsetsRequest, ListOffsetsResponse
from kio.schema.list_offsets.v6.request import ListOffsetsPartition, ListOffsetsTopic
from kio.schema.offset_commit.v8 import OffsetCommitRequest, OffsetCommitResponse
from kio.schema.offset_commit.v8.request import (
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kio.schema.offset_fetch.v7 import OffsetFetchRequest, OffsetFetchResponse
from kio.schema.offset_fetch.v7.request import OffsetFetchRequestTopic
from kio.schema.types import BrokerId, GroupId, TopicName
from kio.static.primitive import i8, i32, i64

from millstream.errors import (
    FencedError,
    IllegalGenerationError,
    LogUnavailableError,
    OffsetOutOfRangeError,
    UnknownMemberError,
    UnknownTopicError,
)
from millstream.records import TopicPartition
from millstream.transports.base import OffsetAndMetadata
from millstream.transports.kafka._cluster import GROUP
from millstream.transports.kafka._errors import (
    COORDINATOR_MOVED,
    LEADER_MOVED,
    AnswerLostError,
    Patience,
    refusal,
)
from millstream.transports.kafka._messages import by_topic, duration, numbers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from kio.schema.describe_groups.v5.response import DescribedGroup

    from millstream.transports.kafka._cluster import Cluster, Leader

    _Outcomes = dict[TopicPartition, tuple[ErrorCode, int]]
    _Send = Callable[[int, Mapping[TopicPartition, Leader]], Awaitable[_Outcomes]]

__all__ = ["Offsets"]

R = TypeVar("R")

LATEST = -1
EARLIEST = -2
READ_UNCOMMITTED, READ_COMMITTED = i8(0), i8(1)
TIMEOUT_S = 30.0
"""How long to try where leaders or coordinators move."""
STABLE_TIMEOUT_S = 25.0
"""How long to wait for transactions of others that hold positions: they time out in 10 s, and somewhat more."""

_AGAIN = COORDINATOR_MOVED | {ErrorCode.request_timed_out}


class Offsets:
    """Questions about offsets, and changes that are not part of an epoch."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    # partitions

    async def starts(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds."""
        return await self._list(tps, EARLIEST)

    async def ends(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The high watermark of each partition: open and aborted transactions count."""
        return await self._list(tps, LATEST)

    async def readable_ends(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The last stable offset of each partition: where the first open transaction begins, or the high watermark."""
        return await self._list(tps, LATEST, isolation=READ_COMMITTED)

    async def at(
        self, tps: Collection[TopicPartition], timestamp: int
    ) -> dict[TopicPartition, int]:
        """The first offset whose record has at least that timestamp (ms); the end where none has."""
        found = await self._list(tps, max(0, timestamp))
        none = [tp for tp, offset in found.items() if offset < 0]
        return {**found, **(await self.ends(none))} if none else found

    async def delete_before(self, before: Mapping[TopicPartition, int]) -> None:
        """Move the partitions' starts up.

        Raises:
            OffsetOutOfRangeError: an offset above a partition's end; nothing was moved.
        """
        starts, ends = await self.starts(before.keys()), await self.ends(before.keys())
        for tp, offset in before.items():
            if offset > ends[tp]:
                raise OffsetOutOfRangeError(
                    str(TopicPartition(*tp)), position=offset, start=starts[tp], end=ends[tp]
                )
        wanted = {tp: offset for tp, offset in before.items() if offset > starts[tp]}

        async def send(node: int, leaders: Mapping[TopicPartition, Leader]) -> _Outcomes:
            answer = await self._cluster.send(
                node,
                DeleteRecordsRequest(
                    topics=tuple(
                        DeleteRecordsTopic(
                            name=TopicName(name),
                            partitions=tuple(
                                DeleteRecordsPartition(
                                    partition_index=i32(number),
                                    offset=i64(wanted[TopicPartition(name, number)]),
                                )
                                for number in found
                            ),
                        )
                        for name, found in by_topic(leaders).items()
                    ),
                    timeout=duration(TIMEOUT_S / 2),
                ),
                DeleteRecordsResponse,
            )
            return {
                TopicPartition(topic.name, part.partition_index): (
                    part.error_code,
                    int(part.low_watermark),
                )
                for topic in answer.topics
                for part in topic.partitions
            }

        await self._at_leaders(wanted.keys(), send, "delete records of")

    async def _list(
        self, tps: Collection[TopicPartition], timestamp: int, *, isolation: i8 = READ_UNCOMMITTED
    ) -> dict[TopicPartition, int]:
        async def send(node: int, leaders: Mapping[TopicPartition, Leader]) -> _Outcomes:
            answer = await self._cluster.send(
                node,
                ListOffsetsRequest(
                    replica_id=BrokerId(-1),
                    isolation_level=isolation,
                    topics=tuple(
                        ListOffsetsTopic(
                            name=TopicName(name),
                            partitions=tuple(
                                ListOffsetsPartition(
                                    partition_index=i32(number),
                                    current_leader_epoch=i32(leader.epoch),
                                    timestamp=i64(timestamp),
                                )
                                for number, leader in found.items()
                            ),
                        )
                        for name, found in by_topic(leaders).items()
                    ),
                ),
                ListOffsetsResponse,
            )
            return {
                TopicPartition(topic.name, part.partition_index): (
                    part.error_code,
                    int(part.offset),
                )
                for topic in answer.topics
                for part in topic.partitions
            }

        return await self._at_leaders(tps, send, "find offsets of")

    async def _at_leaders(
        self, tps: Collection[TopicPartition], send: _Send, doing: str
    ) -> dict[TopicPartition, int]:
        """Ask the leaders, again where they have moved; the answers by partition, in the order of ``tps``."""
        left = [TopicPartition(*tp) for tp in tps]
        done: dict[TopicPartition, int] = {}
        patience = Patience(TIMEOUT_S)
        while left:
            leaders = await self._cluster.leaders(left)
            by_node: dict[int, dict[TopicPartition, Leader]] = {}
            for tp, leader in leaders.items():
                by_node.setdefault(leader.node, {})[tp] = leader
            outcomes = await asyncio.gather(
                *(send(node, found) for node, found in by_node.items()), return_exceptions=True
            )
            problem: Exception | None = None
            for found, outcome in zip(by_node.values(), outcomes, strict=True):
                if isinstance(outcome, (AnswerLostError, LogUnavailableError)):
                    problem = LogUnavailableError(str(outcome))
                    for tp, leader in found.items():
                        self._cluster.forget_leader(tp, leader.epoch)
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                for tp, (code, offset) in outcome.items():
                    if not code:
                        done[tp] = offset
                        continue
                    error = refusal(code, f"{doing} {tp}", where=self._cluster.url)
                    if code in LEADER_MOVED or code is ErrorCode.unknown_topic_or_partition:
                        self._cluster.forget_leader(tp, leaders[tp].epoch)
                    elif code is ErrorCode.offset_out_of_range:
                        raise OffsetOutOfRangeError(str(tp), position=-1, start=-1, end=-1)
                    elif not isinstance(error, LogUnavailableError):
                        raise error
                    problem = LogUnavailableError(str(error))
            left = [tp for tp in left if tp not in done]
            if left:
                await patience.pause(
                    problem
                    or LogUnavailableError(f"{self._cluster.url} did not answer for {left[0]}")
                )
        return {tp: done[TopicPartition(*tp)] for tp in tps}

    # groups

    async def committed(
        self,
        group: str,
        tps: Collection[TopicPartition],
        *,
        stable: bool = True,
        relief: Callable[[float], Awaitable[None]] | None = None,
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions.

        Args:
            stable: wait until no transaction is open that could change them.
            relief: called again and again while one is, with the seconds since that was first seen.

        Raises:
            LogUnavailableError: one stays open.
        """
        request = OffsetFetchRequest(
            group_id=GroupId(group),
            topics=tuple(
                OffsetFetchRequestTopic(name=TopicName(name), partition_indexes=found)
                for name, found in numbers(tps).items()
            ),
            require_stable=stable,
        )
        patience = Patience(STABLE_TIMEOUT_S, first_s=0.002, longest_s=0.1)
        while True:
            answer = await self._of_group(
                group,
                lambda node: self._cluster.send(node, request, OffsetFetchResponse),
                lambda answer: [
                    answer.error_code,
                    *(part.error_code for topic in answer.topics for part in topic.partitions),
                ],
                f"read the positions of group {group!r}",
            )
            found = {}
            open_one = None
            for topic in answer.topics:
                for part in topic.partitions:
                    tp = TopicPartition(topic.name, part.partition_index)
                    if part.error_code is ErrorCode.unstable_offset_commit:
                        open_one = tp
                    elif part.error_code and (
                        part.error_code is not ErrorCode.unknown_topic_or_partition
                    ):
                        raise refusal(
                            part.error_code,
                            f"read the position of {tp} in group {group!r}",
                            where=self._cluster.url,
                        )
                    elif part.committed_offset >= 0:
                        found[tp] = OffsetAndMetadata(
                            int(part.committed_offset), part.metadata or ""
                        )
            if open_one is None:
                return found
            if relief is not None:
                await relief(STABLE_TIMEOUT_S - patience.left_s)
            await patience.pause(
                LogUnavailableError(
                    f"{self._cluster.url}: a transaction holds the position of {open_one} in group"
                    f" {group!r} for {STABLE_TIMEOUT_S:g} s"
                )
            )

    async def set_committed(
        self, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Set positions of a group without members.

        Raises:
            FencedError: it has members.
            UnknownTopicError: a partition does not exist.
        """
        found = await self.describe(group)
        if found.members:
            raise _live(group, [member.member_id for member in found.members])
        await self._cluster.leaders(offsets)
        for where, code in await self._commit(group, offsets):
            if code in (ErrorCode.unknown_member_id, ErrorCode.illegal_generation):
                raise _live(group, [])
            self._refuse(group, where, code)

    async def commit(
        self,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        *,
        member_id: str,
        generation: int,
    ) -> None:
        """Set positions as a member, outside of any transaction.

        Raises:
            IllegalGenerationError, UnknownMemberError, FencedError: it may not any more.
        """
        member = f"member {member_id!r} of group {group!r}"
        for where, code in await self._commit(group, offsets, member_id, generation):
            if code is ErrorCode.illegal_generation:
                raise IllegalGenerationError(
                    f"{member} is not in generation {generation} any more; its positions were not set"
                )
            if code is ErrorCode.unknown_member_id:
                raise UnknownMemberError(
                    f"{member} was removed; its positions were not set. Its shards belong to others now:"
                    f" it must join again."
                )
            if code is ErrorCode.fenced_instance_id:
                raise FencedError(f"{member} was replaced; its positions were not set")
            self._refuse(group, where, code)

    def _refuse(self, group: str, where: str, code: ErrorCode) -> None:
        if code is ErrorCode.unknown_topic_or_partition:
            raise UnknownTopicError(where, where=self._cluster.url)
        if code:
            raise refusal(
                code, f"set the position of {where} in group {group!r}", where=self._cluster.url
            )

    async def _commit(
        self,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        member_id: str = "",
        generation: int = -1,
    ) -> list[tuple[str, ErrorCode]]:
        request = OffsetCommitRequest(
            group_id=GroupId(group),
            generation_id_or_member_epoch=i32(generation),
            member_id=member_id,
            topics=tuple(
                OffsetCommitRequestTopic(
                    name=TopicName(name),
                    partitions=tuple(
                        OffsetCommitRequestPartition(
                            partition_index=i32(number),
                            committed_offset=i64(offset),
                            committed_metadata=metadata,
                        )
                        for number, (offset, metadata) in parts.items()
                    ),
                )
                for name, parts in by_topic(offsets).items()
            ),
        )
        answer = await self._of_group(
            group,
            lambda node: self._cluster.send(node, request, OffsetCommitResponse),
            lambda answer: [
                part.error_code for topic in answer.topics for part in topic.partitions
            ],
            f"set the positions of group {group!r}",
        )
        return [
            (f"{topic.name}/{part.partition_index}", part.error_code)
            for topic in answer.topics
            for part in topic.partitions
        ]

    async def describe(self, group: str) -> DescribedGroup:
        """A group as its coordinator has it; state ``Dead`` where there is none."""
        answer = await self._of_group(
            group,
            lambda node: self._cluster.send(
                node,
                DescribeGroupsRequest(
                    groups=(GroupId(group),), include_authorized_operations=False
                ),
                DescribeGroupsResponse,
            ),
            lambda answer: [found.error_code for found in answer.groups],
            f"describe group {group!r}",
        )
        (found,) = answer.groups
        if found.error_code and found.error_code is not ErrorCode.group_id_not_found:
            raise refusal(found.error_code, f"describe group {group!r}", where=self._cluster.url)
        return found

    async def groups(self) -> list[str]:
        """Groups with members or committed positions, sorted."""
        patience = Patience(TIMEOUT_S)
        while True:
            try:
                answers = [await self._groups_of(node) for node in list(self._cluster.nodes)]
            except LogUnavailableError as exc:
                await patience.pause(exc)
                await self._cluster.describe(
                    ()
                )  # a broker that is gone has left its groups to others
            else:
                return sorted(set().union(*answers))

    async def _groups_of(self, node: int) -> set[str]:
        """The groups that a broker coordinates."""
        try:
            answer = await self._cluster.send(node, ListGroupsRequest(), ListGroupsResponse)
        except AnswerLostError as exc:
            raise LogUnavailableError(str(exc)) from exc
        if answer.error_code:
            raise refusal(answer.error_code, "list groups", where=self._cluster.url)
        return {each.group_id for each in answer.groups if each.group_state != "Dead"}

    async def _of_group(
        self,
        group: str,
        send: Callable[[int], Awaitable[R]],
        codes: Callable[[R], Collection[ErrorCode]],
        doing: str,
    ) -> R:
        """Ask a group's coordinator, again where it has moved or does not answer."""
        patience = Patience(TIMEOUT_S)
        while True:
            problem: Exception
            node = await self._cluster.coordinator(GROUP, group)
            try:
                answer = await send(node)
            except (AnswerLostError, LogUnavailableError) as exc:
                problem = LogUnavailableError(str(exc))
            else:
                moved = [code for code in codes(answer) if code in _AGAIN]
                if not moved:
                    return answer
                problem = refusal(moved[0], doing, where=self._cluster.url)
            self._cluster.forget_coordinator(GROUP, group)
            await patience.pause(problem)


def _live(group: str, members: Collection[str]) -> FencedError:
    named = f" ({', '.join(sorted(members))})" if members else ""
    return FencedError(
        f"group {group!r} has live members{named}; its positions were not changed. Stop its workers first."
    )

"""A group's member as an epoch needs one: joined, with a generation, and nothing that keeps it alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kio.schema.errors import ErrorCode
from kio.schema.join_group.v7 import JoinGroupRequest, JoinGroupResponse
from kio.schema.join_group.v7.request import JoinGroupRequestProtocol
from kio.schema.leave_group.v4 import LeaveGroupRequest, LeaveGroupResponse
from kio.schema.leave_group.v4.request import MemberIdentity
from kio.schema.sync_group.v5 import SyncGroupRequest, SyncGroupResponse
from kio.schema.sync_group.v5.request import SyncGroupRequestAssignment
from kio.schema.types import GroupId

from millstream.transports.base import Epoch, OffsetAndMetadata
from millstream.transports.kafka._address import parse_url
from millstream.transports.kafka._cluster import GROUP, Access, Cluster
from millstream.transports.kafka._messages import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.records import OutgoingRecord, TopicPartition

__all__ = ["Member", "evict", "member_of"]

SESSION_S = 30.0


@dataclass(frozen=True, slots=True)
class Member:
    """The only member of a group."""

    group: str
    member_id: str
    generation: int

    def epoch(
        self,
        offsets: Mapping[TopicPartition, int],
        records: Mapping[TopicPartition, Sequence[OutgoingRecord]] | None = None,
    ) -> Epoch:
        """An epoch of its own."""
        return Epoch(
            group=self.group,
            member_id=self.member_id,
            generation=self.generation,
            offsets={tp: OffsetAndMetadata(offset) for tp, offset in offsets.items()},
            records=records or {},
        )


async def member_of(url: str, group: str) -> Member:
    """Join a group that has no other member."""
    async with Cluster(Access(addresses=parse_url(url))) as cluster:
        member_id = ""
        while True:
            node = await cluster.coordinator(GROUP, group)
            joined = await cluster.send(
                node,
                JoinGroupRequest(
                    group_id=GroupId(group),
                    session_timeout=duration(SESSION_S),
                    rebalance_timeout=duration(SESSION_S),
                    member_id=member_id,
                    protocol_type="test",
                    protocols=(JoinGroupRequestProtocol(name="test", metadata=b""),),
                ),
                JoinGroupResponse,
                alone=True,
            )
            member_id = joined.member_id
            if not joined.error_code:
                break
            if joined.error_code is not ErrorCode.member_id_required:
                cluster.forget_coordinator(GROUP, group)
        await cluster.send(
            node,
            SyncGroupRequest(
                group_id=GroupId(group),
                generation_id=joined.generation_id,
                member_id=member_id,
                protocol_type="test",
                protocol_name="test",
                assignments=(SyncGroupRequestAssignment(member_id=member_id, assignment=b""),),
            ),
            SyncGroupResponse,
        )
        return Member(group, member_id, joined.generation_id)


async def evict(url: str, group: str, member_id: str) -> None:
    """Remove a member from its group behind its back."""
    async with Cluster(Access(addresses=parse_url(url))) as cluster:
        answer = await cluster.send(
            await cluster.coordinator(GROUP, group),
            LeaveGroupRequest(
                group_id=GroupId(group), members=(MemberIdentity(member_id=member_id),)
            ),
            LeaveGroupResponse,
        )
        assert not answer.error_code
        assert [each.error_code for each in answer.members] == [ErrorCode.none]

"""Which worker gets which shards: the function that a group's leader runs, whatever its workers' versions.

Workers of two releases share a group while a program is being upgraded. So a plan has a version, which says how
it is made and how it is to be understood, and each worker tells the newest and the oldest version that it knows.
The leader takes the newest one that all of them understand: as long as one old worker is there everybody does
as it does, and with the rebalance in which it leaves the new version begins.

Who cannot take part is given nothing, and the reason: a worker that does not understand the version of those who
are at work, one of another program under the same app id, one whose words cannot be read. Those who were there first
go on; a leader that gave up instead would leave the group to the next leader, which would give up in turn.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from millstream.worker._assign_plan import plan_shards
from millstream.worker._assign_wire import (
    LAG_UNKNOWN,
    MemberMetadata,
    ShardAssignment,
    ShardId,
    decode_assignment,
    decode_metadata,
    encode_assignment,
    encode_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Planner = Callable[[Mapping[str, MemberMetadata]], Mapping[str, ShardAssignment]]

__all__ = [
    "LAG_UNKNOWN",
    "Assignor",
    "MemberMetadata",
    "ShardAssignment",
    "ShardId",
    "assign_shards",
    "decode_assignment",
    "decode_metadata",
    "encode_assignment",
    "encode_metadata",
    "processes_of",
    "urls_of",
]


class Assignor:
    """An `AssignFunction` that knows several versions of the plan.

    Args:
        planners: how a plan is made, by version.
    """

    def __init__(self, planners: Mapping[int, Planner]) -> None:
        self._planners = dict(planners)

    def __call__(self, members: Mapping[str, bytes]) -> dict[str, bytes]:
        """Metadata by member to assignment by member: pure, and the same in whatever order members come."""
        refused: dict[str, str] = {}
        described: dict[str, MemberMetadata] = {}
        for member, data in sorted(members.items()):
            try:
                described[member] = decode_metadata(data)
            except msgspec.DecodeError as exc:
                refused[member] = (
                    f"what this worker told the group cannot be read by its leader ({exc}): they run"
                    f" releases of Millstream that are too far apart"
                )
        _part_with_strangers(described, refused)
        _part_with_others_guarantees(described, refused)
        plan: Mapping[str, ShardAssignment] = {}
        version = max(self._planners)
        if described:
            version = self._agree(described, refused)
            plan = self._planners[version](described)
        return {
            member: encode_assignment(
                msgspec.structs.replace(plan[member], version=version)
                if member in plan
                else ShardAssignment(version=version, refused=refused[member])
            )
            for member in members
        }

    def _agree(self, described: dict[str, MemberMetadata], refused: dict[str, str]) -> int:
        """The version that suits most of those who own shards, then most of all, then the newest."""

        def suited(version: int) -> list[str]:
            return [
                member
                for member, data in described.items()
                if data.oldest_version <= version <= data.version
            ]

        def rank(version: int) -> tuple[int, int, int]:
            members = suited(version)
            return sum(1 for m in members if described[m].owned), len(members), version

        version = max(self._planners, key=rank)
        for member in described.keys() - set(suited(version)):
            data = described.pop(member)
            refused[member] = (
                f"the group assigns shards by version {version}, and this worker knows the versions"
                f" {data.oldest_version} to {data.version} only: upgrade over a release that knows both"
            )
        return version


def _part_with_strangers(described: dict[str, MemberMetadata], refused: dict[str, str]) -> None:
    """Take out those whose program is another than that of those who own shards."""
    owning = Counter(data.topology for data in described.values() if data.owned)
    programs = owning or Counter(data.topology for data in described.values())
    topology = min(programs, key=lambda name: (-programs[name], name), default="")
    for member in [name for name, data in described.items() if data.topology != topology]:
        refused[member] = (
            f"another program runs under the same app id: it has [{topology}], and this one has"
            f" [{described.pop(member).topology}]. Give one of them another id, or stop its workers first"
        )


def _part_with_others_guarantees(
    described: dict[str, MemberMetadata], refused: dict[str, str]
) -> None:
    """Whoever commits otherwise than most owners is refused: who writes at least once is to be waited for."""
    known = {name: data for name, data in described.items() if data.guarantee}
    owning = Counter(data.guarantee for data in known.values() if data.owned)
    counted = owning or Counter(data.guarantee for data in known.values())
    agreed = max(counted, key=lambda guarantee: (counted[guarantee], guarantee), default="")
    for member in [name for name, data in known.items() if data.guarantee != agreed]:
        refused[member] = (
            f"this worker has processing_guarantee={described.pop(member).guarantee!r}, and the others of its"
            f" group have {agreed!r}. Set the same for all; to change it, stop all of them first"
        )


def processes_of(members: Mapping[str, bytes]) -> dict[str, str]:
    """Which process each member is; those left out that did not say, or whose words cannot be read."""
    found = {}
    for member, data in members.items():
        with suppress(msgspec.DecodeError):
            if process := decode_metadata(data).process:
                found[member] = process
    return found


def urls_of(members: Mapping[str, bytes]) -> dict[str, str]:
    """Where the members answer queries; those left out whose words cannot be read."""
    found = {}
    for member, data in members.items():
        with suppress(msgspec.DecodeError):
            found[member] = decode_metadata(data).url
    return found


assign_shards = Assignor({1: plan_shards})
"""The assign function of this release."""

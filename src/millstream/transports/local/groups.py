"""Groups in the file: members with leases, generations, positions, and the fence.

Functions that write expect to be called inside `LogFile.writing`: a change of a group and the generation that
it makes are one transaction, and so are the fence and the epoch behind it. That is what keeps a zombie out:
either its epoch is before the new generation, and whoever reads positions after that sees it, or it is fenced.

A lease runs on the boot-time clock, which all processes of the machine share. After a reboot that clock is
back at zero, and old leases end in the far future: a lease that ends later than it can be long is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from millstream.errors import (
    FencedError,
    IllegalGenerationError,
    InternalError,
    UnknownMemberError,
)
from millstream.transports.base import Assignment, GroupDescription, OffsetAndMetadata
from millstream.transports.local.log import partition_row
from millstream.transports.local.processes import Process, boottime, is_gone

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping

    from millstream.records import TopicPartition
    from millstream.transports.base import AssignFunction, Epoch

__all__ = [
    "METADATA_BYTES_MAX",
    "MemberRow",
    "add_member",
    "assignment_of",
    "describe",
    "expire",
    "fence",
    "lease_is_over",
    "members_of",
    "names",
    "positions",
    "rebalance",
    "refuse_if_live",
    "remove_member",
    "renew",
    "set_metadata",
    "set_positions",
]

METADATA_BYTES_MAX = 4_096
"""Of a committed position: what an ordinary broker takes."""


class MemberRow(NamedTuple):
    """A member as the file has it."""

    member_id: str
    lease_s: float
    lease_until: float
    process: Process

    def is_over(self, now: float, *, grace_s: float = 0) -> bool:
        """Whether this member is not in the group any more, whatever its row says."""
        over = lease_is_over(self.lease_until, self.lease_s, now, grace_s=grace_s)
        return over or is_gone(self.process)


def lease_is_over(until: float, length: float, now: float, *, grace_s: float = 0) -> bool:
    """Whether a lease has run out, or was given before the machine was started."""
    return now > until + grace_s or until - now > length + 1


# members


def generation_of(connection: sqlite3.Connection, group: str) -> int:
    """The generation; 0 for a group that never was."""
    row = connection.execute("SELECT generation FROM groups WHERE name = ?", (group,)).fetchone()
    return 0 if row is None else int(row[0])


def members_of(connection: sqlite3.Connection, group: str) -> list[MemberRow]:
    """Everybody who has a row."""
    rows = connection.execute(
        "SELECT member_id, lease_s, lease_until, place, pid, started"
        " FROM members JOIN processes ON processes.id = process_id"
        " WHERE group_name = ? ORDER BY member_id",
        (group,),
    )
    return [MemberRow(row[0], row[1], row[2], Process(*row[3:])) for row in rows]


def add_member(
    connection: sqlite3.Connection,
    group: str,
    member_id: str,
    *,
    process_id: int,
    lease_s: float,
    metadata: bytes,
) -> None:
    """Add a member, without an assignment yet."""
    connection.execute(
        "INSERT INTO members (group_name, member_id, process_id, lease_s, lease_until, metadata,"
        " assigned) VALUES (?, ?, ?, ?, ?, ?, x'')",
        (group, member_id, process_id, lease_s, boottime() + lease_s, metadata),
    )


def set_metadata(
    connection: sqlite3.Connection, group: str, member_id: str, metadata: bytes
) -> bool:
    """Replace a member's metadata; False if it is not in the group."""
    changed = connection.execute(
        "UPDATE members SET metadata = ? WHERE group_name = ? AND member_id = ?",
        (metadata, group, member_id),
    )
    return changed.rowcount > 0


def remove_member(connection: sqlite3.Connection, group: str, member_id: str) -> bool:
    """Remove a member; whether it was there."""
    removed = connection.execute(
        "DELETE FROM members WHERE group_name = ? AND member_id = ?", (group, member_id)
    )
    return removed.rowcount > 0


def expire(
    connection: sqlite3.Connection, group: str, *, grace_s: float, spare: str | None
) -> bool:
    """Remove members that are gone; whether there were any.

    ``grace_s`` is how long something kept the caller from looking: it may have kept others from renewing.
    """
    now = boottime()
    over = [
        member.member_id
        for member in members_of(connection, group)
        if member.member_id != spare and member.is_over(now, grace_s=grace_s)
    ]
    for member_id in over:
        remove_member(connection, group, member_id)
    return bool(over)


def renew(connection: sqlite3.Connection, group: str, member_id: str) -> bool:
    """Begin a member's lease anew; False if it is not in the group."""
    renewed = connection.execute(
        "UPDATE members SET lease_until = ? + lease_s WHERE group_name = ? AND member_id = ?",
        (boottime(), group, member_id),
    )
    return renewed.rowcount > 0


def rebalance(connection: sqlite3.Connection, group: str, assign: AssignFunction) -> None:
    """Begin a generation: give every member its assignment."""
    metadata: dict[str, bytes] = dict(
        connection.execute(
            "SELECT member_id, metadata FROM members WHERE group_name = ? ORDER BY member_id",
            (group,),
        ).fetchall()
    )
    assigned = assign(metadata) if metadata else {}
    connection.executemany(
        "UPDATE members SET assigned = ? WHERE group_name = ? AND member_id = ?",
        [(assigned.get(member_id, b""), group, member_id) for member_id in metadata],
    )
    connection.execute(
        "INSERT INTO groups (name, generation) VALUES (?, 1)"
        " ON CONFLICT (name) DO UPDATE SET generation = generation + 1",
        (group,),
    )


def assignment_of(connection: sqlite3.Connection, group: str, member_id: str) -> Assignment | None:
    """A member's assignment in the current generation; None if it is not in the group."""
    rows = connection.execute(
        "SELECT member_id, metadata, assigned FROM members WHERE group_name = ? ORDER BY member_id",
        (group,),
    ).fetchall()
    mine = next((assigned for name, _, assigned in rows if name == member_id), None)
    if mine is None:
        return None
    return Assignment(
        generation=generation_of(connection, group),
        member_id=member_id,
        assigned=mine,
        members={name: metadata for name, metadata, _ in rows},
        shares={name: assigned for name, _, assigned in rows},
    )


def describe(connection: sqlite3.Connection, group: str) -> GroupDescription:
    """The group, without members that are gone."""
    now = boottime()
    live = {row.member_id for row in members_of(connection, group) if not row.is_over(now)}
    rows = [
        row
        for row in connection.execute(
            "SELECT member_id, metadata, assigned FROM members WHERE group_name = ?"
            " ORDER BY member_id",
            (group,),
        )
        if row[0] in live
    ]
    return GroupDescription(
        group=group,
        generation=generation_of(connection, group),
        members={name: metadata for name, metadata, _ in rows},
        assigned={name: assigned for name, _, assigned in rows},
    )


def names(connection: sqlite3.Connection) -> list[str]:
    """Groups with live members or committed positions."""
    rows = connection.execute("SELECT DISTINCT group_name FROM positions")
    found = {str(name) for (name,) in rows}
    joined = connection.execute("SELECT DISTINCT group_name FROM members").fetchall()
    found |= {str(name) for (name,) in joined if describe(connection, name).members}
    return sorted(found)


# positions, and the fence


def fence(connection: sqlite3.Connection, epoch: Epoch) -> None:
    """Let an epoch pass only if its member is in the group, and the group still in its generation.

    Raises:
        UnknownMemberError, IllegalGenerationError: it may not commit.
    """
    found = connection.execute(
        "SELECT 1 FROM members WHERE group_name = ? AND member_id = ?",
        (epoch.group, epoch.member_id),
    ).fetchone()
    if found is None:
        raise UnknownMemberError(
            f"group {epoch.group!r} has removed member {epoch.member_id!r}; nothing of its epoch was"
            f" written. Its shards belong to others now: it must join again."
        )
    generation = generation_of(connection, epoch.group)
    if generation != epoch.generation:
        raise IllegalGenerationError(
            f"group {epoch.group!r} is in generation {generation}, and the epoch of member"
            f" {epoch.member_id!r} is of generation {epoch.generation}; nothing of it was written."
        )


def refuse_if_live(connection: sqlite3.Connection, group: str) -> None:
    """Refuse what is only for groups at rest; removes the rows of members that are gone.

    Raises:
        FencedError: the group has live members.
    """
    now = boottime()
    members = members_of(connection, group)
    live = [member.member_id for member in members if not member.is_over(now)]
    if live:
        raise FencedError(
            f"group {group!r} has live members ({', '.join(live)}); its positions were not changed."
            f" Stop its workers first."
        )
    if members:
        expire(connection, group, grace_s=0, spare=None)
        rebalance(connection, group, lambda metadata: {})


def positions(
    connection: sqlite3.Connection, group: str, tps: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Committed positions; absent where there is none."""
    found = {}
    for tp in tps:
        row = connection.execute(
            "SELECT next_offset, metadata FROM positions JOIN partitions ON id = partition_id"
            " WHERE group_name = ? AND topic = ? AND partition = ?",
            (group, *tp),
        ).fetchone()
        if row is not None:
            found[tp] = OffsetAndMetadata(*row)
    return found


def set_positions(
    connection: sqlite3.Connection,
    group: str,
    offsets: Mapping[TopicPartition, OffsetAndMetadata],
    *,
    where: str,
) -> None:
    """Write positions.

    Raises:
        UnknownTopicError: of a topic or partition that does not exist.
    """
    for tp, (offset, metadata) in offsets.items():
        if len(metadata.encode()) > METADATA_BYTES_MAX:
            raise InternalError(
                f"the metadata of the position of {tp} takes {len(metadata.encode()):,} bytes,"
                f" more than {METADATA_BYTES_MAX:,}"
            )
        connection.execute(
            "INSERT INTO positions (group_name, partition_id, next_offset, metadata)"
            " VALUES (?, ?, ?, ?) ON CONFLICT (group_name, partition_id) DO UPDATE"
            " SET next_offset = excluded.next_offset, metadata = excluded.metadata",
            (group, partition_row(connection, tp, where=where).id, offset, metadata),
        )

"""What a member of a group does in its thread: join, share out where it leads, send heartbeats, join again.

Kafka's classic group protocol, from the member's side. A rebalance begins when somebody joins, leaves, is removed or
has new metadata; the others hear of it with their next heartbeat and join again *at once*, under the same
member id, while their worker goes on processing: an epoch of the old generation is taken until the coordinator has
everybody, and refused after that. The leader (whom the coordinator chooses) gets everybody's metadata, computes the
shares and hands them in (SyncGroup); all get theirs, with the new generation.

==========================  =============================================================================
answer                      what the member does
==========================  =============================================================================
REBALANCE_IN_PROGRESS       joins again under the same id
ILLEGAL_GENERATION          the same; the worker sees that it has missed a generation
UNKNOWN_MEMBER_ID           joins under a new id: the group had removed it
MEMBER_ID_REQUIRED          joins with the id that came with it
FENCED_INSTANCE_ID          ends with an error: another process has its place
coordinator moved, no       finds the coordinator, and goes on where it was
answer
==========================  =============================================================================

When the worker's event loop does not turn, the member sends nothing, neither heartbeats nor joins: the group
removes it after the session time-out. As soon as the loop turns again, it joins anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from kio.schema.describe_groups.v5 import DescribeGroupsRequest, DescribeGroupsResponse
from kio.schema.errors import ErrorCode
from kio.schema.heartbeat.v4 import HeartbeatRequest, HeartbeatResponse
from kio.schema.join_group.v7 import JoinGroupRequest, JoinGroupResponse
from kio.schema.join_group.v7.request import JoinGroupRequestProtocol
from kio.schema.leave_group.v4 import LeaveGroupRequest, LeaveGroupResponse
from kio.schema.leave_group.v4.request import MemberIdentity
from kio.schema.sync_group.v5 import SyncGroupRequest, SyncGroupResponse
from kio.schema.sync_group.v5.request import SyncGroupRequestAssignment
from kio.schema.types import GroupId
from kio.static.primitive import i32

from millstream.errors import (
    ConfigurationError,
    FencedError,
    LogUnavailableError,
    SettingError,
)
from millstream.transports.base import Assignment
from millstream.transports.kafka._cluster import GROUP, Access, Cluster
from millstream.transports.kafka._errors import COORDINATOR_MOVED, AnswerLostError, refusal
from millstream.transports.kafka._failover import Failover
from millstream.transports.kafka._group_words import (
    PROTOCOL,
    PROTOCOL_TYPE,
    Share,
    describe,
    read_metadata,
    read_share,
    write_metadata,
    write_share,
)
from millstream.transports.kafka._messages import duration
from millstream.transports.local.processes import boottime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kio.schema.describe_groups.v5.response import DescribedGroup
    from kio.static.protocol import Payload

    from millstream.transports.base import AssignFunction, GroupInputs

__all__ = ["Member", "Owner", "Terms"]

logger = logging.getLogger("millstream.transports.kafka")

R = TypeVar("R", bound="Payload")

HEARTBEAT_S = 0.3
"""Between two heartbeats at most: a rebalance is noticed with the next one."""
HEARTBEATS = 5
"""How many there are within a session time-out at least."""
REBALANCE_MIN_S = 10.0
"""How long the coordinator waits for members that live and do not join again, at least."""
ANSWER_S = 5.0
"""How much later than it has to come an answer may be."""
LEAVE_S = 5.0
"""How long leaving may take; then the group finds out by itself."""
PAUSE_FIRST_S = 0.01
PAUSE_LONGEST_S = 1.0
LOOP_S = 0.1
"""How often we look whether a loop turns again that had stopped."""
SESSION_USUAL_MIN_S = 6.0
"""Brokers' ``group.min.session.timeout.ms``, where nothing else is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a worker is in a group."""

    group: str
    assign: AssignFunction
    session_timeout_s: float
    max_poll_interval_s: float
    instance_id: str | None = None
    """Its place, under which it comes back after a restart without a rebalance (static membership)."""
    evict_static: bool = False
    """Whether others that have a place may be removed when they seem to be gone."""
    inputs: GroupInputs | None = None
    id_file: Path | None = None
    """Keeps the member id for whoever has this disk next: then the one who had it before is gone."""


class Owner(Protocol):
    """What a member tells the event loop's side; called in the member's thread."""

    def loop_turns(self) -> bool:
        """Whether the event loop has been heard of lately."""
        ...

    def assigned(self, assignment: Assignment) -> None:
        """An assignment has come."""
        ...

    def expelled(self) -> None:
        """The group has removed the member: what was assigned and not taken yet is void."""
        ...


class _AgainError(Exception):
    """Join again."""


class Member:
    """A member. `serve` is its life; ``member_id`` and ``confirmed_at`` may be read from any thread."""

    def __init__(self, access: Access, terms: Terms, metadata: bytes, owner: Owner) -> None:
        self.member_id = ""
        self.confirmed_at = float("-inf")
        """When it sent what the group answered last with a yes, on the clock that a suspended machine does not stop."""
        self.metadata = metadata
        """Said with the next joining; may be set from any thread."""
        self.accepted = asyncio.Event()
        """The coordinator has taken note of the member; it may still have to wait for the others."""
        self._terms = terms
        self._owner = owner
        self._cluster = Cluster(access)
        self._session_s = terms.session_timeout_s
        self._noted_id = ""
        self._generation = -1
        self._delivered: tuple[str, int] = ("", -1)
        self._members: Mapping[str, bytes] = {}
        self._shares: Mapping[str, bytes] = {}
        self._failover = Failover(static_too=terms.evict_static)
        self._updates = 0
        self._joined_updates = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._stirred = asyncio.Event()
        self._pause_s = PAUSE_FIRST_S

    async def serve(self, leaving: asyncio.Event) -> None:
        """Be in the group until ``leaving`` is set, then leave it.

        Raises:
            ConfigurationError, FencedError: it cannot be in the group.
            Exception: what the assign function raised.
        """
        async with self._cluster:
            try:
                await self._until(leaving)
            except FencedError:
                raise  # the place is another one's by now
            except Exception:
                await self._leave(for_good=True)
                raise
            await self._leave(for_good=False)

    async def update(self, metadata: bytes) -> None:
        """Join again with other metadata; returns when the group has taken note of it."""
        self.metadata = metadata
        self._updates += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._updates, future))
        self._stirred.set()
        await future

    async def suspect(self, member_id: str, processes: Mapping[str, str]) -> bool:
        """Remove another member, if that is for this one to do."""
        found = await self._describe()
        members = {each.member_id: each.group_instance_id for each in found.members}
        now = time.monotonic()
        if not self._failover.may_remove(
            member_id, processes=processes, own_id=self.member_id, members=members, now=now
        ):
            return False
        self._failover.removed(member_id, process=processes.get(member_id, ""), now=now)
        return await self._remove(member_id, members[member_id])

    # life

    async def _until(self, leaving: asyncio.Event) -> None:
        being = asyncio.create_task(self._be())
        told = asyncio.create_task(leaving.wait())
        try:
            await asyncio.wait({being, told}, return_when=asyncio.FIRST_COMPLETED)
            if being.done():
                being.result()
        finally:
            being.cancel()
            told.cancel()
            await asyncio.gather(being, told, return_exceptions=True)

    async def _be(self) -> None:
        await self._remove_former()
        while True:
            with suppress(_AgainError):
                await self._until_loop_turns()
                joined = await self._join()
                await self._sync(joined)
                await self._beat()

    async def _remove_former(self) -> None:
        """Have the group let go of who had our disk before: it would wait for it for the session time-out."""
        file = self._terms.id_file
        if file is None or self._terms.instance_id is not None:
            return
        former = ""
        with suppress(OSError):  # nobody was here before
            former = file.read_text().strip()
        if not former:
            return
        with suppress(
            _AgainError, ConfigurationError
        ):  # else it waits, and joining says what is wrong
            members = (await self._describe()).members
            if any(each.member_id == former for each in members):
                await self._remove(former, None)
                logger.info("the group has let go of %s, whose place on this disk we have", former)

    def _note_id(self) -> None:
        file = self._terms.id_file
        if file is not None and self.member_id != self._noted_id:
            self._noted_id = self.member_id
            with suppress(OSError):  # then the group waits once
                file.write_text(f"{self.member_id}\n")

    async def _until_loop_turns(self) -> None:
        while True:
            if self._owner.loop_turns():
                return
            await asyncio.sleep(LOOP_S)

    async def _join(self) -> JoinGroupResponse:
        updates, terms = self._updates, self._terms
        topics = terms.inputs.topics() if terms.inputs is not None else ()
        rebalance_s = max(2 * self._session_s, REBALANCE_MIN_S)
        asked_at = boottime()
        answer = await self._ask(
            JoinGroupRequest(
                group_id=GroupId(terms.group),
                session_timeout=duration(self._session_s),
                rebalance_timeout=duration(rebalance_s),
                member_id=self.member_id,
                group_instance_id=terms.instance_id,
                protocol_type=PROTOCOL_TYPE,
                protocols=(
                    JoinGroupRequestProtocol(
                        name=PROTOCOL, metadata=write_metadata(self.metadata, topics)
                    ),
                ),
            ),
            JoinGroupResponse,
            timeout_s=rebalance_s + ANSWER_S,
            alone=True,
        )
        if answer.error_code is ErrorCode.member_id_required:
            self.member_id = answer.member_id
            self._note_id()
            self.accepted.set()
            raise _AgainError
        await self._check(answer.error_code, "join group")
        self.member_id, self.confirmed_at = answer.member_id, asked_at
        self._note_id()
        self._generation = answer.generation_id
        self.accepted.set()
        self._joined_updates = updates
        self._tell_updated()
        return answer

    async def _sync(self, joined: JoinGroupResponse) -> None:
        generation, terms = joined.generation_id, self._terms
        leads = joined.leader == joined.member_id
        given: Mapping[str, bytes] = {}
        metadata: dict[str, bytes] = {}
        if leads:
            metadata = {each.member_id: _metadata_of(each.metadata) for each in joined.members}
            given = terms.assign(metadata)
        asked_at = boottime()
        answer = await self._ask(
            SyncGroupRequest(
                group_id=GroupId(terms.group),
                generation_id=i32(generation),
                member_id=joined.member_id,
                group_instance_id=terms.instance_id,
                protocol_type=PROTOCOL_TYPE,
                protocol_name=PROTOCOL,
                assignments=tuple(
                    SyncGroupRequestAssignment(
                        member_id=name,
                        assignment=self._share(generation, given.get(name, b"")),
                    )
                    for name in metadata
                ),
            ),
            SyncGroupResponse,
            timeout_s=max(2 * self._session_s, REBALANCE_MIN_S) + ANSWER_S,
            alone=True,
        )
        await self._check(answer.error_code, "take a share of group")
        self.confirmed_at = asked_at
        try:
            share = read_share(answer.assignment)
        except ValueError as exc:
            raise ConfigurationError(
                f"group {terms.group!r} is led by another program: what it gives cannot be read ({exc})."
                f" Give this app another id"
            ) from exc
        if leads:
            self._members = dict(sorted(metadata.items()))
            self._shares = {name: given.get(name, b"") for name in self._members}
        else:
            await self._learn(generation, share.assigned)
        if self._delivered != (self.member_id, generation):
            self._delivered = (self.member_id, generation)
            self._owner.assigned(
                Assignment(
                    generation=generation,
                    member_id=self.member_id,
                    assigned=share.assigned,
                    members=self._members,
                    shares=self._shares,
                )
            )

    def _share(self, generation: int, assigned: bytes) -> bytes:
        inputs = self._terms.inputs
        partitions = inputs.partitions(assigned) if inputs is not None else ()
        return write_share(Share(generation, assigned), partitions)

    async def _learn(self, generation: int, assigned: bytes) -> None:
        """Who else is in the group, and what everybody was given.

        If the next rebalance has begun, nobody tells any more, and will soon; until then the last answer stands.
        Nothing that a worker may or may not do depends on it: see `Assignment`.
        """
        until = time.monotonic() + self._session_s / 4  # no heartbeat is sent meanwhile
        while True:
            try:
                found = describe(await self._describe())
            except ConfigurationError:
                break
            except _AgainError:
                if time.monotonic() >= until:
                    break
                continue
            if found.generation == generation and self.member_id in found.assigned:
                self._members, self._shares = found.members, found.assigned
                return
            break
        self._members = {**self._members, self.member_id: self.metadata}
        self._shares = {**self._shares, self.member_id: assigned}

    async def _beat(self) -> None:
        """Send heartbeats until there is a reason to join again."""
        interval_s = min(HEARTBEAT_S, self._session_s / HEARTBEATS)
        while True:
            if self._joined_updates < self._updates:
                return
            if not self._owner.loop_turns():
                await asyncio.sleep(LOOP_S)
                continue
            asked_at = boottime()
            with suppress(_AgainError):
                answer = await self._ask(
                    HeartbeatRequest(
                        group_id=GroupId(self._terms.group),
                        generation_id=i32(self._generation),
                        member_id=self.member_id,
                        group_instance_id=self._terms.instance_id,
                    ),
                    HeartbeatResponse,
                    timeout_s=self._session_s / 2,
                )
                if answer.error_code is ErrorCode.rebalance_in_progress:
                    self.confirmed_at = asked_at
                    return
                await self._check(answer.error_code, "stay in group")
                self.confirmed_at = asked_at
            if self._generation < 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._stirred.wait()
            self._stirred.clear()

    async def _leave(self, *, for_good: bool) -> None:
        self.confirmed_at = float("-inf")
        place = self._terms.instance_id
        if self.member_id and (place is None or for_good):
            # else the group notices by the session time-out
            with suppress(TimeoutError, _AgainError, ConfigurationError):
                async with asyncio.timeout(LEAVE_S):
                    await self._remove(self.member_id, place)

    # requests

    async def _check(self, code: ErrorCode, doing: str) -> None:
        """Go on where there is no error.

        Raises:
            _AgainError: join again, under the id that is set now.
            ConfigurationError, FencedError: there is no use in trying again.
        """
        group, place = self._terms.group, self._terms.instance_id
        if not code:
            self._pause_s = PAUSE_FIRST_S
            return
        if code is ErrorCode.unknown_member_id:
            self.member_id, self.confirmed_at, self._generation = "", float("-inf"), -1
            self._owner.expelled()
            raise _AgainError
        if code in (ErrorCode.illegal_generation, ErrorCode.rebalance_in_progress):
            self._generation = -1
            raise _AgainError
        if code is ErrorCode.fenced_instance_id:
            raise FencedError(
                f"two workers share place {place!r} of group {group!r}: another one has taken it over."
                f" Give each worker its own (slot=)"
            )
        if code is ErrorCode.invalid_session_timeout:
            if self._session_s >= SESSION_USUAL_MIN_S:
                raise SettingError(
                    "session_timeout",
                    f"{self._session_s:g} s is more or less than the brokers take: see their"
                    f" group.min.session.timeout.ms and group.max.session.timeout.ms",
                )
            self._session_s = SESSION_USUAL_MIN_S
            raise _AgainError
        if code is ErrorCode.inconsistent_group_protocol:
            raise ConfigurationError(
                f"group {group!r} has members that are no Millstream workers. Give this app another id,"
                f" or stop the other consumers of that group first"
            )
        if code is ErrorCode.group_max_size_reached:
            raise ConfigurationError(
                f"group {group!r} is full: the brokers allow no more members. Start fewer workers, or raise"
                f" the brokers' group.max.size"
            )
        error = refusal(code, f"{doing} {group!r}", where=self._cluster.url)
        if not isinstance(error, LogUnavailableError):
            raise error
        await self._pause(str(error))
        raise _AgainError

    async def _ask(
        self, request: Payload, response: type[R], *, timeout_s: float, alone: bool = False
    ) -> R:
        """Send a request to the coordinator.

        Raises:
            _AgainError: it has moved, or did not answer; there was a pause.
            ConfigurationError: it refuses us.
        """
        group = self._terms.group
        try:
            node = await self._cluster.coordinator(GROUP, group)
            answer = await self._cluster.send(
                node, request, response, timeout_s=timeout_s, alone=alone
            )
        except (AnswerLostError, LogUnavailableError) as exc:
            moved = str(exc) or type(exc).__name__
        else:
            code = _code_of(answer)
            moved = code.name if code in COORDINATOR_MOVED else ""
        if moved:
            self._cluster.forget_coordinator(GROUP, group)
            await self._pause(moved)
            raise _AgainError
        return answer

    async def _pause(self, why: str) -> None:
        await asyncio.sleep(self._pause_s * random.uniform(0.8, 1.2))
        if self._pause_s < PAUSE_LONGEST_S <= 2 * self._pause_s:  # once, however long it takes
            logger.warning("group %r does not answer: %s", self._terms.group, why)
        self._pause_s = min(2 * self._pause_s, PAUSE_LONGEST_S)

    async def _describe(self) -> DescribedGroup:
        answer = await self._ask(
            DescribeGroupsRequest(
                groups=(GroupId(self._terms.group),), include_authorized_operations=False
            ),
            DescribeGroupsResponse,
            timeout_s=self._session_s / 2,
        )
        return answer.groups[0]

    async def _remove(self, member_id: str, instance_id: str | None) -> bool:
        answer = await self._ask(
            LeaveGroupRequest(
                group_id=GroupId(self._terms.group),
                members=(MemberIdentity(member_id=member_id, group_instance_id=instance_id),),
            ),
            LeaveGroupResponse,
            timeout_s=LEAVE_S,
        )
        return not answer.error_code and not any(each.error_code for each in answer.members)

    def _tell_updated(self) -> None:
        for number, future in self._waiting:
            if number <= self._joined_updates and not future.done():
                future.set_result(None)
        self._waiting = [each for each in self._waiting if each[0] > self._joined_updates]


def _metadata_of(data: bytes) -> bytes:
    try:
        return read_metadata(data)
    except ValueError:
        return b""  # the assign function tells whoever said this


def _code_of(answer: Payload) -> ErrorCode:
    groups = getattr(answer, "groups", None)
    code = groups[0].error_code if groups else getattr(answer, "error_code", ErrorCode.none)
    return ErrorCode(code)

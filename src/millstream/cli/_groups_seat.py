"""A place in a group of one, for a command that changes the log: what it writes and what it remembers are one epoch.

Whoever takes the place next begins another generation, so two commands cannot do the same twice: the log refuses
the one that was there first.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from millstream.errors import FencedError, OutcomeUnknownError, TransportError
from millstream.transports.base import CommitResult, Epoch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from millstream.records import OutgoingRecord, TopicPartition
    from millstream.transports.base import Membership, OffsetAndMetadata, Transport

__all__ = ["Seat", "take_seat"]

SESSION_S = 10.0
ALIVE_S = 0.5
SEATED_S = 30.0
"""How long a broker may take to let a member into an empty group."""


class Seat:
    """The place; see `take_seat`."""

    def __init__(self, transport: Transport, group: str, member_id: str, generation: int) -> None:
        self._transport = transport
        self.group = group
        self._member_id = member_id
        self._generation = generation

    async def commit(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        records: Mapping[TopicPartition, Sequence[OutgoingRecord]],
    ) -> CommitResult:
        """Write records and remember positions, both or neither.

        Args:
            offsets: what no epoch before had, so that its outcome can be learnt.

        Raises:
            TransportError: nothing was written; another command has taken the place, or the log fails.
        """
        epoch = Epoch(
            group=self.group,
            member_id=self._member_id,
            generation=self._generation,
            offsets=offsets,
            records=records,
        )
        try:
            return await self._transport.commit(epoch)
        except OutcomeUnknownError:
            found = await self._transport.committed(self.group, list(offsets))
            if any(found.get(tp) != at for tp, at in offsets.items()):
                raise
            return CommitResult(next_offsets=await self._transport.end_offsets(list(records)))
        except FencedError as exc:
            raise TransportError(
                f"another command works on {self.group!r} now; what this one had not written yet is left"
                f" to it"
            ) from exc


@contextlib.asynccontextmanager
async def take_seat(transport: Transport, group: str, *, command: str) -> AsyncIterator[Seat]:
    """Be the only member of a group inside the block.

    Args:
        command: what takes the place, for people.

    Raises:
        TransportError: somebody is there already.
    """
    if (await transport.describe_group(group)).members:
        raise _taken(group, command)
    membership = await transport.join(
        group,
        metadata=command.encode(),
        assign=lambda members: dict.fromkeys(members, b""),
        session_timeout_s=SESSION_S,
    )
    alive = asyncio.create_task(_tell_alive(membership), name="alive")
    try:
        try:
            assignment = await asyncio.wait_for(membership.next_assignment(), SEATED_S)
        except TimeoutError as exc:
            raise TransportError(
                f"group {group!r} did not let {command} in within {SEATED_S:g} s: look after the log"
            ) from exc
        if len(assignment.members) > 1:
            raise _taken(group, command)
        yield Seat(transport, group, assignment.member_id, assignment.generation)
    finally:
        alive.cancel()
        await asyncio.shield(membership.leave())


async def _tell_alive(membership: Membership) -> None:
    while True:
        membership.alive()
        await asyncio.sleep(ALIVE_S)


def _taken(group: str, command: str) -> TransportError:
    return TransportError(
        f"{command} runs already, elsewhere: group {group!r} has a member. Wait until it has ended"
    )

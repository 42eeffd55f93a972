"""``millstream groups``: who works on the app, and on what else the log holds."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from millstream.cli._ask import ask
from millstream.cli._failure import note
from millstream.cli._log import open_log
from millstream.cli._output import json_option, print_json, print_rows
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.errors import TransportError
from millstream.worker import MemberMetadata, decode_assignment, decode_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable

    from millstream.app import App
    from millstream.transports.base import GroupDescription, Transport
    from millstream.worker import ShardId

__all__ = ["Member", "groups", "health", "members_of", "refuse_running", "shown_shards"]

ANSWER_S = 2.0
"""How long a worker may take to say how it is."""
LISTED_MAX = 20


class Member(NamedTuple):
    """A member of a group; ``about`` is what a worker of ours tells of itself, None for another program."""

    id: str
    about: MemberMetadata | None
    shards: list[ShardId]
    copies: list[ShardId]

    @property
    def url(self) -> str:
        """Where it answers over HTTP; empty where it does not."""
        return "" if self.about is None else self.about.url

    def __str__(self) -> str:
        if self.about is None:
            return self.id
        slot = f"slot {self.about.slot}" if self.about.slot else self.id
        return f"{slot} at {self.url}" if self.url else slot


def members_of(description: GroupDescription) -> list[Member]:
    """The live members of a group."""
    found = []
    for member, metadata in sorted(description.members.items()):
        about: MemberMetadata | None = None
        shards: list[ShardId] = []
        copies: list[ShardId] = []
        try:
            about = decode_metadata(metadata)
            share = decode_assignment(description.assigned.get(member, b""))
            shards, copies = list(share.active), [*share.standby, *share.warming]
        except msgspec.DecodeError:
            about = None  # a member that is no worker of ours
        found.append(Member(member, about, shards, copies))
    return found


async def refuse_running(transport: Transport, group: str, deed: str) -> None:
    """See that nobody works in a group.

    Args:
        deed: what to do once they have stopped, for example ``reset it``.

    Raises:
        TransportError: there are live members; the message names them.
    """
    members = members_of(await transport.describe_group(group))
    if members:
        named = ", ".join(str(member) for member in members)
        raise TransportError(
            f"{len(members)} of app {group!r} {'is' if len(members) == 1 else 'are'} running: {named}."
            f" Stop what runs (Ctrl-C), then {deed}"
        )


def shown_shards(shards: Iterable[ShardId]) -> str:
    """Shards for people: ``0-1, 3 of 4``; several partition counts with semicolons between."""
    by_count: dict[int, list[int]] = defaultdict(list)
    for count, number in sorted(shards):
        by_count[count].append(number)
    return "; ".join(f"{_ranges(numbers)} of {count}" for count, numbers in by_count.items())


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)


def health(url: str, generation: int) -> str:
    """What a worker says of itself over HTTP; why there is no answer, where there is none.

    Args:
        generation: the group's, of which the worker may not have heard yet.
    """
    if not url:
        return "serves no HTTP"
    try:
        answer = ask(url, "/health/ready", {}, timeout_s=ANSWER_S)
    except OSError as exc:
        return f"does not answer ({exc})"
    told = answer.body if isinstance(answer.body, dict) else {}
    if answer.status != 200:
        return f"not ready: {told.get('why') or answer.status}"
    if told.get("generation", generation) < generation:
        return f"not ready: it has not heard of generation {generation} yet."
    return "ready"


@command("groups")
@click.option("--all", "every", is_flag=True, help="Also groups that are not the app's.")
@json_option
def groups(session: Session, every: bool, as_json: bool) -> None:
    """List the workers of the app's group: shards, addresses, and how they are.

    A group is the workers that run one app, and has the app's id. Its generation grows by one whenever a worker
    comes or goes.
    """
    app = session.app()
    rows, others = run(_look(app, every=every))
    if as_json:
        print_json(rows)
        return
    print_rows(
        ("group", "generation", "worker", "address", "shards", "state", "member", "copies"),
        [
            (
                row["group"],
                row["generation"],
                None if member is None else member["slot"],
                None if member is None else member["url"],
                None if member is None else shown_shards(member["shards"]),
                "no worker" if member is None else member["state"],
                None if member is None else member["member"],
                None if member is None else shown_shards(member["copies"]) or None,
            )
            for row in rows
            for member in (row["members"] or [None])
        ],
    )
    if others:
        more = "" if len(others) <= LISTED_MAX else f" and {len(others) - LISTED_MAX} more"
        note(f"also in this log: {', '.join(others[:LISTED_MAX])}{more}; --all shows them")


async def _look(app: App, *, every: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Groups as rows, and the names of those that are left out."""
    async with open_log(app) as transport:
        others = [name for name in await transport.groups() if name != app.id]
        rows = [await _row(transport, app.id)]
        if every:
            rows += [await _row(transport, name) for name in others]
        return rows, [] if every else others


async def _row(transport: Transport, group: str) -> dict[str, Any]:
    described = await transport.describe_group(group)
    members = members_of(described)
    states = await asyncio.gather(
        *(asyncio.to_thread(_state, member, described.generation) for member in members)
    )
    return {
        "group": group,
        "generation": described.generation,
        "members": [
            {
                "member": member.id,
                "slot": member.about.slot if member.about is not None else None,
                "url": member.url or None,
                "shards": member.shards,
                "copies": sorted(member.copies),
                "state": state,
            }
            for member, state in zip(members, states, strict=True)
        ],
    }


def _state(member: Member, generation: int) -> str:
    return "another program" if member.about is None else health(member.url, generation)

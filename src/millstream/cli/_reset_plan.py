"""What a reset changes: decided from the topology alone, without looking at a record.

A topology tells which agent reads which topic and sends to which sinks. It does not tell which agent writes which
table: any agent can write any table with the partition count of the topics that it reads. So the tables that begin
anew are all of those with the count of a topic that is read again, and then everything else that may have
made their content has to be read again as well. Where it is not, the reset is refused: it would lose data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from millstream.topology import AgentNode, Topology

__all__ = ["ResetPlan", "plan_reset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPlan:
    """Names of topics, sorted, and of what goes with them."""

    read: tuple[str, ...]
    """Read again, from where the user says."""
    passed: tuple[str, ...] = ()
    """Made by agents and read by others: their records are made again, so those that are there are passed over."""
    deleted: tuple[str, ...] = ()
    """Deleted, and made again by the next worker: changelogs and repartition topics."""
    tables: tuple[str, ...] = ()
    """Begin empty: those whose changelogs are deleted."""
    counts: frozenset[int] = frozenset()
    """Partition counts of the shards whose local state goes."""


def plan_reset(
    topology: Topology, *, existing: Collection[str], named: Sequence[str], keep_tables: bool
) -> ResetPlan:
    """Decide what a reset changes.

    Args:
        topology: resolved.
        existing: topics that the log holds.
        named: what the user wants to have read again; all that the app reads where empty.
        keep_tables: change positions only.

    Raises:
        ConfigurationError: the app does not read a topic that is named, or tables would lose what other
            topics have brought.
    """
    agents = list(topology.agents.values())
    read = {topic for agent in agents for topic in agent.sources}
    made = {topic for agent in agents for topic in agent.sinks if topic in read}
    inner = {
        topic
        for agent in agents
        if agent.internal
        for topic in agent.sinks
        if topic in made and topology.topics[topic].internal
    }
    for name in named:
        if name not in read:
            raise ConfigurationError(
                f"no agent of app {topology.app!r} reads {name!r}: it reads"
                f" {', '.join(sorted(read - inner)) or 'nothing'}"
            )
        if name in inner:
            raise ConfigurationError(
                f"{name!r} is made by Millstream out of other topics: name those, and it begins anew"
            )
    chosen = set(named) or read - made
    again = _closed(chosen, agents, made)
    if not named:
        chosen |= read - again  # made by nobody but those that read it
        again |= read
    if keep_tables:
        return ResetPlan(read=_sorted(chosen, existing))
    readers = {f"table:{table.name}" for table in topology.tables.values() if table.source}
    writers = [agent for agent in agents if agent.name not in readers]
    counts = {
        topology.topics[topic].partitions or 1
        for agent in writers
        for topic in agent.sources
        if topic in again
    }
    tables = [
        table
        for table in topology.tables.values()
        if table.changelog is not None and (not named or table.partitions in counts)
    ]
    counts |= {table.partitions or 1 for table in tables}
    touched = [
        agent
        for agent in agents
        if (tables and agent in writers and counts & _counts(agent, topology))
        or (again - chosen).intersection(agent.sinks)
    ]
    missing = {topic for agent in touched for topic in agent.sources} - again
    if missing:
        raise ConfigurationError(_loses(sorted(missing), sorted(table.name for table in tables)))
    changelogs = {table.changelog for table in tables if table.changelog is not None}
    return ResetPlan(
        read=_sorted(chosen, existing),
        passed=_sorted(again - chosen - inner, existing),
        deleted=_sorted((again & inner) | changelogs, existing),
        tables=tuple(sorted(table.name for table in tables)),
        counts=frozenset(counts),
    )


def _closed(topics: set[str], agents: Sequence[AgentNode], made: set[str]) -> set[str]:
    """The topics, and those that agents make of them."""
    again = set(topics)
    while more := {
        topic
        for agent in agents
        if again.intersection(agent.sources)
        for topic in agent.sinks
        if topic in made and topic not in again
    }:
        again |= more
    return again


def _counts(agent: AgentNode, topology: Topology) -> set[int]:
    return {topology.topics[topic].partitions or 1 for topic in agent.sources}


def _sorted(topics: Collection[str], existing: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(topic for topic in topics if topic in existing))


def _loses(missing: list[str], tables: list[str]) -> str:
    lost = f"tables {', '.join(tables)}" if len(tables) > 1 else f"table {', '.join(tables)}"
    what = lost if tables else "what lies between the agents"
    return (
        f"{what} would begin empty, and may hold what {', '.join(missing)} brought, which would not be"
        f" read again. Name {'these topics' if len(missing) > 1 else 'this topic'} as well, name none to"
        f" reset all, or leave the tables as they are: --keep-tables"
    )

"""What an app consists of, as plain data: it can be validated, compared and drawn without running."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from millstream.errors import PartitionCountError, TopologyError
from millstream.topology._positions import position_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AgentNode", "StepNode", "TableNode", "TimerNode", "TopicNode", "Topology"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNode:
    """A topic. ``partitions`` is None until it is declared, found on the log, or defaulted."""

    name: str
    partitions: int | None = None
    internal: bool = False
    """Made and named by Millstream: changelogs, repartitions, replies."""
    retention_ms: int | None = None
    compacted: bool = False
    beside: str | None = None
    """A topic that has as many partitions."""
    pattern: str | None = None
    """It stands for all topics whose whole names match this regular expression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableNode:
    """A table. Its truth is ``changelog``, or ``source`` where it is read from a topic."""

    name: str
    changelog: str | None
    partitions: int | None = None
    like: str | None = None
    source: str | None = None
    window: str | None = None
    everywhere: bool = False
    """A global table: each worker holds all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNode:
    """A step of the streams and tables that an agent runs."""

    kind: str
    """``source``, ``filter``, ``join``, ``aggregate`` and so on."""
    name: str
    """What it keeps and moves is named after it; steps that do neither may share one."""
    after: tuple[int, ...] = ()
    """Whose results it takes: numbers of the agent's steps, from 1."""
    topics: tuple[str, ...] = ()
    """Topics whose records it takes."""
    reads: tuple[str, ...] = ()
    """Tables of others that it looks up."""
    keeps: tuple[str, ...] = ()
    """Tables that it writes."""
    sinks: tuple[str, ...] = ()
    """Topics that it sends to."""
    chooses: bool = False
    """A function of the program chooses for each value which topic it sends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentNode:
    """An agent: reads ``sources``, and sends to ``sinks`` as far as they were declared."""

    name: str
    sources: tuple[str, ...]
    sinks: tuple[str, ...] = ()
    concurrency: int = 1
    internal: bool = False
    declared: tuple[str, ...] = ()
    """``sources`` before the patterns among them became names; empty where there are none."""
    partitions: int | None = None
    """For an agent whose patterns match nothing yet: how many partitions are expected."""
    tables: tuple[str, ...] = ()
    """Tables that it writes, as far as that was declared: what a program's own agent writes shows when it runs."""
    steps: tuple[StepNode, ...] = ()
    """Of an agent that runs streams: what it does, each step after those that it follows."""

    def position_name(self, topic: str) -> str:
        """Under which name it is kept how far the agent is with a topic."""
        return position_name(self.name, self.declared or self.sources, topic)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerNode:
    """A timer: ``schedule`` is for people; scope is ``worker``, ``shard`` or ``leader``."""

    name: str
    schedule: str
    scope: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Topics, tables, agents and timers of one app, by name."""

    app: str
    topics: Mapping[str, TopicNode] = field(default_factory=dict)
    tables: Mapping[str, TableNode] = field(default_factory=dict)
    agents: Mapping[str, AgentNode] = field(default_factory=dict)
    timers: Mapping[str, TimerNode] = field(default_factory=dict)

    def __str__(self) -> str:
        from millstream.topology._draw import draw_text

        return draw_text(self)

    def mermaid(self) -> str:
        """The topology as a Mermaid flowchart."""
        from millstream.topology._draw import draw_mermaid

        return draw_mermaid(self)

    def svg(self) -> str:
        """The topology as an SVG drawing."""
        from millstream.topology._draw import draw_svg

        return draw_svg(self)

    def _repr_svg_(self) -> str:
        return self.svg()  # what a notebook shows

    @property
    def sources(self) -> list[str]:
        """Topics that some agent or table reads, sorted."""
        read = {topic for agent in self.agents.values() for topic in agent.sources}
        read |= {table.source for table in self.tables.values() if table.source}
        return sorted(read)

    def matched(self, existing: Mapping[str, int]) -> Topology:
        """The same topology with names in place of patterns: those of topics that are there or declared.

        Topics that Millstream makes for this app, and those of Kafka itself, do not match.
        """
        patterns = {t.name: t.pattern for t in self.topics.values() if t.pattern is not None}
        if not patterns:
            return self
        own = {topic.name for topic in self.topics.values() if topic.internal}
        own |= {table.changelog for table in self.tables.values() if table.changelog}
        own |= {f"{self.app}-replies", f"{self.app}-dlq"}
        declared = {name for name in self.topics if name not in patterns}
        names = [
            name
            for name in sorted(declared | set(existing))
            if name not in own and not name.startswith("__")
        ]
        found = {
            label: [name for name in names if re.fullmatch(pattern, name)]
            for label, pattern in patterns.items()
        }
        topics = {name: topic for name, topic in self.topics.items() if name not in patterns}
        for label, listed in found.items():
            for name in listed:
                topics.setdefault(
                    name, TopicNode(name=name, partitions=self.topics[label].partitions)
                )
        agents = {}
        for agent in self.agents.values():
            if not patterns.keys().isdisjoint(agent.sources):
                listed = [name for s in agent.sources for name in found.get(s, [s])]
                expected = [self.topics[s].partitions for s in agent.sources if s in patterns]
                agent = replace(
                    agent,
                    sources=tuple(dict.fromkeys(listed)),
                    steps=tuple(
                        replace(
                            step, topics=tuple(n for t in step.topics for n in found.get(t, [t]))
                        )
                        for step in agent.steps
                    ),
                    declared=agent.sources,
                    partitions=next((count for count in expected if count is not None), None),
                )
            agents[agent.name] = agent
        first = {label: next(iter(listed), None) for label, listed in found.items()}
        topics = {
            name: replace(t, beside=first[t.beside]) if t.beside in first else t
            for name, t in topics.items()
        }
        tables = {
            name: replace(t, like=first[t.like]) if t.like in first else t
            for name, t in self.tables.items()
        }
        return replace(self, topics=topics, agents=agents, tables=tables)

    def passing(self) -> list[str]:
        """Topics between two stages of this app, sorted: a record that was processed is not read again."""
        kept = {table.source for table in self.tables.values()}
        return [
            name
            for name in self.sources
            if name not in kept
            and name in self.topics
            and self.topics[name].internal
            and self.topics[name].name.endswith("-repartition")
            and not self.topics[name].compacted
        ]

    def resolved(self, existing: Mapping[str, int], default: int) -> Topology:
        """The same topology with a partition count for every topic and table.

        Args:
            existing: partition counts of the topics that the log holds.
            default: the count for topics that neither exist nor declare one.

        Raises:
            PartitionCountError: a count that is declared is not the one that exists, or that of a table
                cannot be told.
        """
        return self.matched(existing)._resolved(existing, default)

    def _resolved(self, existing: Mapping[str, int], default: int) -> Topology:
        topics = {}
        for topic in self.topics.values():
            found = existing.get(topic.name)
            if None not in (found, topic.partitions) and found != topic.partitions:
                raise PartitionCountError(
                    f"topic {topic.name!r} has {found} partitions, and the program declares"
                    f" {topic.partitions}. Declare partitions={found}, or use a topic with another"
                    f" name: records that are already there would change their partition"
                )
            topics[topic.name] = replace(topic, partitions=found or topic.partitions)
        internal_repartitions = {
            name for name, topic in topics.items() if topic.internal and topic.partitions is None
        }
        for name, topic in topics.items():
            if topic.partitions is None and name not in internal_repartitions:
                topics[name] = replace(topic, partitions=default)
        outer = {
            topics[name].partitions
            for name in self.sources
            if name in topics and name not in internal_repartitions
        }
        for name in sorted(internal_repartitions):
            if topics[name].beside is not None:
                continue
            only = next(iter(outer)) if len(outer) == 1 else default
            topics[name] = replace(topics[name], partitions=only)
        for name in internal_repartitions:
            beside = topics[name].beside
            while beside is not None and topics[beside].beside is not None:
                beside = topics[beside].beside
            if beside is not None:
                topics[name] = replace(topics[name], partitions=topics[beside].partitions)
        agents = {
            agent.name: replace(agent, partitions=agent.partitions or default)
            if agent.declared
            else agent
            for agent in self.agents.values()
        }
        counts = {
            topics[topic].partitions
            for agent in self.agents.values()
            for topic in agent.sources
            if topic in topics
        }
        counts |= {agent.partitions for agent in agents.values() if not agent.sources}
        tables = {}
        for table in self.tables.values():
            count = self._table_partitions(table, topics, counts, default)
            found = existing.get(table.changelog) if table.changelog else None
            if found is not None and found != count:
                raise PartitionCountError(
                    f"table {table.name!r} would have {count} partitions, and its changelog"
                    f" {table.changelog!r} has {found}. Give the table partitions={found} and its"
                    f" source topics as many, or start it anew: millstream reset"
                )
            tables[table.name] = replace(table, partitions=count)
            if table.changelog:
                topics[table.changelog] = TopicNode(
                    name=table.changelog, partitions=count, internal=True, compacted=True
                )
        return replace(self, topics=topics, tables=tables, agents=agents)

    def _table_partitions(
        self,
        table: TableNode,
        topics: Mapping[str, TopicNode],
        counts: set[int | None],
        default: int,
    ) -> int:
        if table.source is not None:
            return topics[table.source].partitions or default
        if table.partitions is not None:
            return table.partitions
        if table.like is not None:
            if table.like not in topics:
                raise TopologyError(
                    f"table {table.name!r}: like={table.like!r} is no topic of this app"
                )
            return topics[table.like].partitions or default
        if len(counts) == 1:
            return next(iter(counts)) or default
        if not counts:
            return default
        found = ", ".join(
            f"{name} {topics[name].partitions}" for name in self.sources if name in topics
        )
        raise PartitionCountError(
            f"table {table.name!r}: the topics of this app have different partition counts ({found})."
            f" Say which one the table goes with: like=topic, or partitions=n"
        )

    def shard_counts(self) -> dict[int, list[str]]:
        """Agents by the partition count of their sources; call it on a resolved topology.

        Raises:
            PartitionCountError: an agent reads topics with different counts.
        """
        groups: dict[int, list[str]] = {}
        for agent in self.agents.values():
            counts = {self.topics[name].partitions or 1 for name in agent.sources}
            if len(counts) > 1:
                listed = ", ".join(
                    f"{name} has {self.topics[name].partitions}" for name in agent.sources
                )
                raise PartitionCountError(
                    f"agent {agent.name!r} reads topics that are not co-partitioned: {listed}."
                    f" Bring them to one count with app.stream(...).group_by(...)"
                )
            for count in counts or {agent.partitions or 1}:
                groups.setdefault(count, []).append(agent.name)
        for table in self.tables.values():
            if not table.everywhere:
                groups.setdefault(table.partitions or 1, [])
        return groups

    def fingerprint(self) -> str:
        """A text that two workers of one group share exactly when they run the same topology."""
        agents = sorted(
            f"{a.name} reads {', '.join(a.declared or a.sources)}" for a in self.agents.values()
        )
        tables = sorted(
            f"table {t.name} of {t.partitions}{f' in {t.window}' if t.window else ''}"
            for t in self.tables.values()
        )
        return "; ".join([*agents, *tables])

"""Before the first event: topics as they are declared, and the topology that follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.errors import ConfigurationError, TopologyError
from millstream.transports.base import TopicSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.topology import Topology
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["prepare_topics"]

REPLICATED = 3
IN_SYNC = {"min.insync.replicas": "2"}
"""For internal topics with so many replicas: what is committed outlives a broker, and one may be down."""


async def prepare_topics(
    topology: Topology,
    transport: Transport,
    *,
    partitions: int,
    replication: int,
    works: bool = True,
) -> tuple[Topology, Mapping[str, TopicInfo]]:
    """Create what is missing, and resolve the topology against what is there.

    Args:
        partitions: the count for topics that neither exist nor declare one.
        works: whether a worker is to run here, which reads and writes.

    Raises:
        ConfigurationError: we may not read or write a topic where that is needed.
        PartitionCountError: what exists is not what is declared.
        TopologyError: a topic exists with another clean-up policy than its use needs.
    """
    existing = await transport.topics()
    resolved = topology.resolved({n: t.partitions for n, t in existing.items()}, partitions)
    missing = [
        TopicSpec(
            name=topic.name,
            partitions=topic.partitions or partitions,
            replication=replication,
            retention_ms=topic.retention_ms,
            compacted=topic.compacted,
            config=IN_SYNC if topic.internal and replication >= REPLICATED else {},
        )
        for topic in resolved.topics.values()
        if topic.name not in existing
    ]
    if missing:
        await transport.create_topics(missing)
        existing = await transport.topics()
    if works:
        _refuse_without_rights(resolved, existing, where=transport.url)
    for table in resolved.tables.values():
        changelog = existing.get(table.changelog) if table.changelog else None
        if changelog is not None and not changelog.settings_shown:
            raise ConfigurationError(
                f"table {table.name!r}: {transport.url} does not show us how its changelog"
                f" {table.changelog!r} is kept. Give this user the permission DescribeConfigs on the topic"
                f" (an ACL)"
            )
        if changelog is not None and not changelog.compacted:
            raise TopologyError(
                f"table {table.name!r}: its changelog {table.changelog!r} is not compacted, and would"
                f" lose entries. Set cleanup.policy=compact on the topic, or give the table another name"
            )
    return resolved, existing


def _refuse_without_rights(
    resolved: Topology, existing: Mapping[str, TopicInfo], *, where: str
) -> None:
    """A worker reads sources, writes declared sinks and what it describes and does not read, and does both with its own."""
    needed = {name: {"read"} for name in resolved.sources}
    sinks = {name for agent in resolved.agents.values() for name in agent.sinks}
    for topic in resolved.topics.values():
        if topic.internal:
            needed.setdefault(topic.name, {"read"}).add("write")
        elif topic.name in sinks or (topic.name not in needed and topic.pattern is None):
            needed.setdefault(topic.name, set()).add("write")
    missing = [
        f"{word} topic {name!r}"
        for name, words in sorted(needed.items())
        for word in sorted(words)
        if name in existing and word not in existing[name].allowed
    ]
    if missing:
        raise ConfigurationError(
            f"{where} does not allow us to {', to '.join(missing)}. Give this user the permissions (ACLs),"
            f" or log in as another one (sasl_username, ssl_certfile)"
        )

"""State that a program has left behind: what tables and streams kept that it does not declare any more.

A table that was renamed by accident would begin empty, and nobody would know. So what was kept under a name that is
gone is an error before the first event, until somebody says what is meant. Notes are none of that: what a timer that is
gone has left is of no use to anybody, and does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.errors import TopologyError
from millstream.records import TopicPartition
from millstream.worker._notes import is_notes_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.topology import Topology
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["find_orphans", "refuse_orphans"]

_CHANGELOG, _REPARTITION = "-changelog", "-repartition"


async def find_orphans(
    topology: Topology, transport: Transport, infos: Mapping[str, TopicInfo]
) -> dict[str, int]:
    """Changelogs and repartition topics of the app that no table or stream of it uses.

    Args:
        topology: resolved.

    Returns:
        How many records each of them holds, by name; empty ones are left out.
    """
    prefix = f"{topology.app}-"
    names = [
        name
        for name in sorted(infos)
        if name.startswith(prefix)
        and name.endswith((_CHANGELOG, _REPARTITION))
        and name not in topology.topics
        and not is_notes_topic(topology.app, name)
    ]
    if not names:
        return {}  # nor is the log asked for groups, for which every broker would have to answer
    others = [
        f"{group}-"
        for group in await transport.groups()
        if group.startswith(prefix)  # its topics begin like ours
    ]
    names = [name for name in names if not name.startswith(tuple(others))]
    tps = [TopicPartition(name, p) for name in names for p in range(infos[name].partitions)]
    starts, ends = await transport.start_offsets(tps), await transport.end_offsets(tps)
    records = dict.fromkeys(names, 0)
    for tp in tps:
        records[tp.topic] += ends[tp] - starts[tp]
    return {name: count for name, count in records.items() if count}


async def refuse_orphans(
    topology: Topology, transport: Transport, infos: Mapping[str, TopicInfo]
) -> None:
    """See that nothing was left behind.

    Raises:
        TopologyError: something was; the message names it, and tells how to go on.
    """
    found = await find_orphans(topology, transport, infos)
    if not found or (await transport.describe_group(topology.app)).members:
        return  # of what runs beside it, a worker is told when it joins
    listed = ", ".join(
        f"{what} ({count:,} record{'' if count == 1 else 's'} in {name})"
        for name, count in found.items()
        for what in [_called(topology.app, name)]
    )
    first = next(iter(found)).removeprefix(f"{topology.app}-")
    stem = first.removesuffix(_CHANGELOG).removesuffix(_REPARTITION)
    raise TopologyError(
        f"app {topology.app!r} has left state behind: the log holds {listed}, which the program does not"
        f" declare any more. If it has got another name, give it the old one back: name={stem!r}. If it is"
        f" to go: millstream reset --orphans"
    )


def _called(app: str, topic: str) -> str:
    name = topic.removeprefix(f"{app}-")
    if topic.endswith(_CHANGELOG):
        return f"table {name.removesuffix(_CHANGELOG)!r}"
    return f"records on their way for {name.removesuffix(_REPARTITION)!r}"

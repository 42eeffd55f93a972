"""The app's log as commands look at it: nothing is created, and nothing has to run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millstream.app._broker import local_path, open_transport
from millstream.errors import ConfigurationError
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from millstream.app import App
    from millstream.app._settings import Settings
    from millstream.clock import Clock
    from millstream.records import TopicPartition
    from millstream.topology import Topology
    from millstream.transports.base import OffsetAndMetadata, TopicInfo, Transport

__all__ = [
    "AgentPositions",
    "agent_positions",
    "log_exists",
    "matched_topology",
    "open_log",
    "open_url",
    "resolved_topology",
]


def log_exists(app: App) -> bool:
    """Whether there is a log: a file that no worker and no send has made yet is none."""
    broker = app.settings.broker
    return not broker.startswith("local://") or local_path(broker).exists()


@contextlib.asynccontextmanager
async def open_log(app: App) -> AsyncIterator[Transport]:
    """The log of an app, to be looked at.

    Raises:
        ConfigurationError: it does not exist, or cannot be seen from this process.
    """
    async with open_url(app.settings, app.clock, app=app.id) as transport:
        yield transport


@contextlib.asynccontextmanager
async def open_url(
    settings: Settings, clock: Clock, *, app: str, may_be_new: bool = False
) -> AsyncIterator[Transport]:
    """The log that settings name as their broker.

    Args:
        app: whose name its transactions bear, where it has them.
        may_be_new: make a file that does not exist.

    Raises:
        ConfigurationError: it does not exist, or cannot be seen from this process.
    """
    url = settings.broker
    if url.startswith("memory://"):
        raise ConfigurationError(
            f"the log {url} lives inside one process: there is nothing to see from here"
        )
    if url.startswith("local://") and not (may_be_new or local_path(url).exists()):
        raise ConfigurationError(
            f"the log local://{local_path(url)} does not exist yet: start a worker"
            f" (millstream worker) or send something, or check the working directory"
        )
    async with open_transport(url, clock, settings, app=app) as transport:
        yield transport


def resolved_topology(app: App, infos: Mapping[str, TopicInfo]) -> Topology:
    """The app's topology with partition counts."""
    counts = {name: info.partitions for name, info in infos.items()}
    return app.topology.resolved(counts, app.settings.partitions)


def matched_topology(app: App, infos: Mapping[str, TopicInfo]) -> Topology:
    """The app's topology with the topics that patterns stand for."""
    return app.topology.matched({name: info.partitions for name, info in infos.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPositions:
    """Where the agents of a group are in some partitions.

    ``at`` is by agent and partition: the offset of the first record that the agent has not finished.
    """

    committed: Mapping[TopicPartition, OffsetAndMetadata]
    starts: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]
    at: Mapping[tuple[str, TopicPartition], int]

    def lag(self, agent: str) -> int:
        """Records that the agent has before it."""
        return sum(
            max(0, self.ends[tp] - offset)
            for (name, tp), offset in self.at.items()
            if name == agent
        )


async def agent_positions(
    app: App, transport: Transport, tps: Iterable[TopicPartition]
) -> AgentPositions:
    """What is committed for each agent that reads one of ``tps``; a worker would begin there."""
    listed = list(tps)
    committed = await transport.committed(app.id, listed) if listed else {}
    starts = await transport.start_offsets(listed) if listed else {}
    ends = await transport.end_offsets(listed) if listed else {}
    topology = matched_topology(app, await transport.topics())
    positions: dict[tuple[str, TopicPartition], int] = {}
    for tp in listed:
        found = committed.get(tp)
        at = starts[tp] if found is None else max(found.offset, starts[tp])
        metadata = decode_metadata("" if found is None else found.metadata)
        for agent in topology.agents.values():
            if tp.topic in agent.sources:
                name = agent.position_name(tp.topic)
                positions[agent.name, tp] = max(metadata.position_of(name, at), at)
    return AgentPositions(committed=committed, starts=starts, ends=ends, at=positions)

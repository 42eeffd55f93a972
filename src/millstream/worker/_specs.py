"""What a shard is told: its tables, its agents, and what all shards of a worker share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from millstream.topology import position_name
from millstream.worker._recovery import FETCHES_MAX, RecoveryProgress
from millstream.worker._turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from millstream.agents import Agent, Failure, Policy, Source, Topic
    from millstream.clock import Clock
    from millstream.context import IncomingRecord, Scope
    from millstream.state.base import TableStore
    from millstream.tables import TablePart
    from millstream.transports.base import Transport
    from millstream.worker._closing import Closing

__all__ = ["AgentSpec", "ShardOptions", "Stage", "TableSpec"]


class MakePart(Protocol):
    def __call__(self, store: TableStore, check: Callable[[Any], None]) -> TablePart: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table, as a shard needs it. Exactly one of ``changelog`` and ``source`` is its truth."""

    name: str
    partitions: int
    changelog: str | None
    source: str | None = None
    reader: str = ""
    """The agent that reads the table from ``source``."""
    make: MakePart
    place: Callable[[Any], bytes]
    """A key of the table to its bytes in the source topic's key codec."""
    partitioner: Callable[[bytes, int], int]
    on_close: Closing | None = None
    """What to do for each final window."""
    state_key: Callable[[bytes], bytes] | None = None
    index_key: Callable[[bytes], bytes | None] | None = None
    checked: bool = True
    """Whether a key has to belong to the shard that uses it."""
    clocks: Sequence[str] = ()
    """Tables whose time decides what expires in this one, the slowest one's; its own where there are none."""
    users: Collection[str] = ()
    """Agents that use it, as far as they are known before they do."""
    stored_value: Callable[[IncomingRecord], bytes | None] | None = None
    """A record of ``source`` to the bytes that the store has, where these are not the record's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """An agent, as a shard needs it."""

    agent: Agent[Any, Any]
    sources: dict[str, Source]
    """By topic; it grows where a pattern finds further topics."""
    policy: Policy
    """For records of topics that have none of their own."""
    emit: Callable[[Scope, Any], Awaitable[None]]
    dead_letter: Callable[[Scope, Failure], None]
    """Send the record of a failure to the agent's dead-letter topic."""
    refuse: Callable[[Scope, Failure], None] | None = None
    """Tell whoever has asked that there will be no answer."""
    policies: dict[str, Policy] = field(default_factory=dict)
    """By topic; grows likewise."""

    def position_name(self, topic: str) -> str:
        """Under which name it is kept how far the agent is with a topic."""
        declared = [
            name for source in self.agent.sources for t in source.topics for name in t.names
        ]
        return position_name(self.agent.name, declared, topic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """An agent that sends to a topic between two stages of the app, and the topics whose records it passes on so."""

    agent: AgentSpec
    partitions: int
    """Of each of its sources."""
    topics: Sequence[Topic[Any, Any]]

    def sources(self) -> list[str]:
        """The agent's sources that are among these topics, as far as patterns have found them."""
        return [
            name
            for name, source in self.agent.sources.items()
            if any(
                name == topic.name or (topic.reads(name) and not source.ours)
                for topic in self.topics
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """What all shards of a worker share."""

    app: str
    group: str
    clock: Clock
    transport: Transport
    topic_ids: Mapping[str, str]
    everywhere: Mapping[str, TablePart]
    """Parts of the global tables."""
    idles: bool = False
    """Whether some topic or table has an ``idle_timeout``."""
    stages: Mapping[str, Sequence[Stage]] = field(default_factory=dict)
    """By topic between two stages of the app: what fills it."""
    inbox_bytes_max: int = 8 << 20
    epoch_bytes_max: int = 32 << 20
    """Input and output of one shard between two cuts, above which intake stops."""
    turns: Turns = field(default_factory=Turns)
    progress: RecoveryProgress = field(default_factory=RecoveryProgress)
    recoveries: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHES_MAX))
    """Bounds how many shards read their changelogs at the same time."""

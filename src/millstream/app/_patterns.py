"""Topics that are read because their names match a pattern: those that are made while the app runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.agents import Topic
    from millstream.topology import Topology
    from millstream.worker import AgentSpec

__all__ = ["Patterns"]

logger = logging.getLogger("millstream.app")


class Patterns:
    """Which topics the agents of a running app read by their patterns.

    Args:
        declared: the topology with the patterns in it.
        topology: the same, resolved against the log.
    """

    def __init__(self, declared: Topology, topology: Topology) -> None:
        self.topology = topology
        """Resolved, with every topic that was taken since."""
        self.specs: Mapping[str, AgentSpec] = {}
        """The agents, as the worker runs them."""
        self._declared = declared
        self._refused: set[tuple[str, str]] = set()

    def take(self, partitions: Mapping[str, int]) -> list[tuple[str, Topic[Any, Any]]]:
        """The agents and the topics that they have to read from now on.

        A topic whose partitions are not as many as the agent's shards stays out, which is logged once: the
        next start refuses it.

        Args:
            partitions: every topic of the log, with its partition count.
        """
        taken = []
        topics, agents = dict(self.topology.topics), dict(self.topology.agents)
        matched = self._declared.matched(partitions)
        for name, spec in self.specs.items():
            node = agents[name]
            for found in matched.agents[name].sources:
                if found in node.sources or found not in partitions:
                    continue
                if partitions[found] != self._shards(name):
                    self._refuse(name, found, partitions[found])
                    continue
                topic = spec.agent.source(found)
                topics[found] = replace(matched.topics[found], partitions=partitions[found])
                node = agents[name] = replace(node, sources=(*node.sources, found))
                logger.info(
                    "agent %r reads topic %r as well, which matches its pattern", name, found
                )
                taken.append((name, topic))
        self.topology = replace(self.topology, topics=topics, agents=agents)
        return taken

    def _shards(self, agent: str) -> int:
        node = self.topology.agents[agent]
        for source in node.sources:
            return self.topology.topics[source].partitions or 1
        return node.partitions or 1

    def _refuse(self, agent: str, topic: str, partitions: int) -> None:
        if (agent, topic) in self._refused:
            return
        self._refused.add((agent, topic))
        logger.error(
            "agent %r does not read topic %r, which matches its pattern: it has %d partitions, and the"
            " agent's other topics have %d. The next start will refuse it: give it as many, or change the"
            " pattern",
            agent,
            topic,
            partitions,
            self._shards(agent),
        )

"""How far the stages before a topic are: whether all that the program's sources had has come into it.

Theory of operation
-------------------
Records that change their key go through a topic between two stages of the app. When nothing comes there, its sources may
be silent, or the stage before may be behind: it recovers, reads a history, or nobody runs it. Only the group's positions
tell, as any worker may have its shards. A stage that has committed the end of an input has sent what follows from it, in
the same epoch or before. Such an input is asked for its position first and for its end afterwards.

A stage whose input never rests is never at its end. So when it is not, the end is remembered together with the moment: once
the position has come so far, it is known of that moment that nothing was left. Of several stages in a row each one is
looked at after those before it, and cannot know of a later moment than they do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from millstream.records import TopicPartition
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from millstream.transports.base import OffsetAndMetadata, Transport
    from millstream.worker._specs import Stage

__all__ = ["Passage"]

Input = tuple[str, str]
"""Under which name it is kept how far an agent is with one of its topics, and the topic."""


class Passage:
    """What one shard knows of the stages before its inputs; moments are of a monotonic clock.

    Args:
        stages: by topic between two stages: what fills it.
    """

    def __init__(
        self, stages: Mapping[str, Sequence[Stage]], *, group: str, transport: Transport
    ) -> None:
        self._stages = stages
        self._group = group
        self._transport = transport
        self._passed: dict[Input, float] = {}
        """Up to which moment all that the sources had is through with an agent."""
        self._awaited: dict[Input, tuple[float, Mapping[TopicPartition, int]]] = {}
        """The moment that is known when the agent has come to these ends."""

    def until(self, topic: str, now: float) -> float:
        """Up to which moment all that the sources had has come into a topic: now, for a source itself."""
        before = [
            self._passed.get((stage.agent.position_name(source), source), -math.inf)
            for stage in self._stages.get(topic, ())
            for source in stage.sources()
        ]
        return min(before, default=now)

    async def look(self, topics: Iterable[str], now: float) -> None:
        """See how far the stages before these topics are.

        Raises:
            LogUnavailableError: the log does not tell.
        """
        inputs = self._before(topics)
        tps = sorted({tp for listed in inputs.values() for tp in listed})
        if not tps:
            return
        committed = await self._transport.committed(self._group, tps, settled=False)
        ends = await self._transport.end_offsets(tps)
        behind = [tp for tp in tps if tp not in committed or committed[tp].offset < ends[tp]]
        starts = await self._transport.start_offsets(behind) if behind else {}
        for (name, topic), listed in inputs.items():
            at = {tp: max(_position(committed.get(tp), name), starts.get(tp, 0)) for tp in listed}
            self._note((name, topic), self.until(topic, now), at, {tp: ends[tp] for tp in listed})

    def _note(
        self,
        of: Input,
        came: float,
        at: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        """Take in how far an agent is, and where an input ends into which all has come up to a moment."""
        if _reaches(at, ends):
            self._passed[of] = came
            self._awaited.pop(of, None)
            return
        if of in self._awaited and _reaches(at, self._awaited[of][1]):
            self._passed[of], _ = self._awaited.pop(of)
        self._awaited.setdefault(of, (came, ends))

    def _before(self, topics: Iterable[str]) -> dict[Input, list[TopicPartition]]:
        """The inputs of all stages before these topics, the first ones first."""
        found: dict[Input, list[TopicPartition]] = {}
        seen: set[str] = set()

        def visit(topic: str) -> None:
            if topic in seen:
                return
            seen.add(topic)
            for stage in self._stages.get(topic, ()):
                for source in stage.sources():
                    visit(source)
                    found[stage.agent.position_name(source), source] = [
                        TopicPartition(source, number) for number in range(stage.partitions)
                    ]

        for topic in topics:
            visit(topic)
        return found


def _reaches(at: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> bool:
    return all(at[tp] >= end for tp, end in ends.items())


def _position(found: OffsetAndMetadata | None, name: str) -> int:
    """Up to where an agent has committed an input; the offset is that of the slowest one that reads it."""
    if found is None:
        return 0
    return max(found.offset, decode_metadata(found.metadata).position_of(name, 0))

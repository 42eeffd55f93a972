"""How far a shard's agents have come with its inputs: what goes with an epoch, and what is committed.

Several agents read one partition, each at its own pace. The offset that is committed for it is the slowest one's;
where the others are is in its metadata (`millstream.worker._metadata`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.errors import InternalError
from millstream.worker._metadata import encode_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from millstream.records import TopicPartition
    from millstream.worker._subtopology import Positions

__all__ = ["InputPositions"]


class InputPositions:
    """The positions of one shard since its last recovery."""

    def __init__(self) -> None:
        self.begun: Positions = {}
        """Where the agents began."""
        self.cut: Positions = {}
        """Those of the last cut."""
        self.settled: Positions = {}
        """Those that are committed."""
        self.committed: dict[TopicPartition, int] = {}
        """Committed offsets: the position that the store reflects."""
        self._last_offsets: dict[TopicPartition, int] = {}
        self._names: dict[tuple[str, TopicPartition], str] = {}
        """Under which an agent's position is kept."""

    def begin(
        self, tp: TopicPartition, at: int, agents: Mapping[str, int], names: Mapping[str, str]
    ) -> None:
        """Read a partition from here on.

        Args:
            at: the committed offset.
            agents: where each of those who read it begins.
            names: under which their positions are kept.
        """
        self.committed[tp] = self._last_offsets[tp] = at
        for name, began in agents.items():
            self._names[name, tp] = names[name]
            self.begun[name, tp] = self.cut[name, tp] = self.settled[name, tp] = began

    def of_agent(self, name: str) -> dict[TopicPartition, int]:
        """Where an agent began."""
        return {tp: at for (agent, tp), at in self.begun.items() if agent == name}

    def is_behind(self, positions: Positions) -> bool:
        """Whether some of these are ahead of the last cut."""
        # not compared with the committed offset, which is the slowest agent's
        return any(at > self.cut[source] for source, at in positions.items())

    def offsets(self, time_of: Callable[[str], int]) -> dict[TopicPartition, tuple[int, str]]:
        """What an epoch commits for each partition: the offset, and its metadata.

        Args:
            time_of: an agent's stream time as of the cut, in ms.
        """
        by_tp: dict[TopicPartition, tuple[dict[str, int], dict[str, int]]] = {}
        for (agent, tp), at in self.cut.items():
            positions, times = by_tp.setdefault(tp, ({}, {}))
            name = self._names[agent, tp]
            positions[name], times[name] = at, time_of(agent)
        offsets = {}
        for tp, (positions, times) in by_tp.items():
            offsets[tp] = encode_metadata(max(times.values()), positions, times)
        for tp, (offset, _) in offsets.items():
            if offset < self._last_offsets.get(tp, 0):
                raise InternalError(f"the position of {tp} went back to {offset}")
            self._last_offsets[tp] = offset
        return offsets

    def settle(
        self, offsets: Mapping[TopicPartition, tuple[int, str]], limits: Iterable[Positions]
    ) -> None:
        """An epoch is committed.

        Args:
            limits: the positions of what was cut.
        """
        for tp, (offset, _) in offsets.items():
            if tp in self.committed:
                self.committed[tp] = offset
        for positions in limits:
            self.settled.update(positions)

    def give_back(self) -> None:
        """The epoch was refused: what was cut goes with the next one."""
        self.cut = self.settled.copy()
        self._last_offsets = self.committed.copy()
